"""Images per second from file to persons on the CPU: PyTorch and ONNX Runtime beside the plainest script.

    python benchmarks/inference.py [weights=best.safetensors] [images=folder] [imgsz=640] [threads=0] [rounds=3]

Without weights, a randomly initialised yolov8n; without images, 24 drawn ones. The plain script pads to a square, runs
onnxruntime image by image and suppresses by cv2.dnn; the Predictor pads as little as the stride allows, so it has less
to compute on photographs and may find a person more or less. All ways run in turn; the fastest round of each counts.
"""

import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import onnxruntime
import torch
from common import print_table, read_options
from rich.table import Table

from posefoundry.datasets.synthetic import draw_image
from posefoundry.datasets.yolo import image_files
from posefoundry.export.onnx import export_onnx
from posefoundry.inference.backends import OnnxBackend, TorchBackend
from posefoundry.inference.predictor import Predictor
from posefoundry.machine import cpu_name, usable_cores
from posefoundry.models import ModelInfo, PoseModel, build_model, load_model
from posefoundry.skeleton import COCO_PERSON

BATCH_SIZES = (1, 8)
CONFIDENCE, NMS_IOU = 0.25, 0.7


def main() -> None:
    options = read_options({"weights": "", "images": "", "imgsz": "640", "threads": "0", "rounds": "3"})
    imgsz, threads = int(options["imgsz"]), int(options["threads"]) or usable_cores()
    cv2.setNumThreads(threads)
    model, info = load_model(Path(options["weights"])) if options["weights"] else random_model(imgsz)
    with tempfile.TemporaryDirectory() as folder:
        onnx_path = Path(folder) / "model.onnx"
        export_onnx(model, info, onnx_path, opset=18, weights_sha256="")
        files = image_files(Path(options["images"])) if options["images"] else drawn_images(Path(folder), imgsz)
        backends = {
            "PyTorch": TorchBackend(model, info, device="cpu", threads=threads),
            "ONNX Runtime": OnnxBackend(onnx_path, device="cpu", threads=threads),
        }
        session_options = onnxruntime.SessionOptions()
        session_options.intra_op_num_threads = threads
        session = onnxruntime.InferenceSession(onnx_path, session_options, providers=["CPUExecutionProvider"])
        ways = {"plain script, 1": lambda: plain_script(files, session, imgsz)}
        for name, backend in backends.items():
            predictor = Predictor(backend, image_size_px=imgsz, confidence=CONFIDENCE, nms_iou=NMS_IOU)
            for batch_size in BATCH_SIZES:
                ways[f"{name}, {batch_size}"] = lambda p=predictor, b=batch_size: predict(files, p, b)
        best = best_rounds(ways, int(options["rounds"]))
    title = f"{info.architecture}, {imgsz} px, {len(files)} images, {threads} threads, {cpu_name()}"
    show(best, title=title, n_images=len(files))


def random_model(imgsz: int) -> tuple[PoseModel, ModelInfo]:
    torch.manual_seed(0)
    info = ModelInfo(
        architecture="yolov8n-pose",
        class_names=("person",),
        category_ids=(1,),
        kpt_shape=(17, 3),
        skeleton=COCO_PERSON,
        stride_px=32,
        image_size_px=imgsz,
    )
    return build_model(info.architecture).eval(), info


def drawn_images(folder: Path, imgsz: int) -> list[Path]:
    files = [folder / f"{index}.jpg" for index in range(24)]
    for index, path in enumerate(files):
        path.write_bytes(draw_image(0, "test", index, size_px=imgsz, max_persons=4).jpeg)
    return files


def predict(files: list[Path], predictor: Predictor, batch_size: int) -> int:
    """Returns the number of persons."""
    return sum(map(len, predictor.predict(files, batch_size=batch_size)))


def plain_script(files: list[Path], session: onnxruntime.InferenceSession, imgsz: int) -> int:
    """The same task in the fewest lines; returns as `predict` does."""
    persons = 0
    for path in files:
        image = cv2.imread(str(path))
        height, width = image.shape[:2]
        scale = imgsz / max(height, width)
        resized = cv2.resize(image, (round(width * scale), round(height * scale)))
        canvas = np.full((imgsz, imgsz, 3), 114, np.uint8)
        canvas[: resized.shape[0], : resized.shape[1]] = resized
        batch = np.ascontiguousarray(canvas[..., ::-1].transpose(2, 0, 1)[None], np.float32) / 255
        rows = session.run(None, {"images": batch})[0][0].T
        rows = rows[rows[:, 4] > CONFIDENCE]
        boxes = np.concatenate((rows[:, :2] - rows[:, 2:4] / 2, rows[:, 2:4]), axis=1)
        kept = cv2.dnn.NMSBoxes(boxes.tolist(), rows[:, 4].tolist(), CONFIDENCE, NMS_IOU)
        keypoints = [rows[i, 5:].reshape(-1, 3) / (scale, scale, 1) for i in kept]
        persons += len(keypoints)
    return persons


def best_rounds(ways: dict[str, Callable[[], int]], rounds: int) -> dict[str, tuple[float, int]]:
    """Returns of each way's fastest round: wall-clock seconds and persons."""
    best: dict[str, tuple[float, int]] = {}
    for round_number in range(rounds + 1):  # the first warms up
        for name, way in ways.items():
            start = time.perf_counter()
            persons = way()
            elapsed = time.perf_counter() - start
            if round_number and (name not in best or elapsed < best[name][0]):
                best[name] = (elapsed, persons)
    return best


def show(best: dict[str, tuple[float, int]], *, title: str, n_images: int) -> None:
    table = Table(title=title)
    for column in ("way, batch", "images/s", "x plain", "persons"):
        table.add_column(column, no_wrap=True, justify="left" if column == "way, batch" else "right")
    plain_seconds = next(iter(best.values()))[0]
    for name, (seconds, persons) in best.items():
        table.add_row(name, f"{n_images / seconds:.1f}", f"{plain_seconds / seconds:.2f}", str(persons))
    print_table(table)


if __name__ == "__main__":
    main()
