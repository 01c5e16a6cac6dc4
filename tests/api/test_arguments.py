"""Arguments mean what they mean in the field, and none is ignored in silence."""

from pathlib import Path

import pytest

from posefoundry.api import arguments as module
from posefoundry.api.arguments import (
    ExportArguments,
    PredictArguments,
    TrainArguments,
    ValArguments,
    device_name,
    gpu_numbers,
    parse,
)
from posefoundry.commands import keys
from posefoundry.config import Train
from posefoundry.errors import PosefoundryError


def settings(**given):
    return parse(TrainArguments, given).to_settings("yolov8n-pose", None, 32)


def test_no_arguments_are_the_published_recipe():
    assert settings() == Train()


def test_each_argument_reaches_its_setting():
    got = settings(
        epochs=7, batch=4, imgsz=320, lr0=0.002, lrf=0.1, cos_lr=True, optimizer="AdamW", amp=False, workers=2, seed=5,
        box=1, pose=2, hsv_h=0.1, fliplr=0.0, mosaic=0.5, close_mosaic=3, degrees=5, cache="ram", ema_decay=0.99,
    )  # fmt: skip
    assert (got.epochs, got.batch_size, got.image_size_px) == (7, 4, 320)
    assert (got.learning_rate, got.final_learning_rate_fraction, got.schedule) == (0.002, 0.1, "cosine")
    assert (got.optimizer, got.precision, got.loader_workers, got.seed) == ("adamw", "float32", 2, 5)
    assert (got.loss.box, got.loss.pose, got.loss.cls) == (1, 2, 0.5)
    assert (got.augment.hsv_hue, got.augment.flip_probability, got.augment.rotate_degrees) == (0.1, 0, 5)
    assert (got.augment.mosaic_probability, got.augment.mosaic_off_epochs) == (0.5, 3)
    assert got.image_cache_gib > 1000 and got.ema_decay == 0.99


def test_augmentations_of_the_field_reach_their_settings():
    got = settings(
        imgsz=640, mixup=0.1, copy_paste=0.2, shear=5, perspective=0.0005, flipud=0.3, blur=0.4, cutout=0.5,
        multi_scale=0.25,
    ).augment  # fmt: skip
    assert (got.mixup_probability, got.copy_paste_probability, got.shear_degrees) == (0.1, 0.2, 5)
    assert (got.flip_vertical_probability, got.blur_probability, got.cutout_probability) == (0.3, 0.4, 0.5)
    assert got.perspective_fraction == pytest.approx(0.16)  # per px there, of half the image here
    assert got.multi_scale_fraction == 0.25
    weights = settings(class_weights={"person": 2}, keypoint_weights={"left_wrist": 0}).loss
    assert (weights.class_weights, weights.keypoint_weights) == ({"person": 2}, {"left_wrist": 0})
    assert settings(multi_scale=True).augment.multi_scale_fraction == 0.5
    assert settings(multi_scale=False, perspective=0).augment == settings().augment


def test_image_size_is_rounded_up_to_the_stride_and_short_trainings_warm_up_shortly():
    assert settings(imgsz=100).image_size_px == 128
    assert settings(epochs=2).warmup_epochs == 1
    assert settings(epochs=100).warmup_epochs == 3


@pytest.mark.parametrize(
    ("kind", "given", "told"),
    [
        (TrainArguments, {"epoch": 3}, "train: unknown setting 'epoch'; did you mean 'epochs'?"),
        (ValArguments, {"cnf": 0.1}, "val: unknown setting 'cnf'; did you mean 'conf'?"),
        (PredictArguments, {"imgsize": 320}, "predict: unknown setting 'imgsize'; did you mean 'imgsz'?"),
        (ExportArguments, {"formt": "onnx"}, "export: unknown setting 'formt'; did you mean 'format'?"),
        (
            TrainArguments,
            {"cutmix": 0.1},
            "train: cutmix: posefoundry does not do this; leave it out, or set it to 0.0",
        ),
        (
            TrainArguments,
            {"resume": True, "epochs": 9},
            "train: resume: goes on with the arguments it began with; leave out epochs",
        ),
        (ExportArguments, {"format": "coreml"}, "export: format: Input should be 'onnx' or 'engine' (got 'coreml')"),
        (PredictArguments, {"conf": 2}, "predict: conf: Input should be less than or equal to 1 (got 2)"),
        (TrainArguments, {"task": "segment"}, "train: task: Input should be 'pose'"),
    ],
)
def test_refusals(kind, given, told):
    with pytest.raises(PosefoundryError) as caught:
        parse(kind, given)
    assert str(caught.value).startswith(told)


