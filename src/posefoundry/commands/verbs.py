"""What `posefoundry train, val, export, convert, models, info, import-weights` do, each from its `key=value` words."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from posefoundry.api.data import find_coco_files
from posefoundry.api.training import go_on
from posefoundry.api.yolo import YOLO
from posefoundry.commands.model_choice import named_or_current
from posefoundry.commands.words import arguments_of, refuse_others, required
from posefoundry.config import Convert
from posefoundry.datasets.convert import convert_coco_files
from posefoundry.datasets.receipt import write_receipt
from posefoundry.errors import PosefoundryError
from posefoundry.files import read_json
from posefoundry.models.profile import published_profiles

HEADS = {True: "several boxes per person, thinned out by NMS", False: "one box per person, without NMS"}


def train(words: list[str]) -> None:
    """Trains and says where the weights are."""
    arguments = arguments_of("train", words)
    model = required("train", arguments, "model", "yolo26n-pose.yaml")
    if arguments == {"resume": True}:
        best, metrics = go_on(Path(model))
    else:
        opened = YOLO(model)
        metrics = opened.train(**arguments)
        best = Path(opened.ckpt_path or "")
    print(metrics)
    print(f"Best weights: {best}")


def val(words: list[str], model_name: Callable[[], str]) -> None:
    """Measures a model, by default the one in production."""
    arguments = arguments_of("val", words)
    with named_or_current(arguments.pop("model", None), model_name) as (model, label):
        print(f"Model: {label}")
        metrics = YOLO(model).val(**arguments)
    print(metrics)
    speed = ", ".join(f"{stage} {ms:.1f}" for stage, ms in metrics.speed.items())
    print(f"ms per image: {speed}")
    for sentence in metrics.warnings:
        print(f"Warning: {sentence}")
    if metrics.save_dir:
        print(f"Reports: {metrics.save_dir}/")


def export(words: list[str]) -> None:
    """Exports a model."""
    arguments = arguments_of("export", words)
    path = Path(YOLO(required("export", arguments, "model", "best.safetensors")).export(**arguments))
    print(f"{path} ({path.stat().st_size / 1e6:.1f} MB)")
    print(f"Try it: posefoundry predict model={path} source=street.jpg")


def convert(words: list[str]) -> None:
    """Converts COCO files to a YOLO data set."""
    arguments = arguments_of("convert", words)
    data = Path(required("convert", arguments, "data", "annotations/person_keypoints_train2017.json"))
    out = Path(required("convert", arguments, "out", "people"))
    refuse_others("convert", arguments, ("images",))
    how = arguments.get("images", Convert().images)
    if how not in ("hardlink", "symlink", "copy"):
        raise PosefoundryError(f"convert: images: expected hardlink, symlink or copy, got {how!r}.")
    if out.exists() and any(out.iterdir() if out.is_dir() else [out]):
        raise PosefoundryError(f"convert: out: expected a new or empty folder, got {out}, which is not empty.")
    files = find_coco_files(data)
    receipt = convert_coco_files(files, out, images=how)
    write_receipt(out / "receipt.jsonl", receipt)
    for split in files:
        outcomes = Counter(line.reason or line.outcome for line in receipt if line.split == split)
        print(f"{split}: " + ", ".join(f"{count} {outcome}" for outcome, count in outcomes.most_common()))
    print(f"{out / 'dataset.yaml'}, {out / 'receipt.jsonl'}")


def models() -> None:
    """Prints the published architectures and their sizes."""
    print(f"{'model':18}{'M parameters':>14}{'GFLOPs':>10}{'px':>7}{'classes':>9}")
    for profile in published_profiles():
        print(
            f"{profile.name:18}{profile.parameters / 1e6:14.3f}{profile.gflops:10.3f}{profile.image_size_px:7}"
            f"{profile.n_classes:9}"
        )
    print("As in use: convolution and BatchNorm fused, with the class count of the published models.")
    print("New: posefoundry train model=yolo26n-pose.yaml data=...  Published weights: model=yolo26n-pose.pt")


def info(words: list[str]) -> None:
    """Tells what a model file holds."""
    arguments = arguments_of("info", words, bare="model")
    model = YOLO(required("info", arguments, "model", "best.safetensors"))
    refuse_others("info", arguments, ())
    details, profile = model.details, model.profile()
    names = ", ".join(details.skeleton.keypoint_names)
    facts: dict[str, Any] = {
        "architecture": details.architecture,
        "parameters": f"{profile.parameters:,} in use",
        "GFLOPs": f"{profile.gflops:.2f} at {profile.image_size_px} px",
        "head": HEADS[details.needs_nms],
        "classes": ", ".join(details.class_names),
        "keypoints": f"{details.kpt_shape[0]} of {details.kpt_shape[1]} values: {names}",
        "file": model.ckpt_path or "none, new weights",
    }
    if model.ckpt_path and Path(model.ckpt_path).suffix == ".safetensors":
        extra = read_json(Path(model.ckpt_path).with_suffix(".json")).get("extra") or {}
        facts |= {"trained on": extra.get("data"), "epoch": extra.get("epoch")}
        facts["val OKS AP"] = (extra.get("val_metrics") or {}).get("oks_ap")
    for name, value in facts.items():
        if value is not None:
            print(f"{name:13} {value}")


def import_weights(words: list[str]) -> None:
    """Turns a published checkpoint into safetensors."""
    arguments = arguments_of("import-weights", words, bare="model")
    source = Path(required("import-weights", arguments, "model", "yolo26n-pose.pt"))
    out = Path(arguments.pop("out", source.with_suffix(".safetensors").name))
    refuse_others("import-weights", arguments, ("out",))
    YOLO(source).save(out)
    print(f"{out}, {out.with_suffix('.json')}")
