"""What was found in one image, in the form that people of YOLO know: `Results`, `Boxes`, `Keypoints`."""

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from posefoundry.errors import PosefoundryError
from posefoundry.inference.results import PoseResult
from posefoundry.skeleton import Skeleton

if TYPE_CHECKING:
    import pandas
    from PIL import Image

Index = int | slice | list[int] | Tensor | np.ndarray
VISIBLE_CONFIDENCE = 0.5  # below, a keypoint is not drawn and counts as not visible


class _Rows:
    """N rows, one a person, in a tensor or (after `numpy()`) an array."""

    def __init__(self, data: Any, orig_shape: tuple[int, int]) -> None:
        self.data, self.orig_shape = data, orig_shape

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: Index) -> Any:
        rows = self.data[index]
        return type(self)(rows[None] if isinstance(index, int) else rows, self.orig_shape)

    def __iter__(self) -> Iterator[Any]:
        return (self[row] for row in range(len(self)))

    def __repr__(self) -> str:
        return f"{type(self).__name__}(shape={tuple(self.data.shape)}, orig_shape={self.orig_shape})"

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of `data`."""
        return tuple(self.data.shape)

    def to(self, *args: Any, **kwargs: Any) -> Any:
        """Moves or casts as `torch.Tensor.to`."""
        return type(self)(self.data.to(*args, **kwargs), self.orig_shape)

    def cpu(self) -> Any:
        """Moves to main memory."""
        return self.to("cpu")

    def cuda(self) -> Any:
        """Moves to the GPU."""
        return self.to("cuda")

    def numpy(self) -> Any:
        """Returns the same with arrays in place of tensors."""
        return type(self)(as_array(self.data), self.orig_shape)


class Boxes(_Rows):
    """N boxes.

    Attributes:
        data: (N, 6) float32: left, top, right, bottom in px of the source image, score, class.
        orig_shape: Height and width of the source image.
    """

    id = None  # persons are not followed from frame to frame
    is_track = False

    @property
    def xyxy(self) -> Any:
        """(N, 4) left, top, right, bottom in px."""
        return self.data[:, :4]

    @property
    def xywh(self) -> Any:
        """(N, 4) centre x, centre y, width, height in px."""
        corners = self.xyxy
        parts = ((corners[:, :2] + corners[:, 2:]) / 2, corners[:, 2:] - corners[:, :2])
        return torch.cat(parts, dim=1) if isinstance(corners, Tensor) else np.concatenate(parts, axis=1)

    @property
    def xyxyn(self) -> Any:
        """(N, 4) corners as fractions of the image."""
        return self.xyxy / _size_whwh(self.data, self.orig_shape)

    @property
    def xywhn(self) -> Any:
        """(N, 4) centre and size as fractions of the image."""
        return self.xywh / _size_whwh(self.data, self.orig_shape)

    @property
    def conf(self) -> Any:
        """(N,) scores in 0..1, best first."""
        return self.data[:, 4]

    @property
    def cls(self) -> Any:
        """(N,) class indices, as float32."""
        return self.data[:, 5]


class Keypoints(_Rows):
    """K keypoints of each of N persons.

    Attributes:
        data: (N, K, 3) float32: x, y in px of the source image, confidence; (N, K, 2) for models without visibility.
        orig_shape: Height and width of the source image.
    """

    @property
    def xy(self) -> Any:
        """(N, K, 2) in px."""
        return self.data[..., :2]

    @property
    def xyn(self) -> Any:
        """(N, K, 2) as fractions of the image."""
        return self.xy / _size_whwh(self.data, self.orig_shape)[:2]

    @property
    def conf(self) -> Any:
        """(N, K) in 0..1; None for models without visibility."""
        return self.data[..., 2] if self.has_visible else None

    @property
    def has_visible(self) -> bool:
        """Whether the model tells how sure it is that a keypoint can be seen."""
        return self.data.shape[-1] == 3


class Results:
    """The persons found in one image, best score first.

    Attributes:
        orig_img: (H, W, 3) uint8 BGR, the source image.
        orig_shape: Its height and width.
        path: Where it came from: a file, a URL, or `image3.jpg` for the fourth image in memory.
        names: Class index -> name.
        boxes: Where the N persons are.
        keypoints: Where their keypoints are.
        speed: ms for `preprocess`, `inference`, `postprocess`.
        save_dir: Where `predict(save=True)` wrote.
    """

    masks = probs = obb = None  # of other tasks

    def __init__(
        self,
        orig_img: np.ndarray,
        path: str,
        names: dict[int, str],
        boxes: Boxes,
        keypoints: Keypoints,
        skeleton: Skeleton,
        speed: dict[str, float],
    ) -> None:
        self.orig_img, self.path, self.names, self.speed = orig_img, path, names, speed
        self.orig_shape = boxes.orig_shape
        self.boxes, self.keypoints, self.skeleton = boxes, keypoints, skeleton
        self.save_dir: str | None = None

    @classmethod
    def of(
        cls, found: PoseResult, orig_img: np.ndarray, path: str, names: dict[int, str], skeleton: Skeleton, values: int
    ) -> "Results":
        """Wraps what a Predictor found; `values` is what the model gives a keypoint, 2 or 3."""
        columns = (found.boxes_xyxy, found.scores[:, None], found.class_ids[:, None])
        data = torch.from_numpy(np.concatenate(columns, axis=1).astype(np.float32))
        keypoints = torch.from_numpy(np.ascontiguousarray(found.keypoints_xyv[..., :values], np.float32))
        size = found.image_size_hw
        return cls(orig_img, path, names, Boxes(data, size), Keypoints(keypoints, size), skeleton, found.speed_ms)

    def __len__(self) -> int:
        return len(self.boxes)

    def __getitem__(self, index: Index) -> "Results":
        return self._with(self.boxes[index], self.keypoints[index])

    def __iter__(self) -> Iterator["Results"]:
        return (self[row] for row in range(len(self)))

    def __repr__(self) -> str:
        return f"Results({self.path!r}, {self.verbose() or 'nobody'})"

    def verbose(self) -> str:
        """Returns what was found in words: `2 persons, 1 dog`."""
        counts = Counter(int(class_id) for class_id in self.boxes.cls)
        return ", ".join(f"{count} {self.names[i]}{'s' * (count > 1)}" for i, count in counts.items())

    def plot(self, *, img: np.ndarray | None = None, pil: bool = False, conf: float = VISIBLE_CONFIDENCE) -> Any:
        """Draws the persons.

        Args:
            img: Another image of the same size to draw on; stays as it is.
            pil: Returns a PIL image instead of an array.
            conf: Keypoints less certain than this, and their limbs, are left out.

        Returns:
            (H, W, 3) uint8 BGR, or an RGB `PIL.Image`.
        """
        from posefoundry.inference.drawing import draw_poses

        canvas = self.orig_img if img is None else img
        drawn = draw_poses(canvas, self._as_found(), self.skeleton, min_keypoint_confidence=conf)
        return _to_pil(drawn) if pil else drawn

    def show(self) -> None:
        """Opens the drawn image in the system's viewer; without one, writes it to a file and says where."""
        from PIL import ImageShow

        image = self.plot(pil=True)
        if not ImageShow.show(image, Path(self.path).name):
            import tempfile

            with tempfile.NamedTemporaryFile(suffix=".png", delete=False) as file:
                image.save(file, "PNG")
            print(f"Found no viewer to show {Path(self.path).name}; the drawn image is {file.name}")

    def save(self, filename: str | Path | None = None) -> str:
        """Writes the drawn image, by default as `results_<name>.jpg` in the current folder, and returns where.

        Raises:
            PosefoundryError: No image can be written there.
        """
        target = Path(filename) if filename is not None else Path(f"results_{Path(self.path).stem or 'image'}.jpg")
        write_image(target, self.plot())
        return str(target)

    def save_txt(self, txt_file: str | Path, save_conf: bool = False) -> str:
        """Adds the persons to a text file as YOLO pose labels: class, box, keypoints, all as fractions of the image.

        A keypoint's third number is its confidence. `save_conf` adds the person's score.
        """
        lines = []
        for cls, box, points, score in zip(
            self.boxes.cls.tolist(), self.boxes.xywhn.tolist(), self._keypoints_n().tolist(), self.boxes.conf.tolist(),
            strict=True,
        ):  # fmt: skip
            numbers = [*box, *(value for point in points for value in point), *([score] if save_conf else [])]
            lines.append(" ".join([str(int(cls)), *(f"{number:.6g}" for number in numbers)]) + "\n")
        path = Path(txt_file)
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8") as file:
            file.writelines(lines)
        return str(path)

    def save_crop(self, save_dir: str | Path, file_name: str | None = None) -> None:
        """Writes each person's part of the source image into `save_dir/<class>/`."""
        stem = file_name or Path(self.path).stem
        for number, (box, cls) in enumerate(zip(self.boxes.xyxy.tolist(), self.boxes.cls.tolist(), strict=True)):
            left, top, right, bottom = (round(value) for value in box)
            crop = self.orig_img[top : max(bottom, top + 1), left : max(right, left + 1)]
            if crop.size:
                write_image(Path(save_dir) / self.names[int(cls)] / f"{stem}_{number}.jpg", crop)

    def summary(self, normalize: bool = False, decimals: int = 5) -> list[dict[str, Any]]:
        """Returns plain values, a dict a person: name, class, confidence, box, keypoints.

        Args:
            normalize: Coordinates as fractions of the image instead of px.
            decimals: Digits kept.
        """
        boxes = self.boxes.xyxyn if normalize else self.boxes.xyxy
        points = self.keypoints.xyn if normalize else self.keypoints.xy
        persons = []
        for row in range(len(self)):
            class_id = int(self.boxes.cls[row])
            corners = zip(("x1", "y1", "x2", "y2"), boxes[row].tolist(), strict=True)
            keypoints = {"x": points[row, :, 0].tolist(), "y": points[row, :, 1].tolist()}
            if self.keypoints.conf is not None:
                keypoints["visible"] = self.keypoints.conf[row].tolist()
            persons.append(
                {
                    "name": self.names[class_id],
                    "class": class_id,
                    "confidence": round(float(self.boxes.conf[row]), decimals),
                    "box": {corner: round(value, decimals) for corner, value in corners},
                    "keypoints": {key: [round(v, decimals) for v in values] for key, values in keypoints.items()},
                }
            )
        return persons

    def to_json(self, normalize: bool = False, decimals: int = 5) -> str:
        """Returns `summary` as JSON."""
        return json.dumps(self.summary(normalize, decimals), indent=2)

    def to_df(self, normalize: bool = False, decimals: int = 5) -> "pandas.DataFrame":
        """Returns `summary` as a table, a row a person."""
        import pandas

        return pandas.DataFrame(self.summary(normalize, decimals))

    def to_csv(self, normalize: bool = False, decimals: int = 5) -> str:
        """Returns `summary` as CSV."""
        return self.to_df(normalize, decimals).to_csv(index=False)

    def cpu(self) -> "Results":
        """Moves boxes and keypoints to main memory."""
        return self._with(self.boxes.cpu(), self.keypoints.cpu())

    def numpy(self) -> "Results":
        """Returns the same with arrays in place of tensors."""
        return self._with(self.boxes.numpy(), self.keypoints.numpy())

    def _with(self, boxes: Boxes, keypoints: Keypoints) -> "Results":
        other = Results(self.orig_img, self.path, self.names, boxes, keypoints, self.skeleton, self.speed)
        other.save_dir = self.save_dir
        return other

    def _keypoints_n(self) -> np.ndarray:
        values = as_array(self.keypoints.data).copy()
        values[..., :2] = as_array(self.keypoints.xyn)
        return values

    def _as_found(self) -> PoseResult:
        data, keypoints = as_array(self.boxes.data), as_array(self.keypoints.data)
        if not self.keypoints.has_visible:
            keypoints = np.concatenate((keypoints, np.ones_like(keypoints[..., :1])), axis=-1)
        return PoseResult(data[:, :4], data[:, 4], data[:, 5].astype(np.int64), keypoints, self.orig_shape, None, {})


def write_image(path: Path, image_bgr: np.ndarray) -> None:
    """Writes an image in the format of its suffix, and the folders above it.

    Raises:
        PosefoundryError: The suffix is no image format, or the image cannot be written.
    """
    import cv2

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        written = cv2.imwrite(str(path), image_bgr)
    except (cv2.error, OSError) as error:
        raise PosefoundryError(f"{path}: expected to write an image there, got: {error}.") from None
    if not written:
        raise PosefoundryError(
            f"{path}: expected to write an image there, but could not. Is it too large for its format?"
        )


def _to_pil(image_bgr: np.ndarray) -> "Image.Image":
    from PIL import Image

    return Image.fromarray(np.ascontiguousarray(image_bgr[..., ::-1]))


def as_array(data: Tensor | np.ndarray) -> np.ndarray:
    """Returns a tensor's values, or the array itself."""
    return data.detach().cpu().numpy() if isinstance(data, Tensor) else data


def _size_whwh(like: Any, size_hw: tuple[int, int]) -> Any:
    height, width = size_hw
    size = (width, height, width, height)
    return like.new_tensor(size) if isinstance(like, Tensor) else np.array(size, like.dtype)