def test_impossible_values_are_told_by_the_arguments_own_names():
    with pytest.raises(PosefoundryError, match=r"train: batch: .*; lr0: .*greater than 0 \(got -1.0\); mosaic: "):
        settings(lr0=-1, mosaic=3, batch=0)
    with pytest.raises(PosefoundryError, match=r"train: .*perspective: .*multi_scale: "):
        settings(perspective=0.01, multi_scale=3)


def test_neutral_values_of_the_field_pass():
    assert settings(cutmix=0, bgr=0.0, val=True, rect=False, deterministic=True) == settings()


@pytest.mark.parametrize(
    ("given", "name"),
    [
        (None, "auto"),
        ("cpu", "cpu"),
        (0, "cuda:0"),
        ("1", "cuda:1"),
        ([2], "cuda:2"),
        ("cuda:1", "cuda:1"),
        ("", "auto"),
    ],
)
def test_devices(given, name):
    assert device_name(given) == name


@pytest.mark.parametrize("several", [[0, 1], "0,1", "cuda:0,1"])
def test_several_gpus_train_together_and_do_nothing_else(several):
    assert gpu_numbers(several) == (0, 1)
    got = settings(device=several)
    assert (got.device, got.processes) == ("cuda", 2)
    with pytest.raises(
        PosefoundryError, match=r"device: expected one device, got .*; several at once are for training only"
    ):
        device_name(several)


def test_where_a_training_runs():
    for device, setting in ((None, "auto"), ("cpu", "cpu"), ("cuda", "cuda"), (0, "cuda"), ("3", "cuda")):
        assert settings(device=device).device == setting
    assert settings(device="cpu", processes=4, batch=8).processes == 4
    with pytest.raises(PosefoundryError, match="processes: expected one for each GPU of device=0,1, got 4"):
        settings(device="0,1", processes=4)
    for wrong in ("0,x", [-1, -1], "mps"):
        with pytest.raises(PosefoundryError, match="device: expected"):
            settings(device=wrong)
    with pytest.raises(PosefoundryError, match="train: batch is the global batch and must be a multiple of"):
        settings(device="0,1", batch=3)


def test_every_setting_of_training_can_be_reached():
    """A setting that is added to the pipeline is missed here until it has a name."""
    through_others = {"model", "weights", "image_size_px", "device", "precision", "optimizer", "schedule"}
    reached = {path.partition(".")[0] for path in module.TRAIN_SETTINGS.values()} | through_others
    cache = {"image_cache_gib", "image_cache_folder"}
    of_the_pipeline = {
        "checkpoint_every_epochs",
        "checkpoint_every_steps",
        "keep_checkpoints",
    }  # the library's are the defaults
    of_several_processes = {"nodes", "max_restarts", "stall_timeout_s"}  # the pipeline's too
    assert set(Train.model_fields) - reached == cache | of_the_pipeline | of_several_processes
    paths = {*module.TRAIN_SETTINGS.values(), *module.CONVERTED}
    augmentations = {p.removeprefix("augment.") for p in paths if p.startswith("augment.")}
    assert augmentations == set(Train().augment.model_fields_set or type(Train().augment).model_fields)


@pytest.mark.parametrize(
    ("keys", "kind"),
    [
        (keys.TRAIN_KEYS, TrainArguments),
        (keys.VAL_KEYS, ValArguments),
        (keys.PREDICT_KEYS.removeprefix("source, model, "), PredictArguments),
        (keys.EXPORT_KEYS, ExportArguments),
    ],
)
def test_help_names_every_key(keys, kind):
    assert set(keys.split(", ")) == set(kind.model_fields) - {"task"}


def test_project_and_name_are_a_folder():
    assert parse(PredictArguments, {"project": "a", "name": "b"}).project == Path("a")
