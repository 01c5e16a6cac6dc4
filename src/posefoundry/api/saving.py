"""What `predict(save=True, save_txt=True, ...)` leaves behind."""

from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Self

import cv2

from posefoundry.api.arguments import PredictArguments
from posefoundry.api.folders import results_folder
from posefoundry.api.results import Results, write_image
from posefoundry.datasets.yolo import IMAGE_SUFFIXES
from posefoundry.errors import PosefoundryError


class Saver(AbstractContextManager["Saver"]):
    """Writes drawn images and videos, labels and crops into one folder, as the arguments ask.

    Args:
        arguments: What to write.
        folder: Where; None if nothing is to be written.
    """

    def __init__(self, arguments: PredictArguments, folder: Path | None) -> None:
        self.arguments, self.folder = arguments, folder
        self._writer: cv2.VideoWriter | None = None
        self._video = ""
        self._taken: set[str] = set()
        self._frames = 0

    @classmethod
    def for_arguments(cls, arguments: PredictArguments) -> Self:
        """Makes the folder if anything is to be written."""
        wanted = arguments.save or arguments.save_txt or arguments.save_crop
        return cls(arguments, results_folder(arguments, "predict") if wanted else None)

    def keep(self, results: Results, fps: float | None) -> None:
        """Writes one image's part; `fps` is that of its video."""
        if self.folder is None:
            return
        results.save_dir = str(self.folder)
        if fps is None or results.path != self._video:
            self._close_video()
            name = self._name_for(results.path)
            self._frames, self._stem = 0, Path(name).stem
            if fps is not None:
                self._video = results.path
            elif self.arguments.save:
                write_image(self.folder / name, results.plot())
        stem = self._stem
        if fps is not None:
            self._frames += 1
            stem = f"{self._stem}_{self._frames}"
            if self.arguments.save:
                self._write_frame(results, fps)
        if self.arguments.save_txt:
            results.save_txt(self.folder / "labels" / f"{stem}.txt", self.arguments.save_conf)
        if self.arguments.save_crop:
            results.save_crop(self.folder / "crops", stem)

    def __exit__(self, *_: Any) -> None:
        self._close_video()

    def _name_for(self, path: str) -> str:
        """Returns a file name that is new in this folder, and of an image format."""
        name = Path(path.partition("?")[0]).name or "image"
        stem, suffix = Path(name).stem, Path(name).suffix.lower()
        suffix = suffix if suffix in IMAGE_SUFFIXES else ".jpg"
        candidate, number = f"{stem}{suffix}", 2
        while candidate in self._taken:
            candidate, number = f"{stem}_{number}{suffix}", number + 1
        self._taken.add(candidate)
        return candidate

    def _write_frame(self, results: Results, fps: float) -> None:
        assert self.folder is not None  # or nothing would be kept
        if self._writer is None:
            height, width = results.orig_shape
            path = self.folder / f"{self._stem}.mp4"
            self._writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"mp4v"), fps, (width, height))
            if not self._writer.isOpened():
                raise PosefoundryError(f"{path}: expected OpenCV to write a video there, but it could not.")
        self._writer.write(results.plot())

    def _close_video(self) -> None:
        self._video = ""
        if self._writer is not None:
            self._writer.release()
            self._writer = None
