"""Decoded images, kept once for all processes that prepare batches, in memory or in a file, within a bound.

The images lie in one memory-mapped file without a name (in memory: a memfd), which is gone when the last process that
has it open ends, however it ends. A loader's worker maps the same pages and copies nothing. Each image has a slot as
large as the largest image can be; the file is sparse, so what a smaller image leaves free is never taken.
"""

import fcntl
import mmap
import os
import struct
import sys
import tempfile
import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import reduction
from pathlib import Path
from typing import Any

import numpy as np

TAKEN = struct.Struct("=Q")  # bytes kept so far, at the file's beginning
SIZE = struct.Struct("=II")  # height and width of each image after that; 0, 0 where it is not kept
AMONG_THREADS = threading.Lock()  # the lock of a file holds between processes alone


class ImageCache:
    """Keeps uint8 BGR images (H, W, 3) by number; whichever process reads one first keeps it for all.

    Args:
        n_images: How many there are.
        side_px: No image is longer on either side.
        limit_bytes: Most that all processes with this cache keep together.
        folder: Where the file lies; None keeps it in memory.
    """

    def __init__(self, n_images: int, side_px: int, limit_bytes: float, folder: Path | None = None) -> None:
        self.limit_bytes, self._slot_bytes = int(limit_bytes), side_px * side_px * 3
        header_bytes = TAKEN.size + n_images * SIZE.size
        self._slots_start = -(-header_bytes // mmap.PAGESIZE) * mmap.PAGESIZE
        self._file = _nameless_file(folder)
        os.truncate(self._file, self._slots_start + n_images * self._slot_bytes)
        self._open()

    def _open(self) -> None:
        # Written by system calls alone: a full disk is then an error that can be met, and not a SIGBUS.
        self._mapped = mmap.mmap(self._file, 0, access=mmap.ACCESS_READ)
        weakref.finalize(self, os.close, self._file)

    def __getstate__(self) -> dict[str, Any]:
        """Hands the open file to a process that is being started."""
        state = {name: value for name, value in self.__dict__.items() if name != "_mapped"}
        return state | {"_file": reduction.DupFd(self._file)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__ |= state | {"_file": state["_file"].detach()}
        self._open()

    @property
    def bytes_kept(self) -> int:
        """Bytes of all images kept."""
        return TAKEN.unpack_from(self._mapped)[0]

    def get(self, index: int) -> np.ndarray | None:
        """Returns an image, read-only, or None where it is not kept."""
        height, width = SIZE.unpack_from(self._mapped, self._size_at(index))
        if height == 0:
            return None
        image = np.frombuffer(self._mapped, np.uint8, height * width * 3, self._slot_at(index))
        return image.reshape(height, width, 3)

    def put(self, index: int, image: np.ndarray) -> None:
        """Keeps an image where there is room; two processes that put the same one write the same bytes."""
        if image.nbytes > self._slot_bytes or self.bytes_kept + image.nbytes > self.limit_bytes:
            return
        try:
            with self._locked():
                taken = self.bytes_kept + image.nbytes
                if taken > self.limit_bytes:
                    return
                os.pwrite(self._file, TAKEN.pack(taken), 0)
            if os.pwrite(self._file, np.ascontiguousarray(image).data, self._slot_at(index)) == image.nbytes:
                # Last and in one piece: by its size a reader knows that an image is there.
                os.pwrite(self._file, SIZE.pack(*image.shape[:2]), self._size_at(index))
        except OSError as error:
            is_news, self.limit_bytes = self.limit_bytes > 0, 0
            if is_news:  # another thread may have met it first
                print(
                    f"The image cache is full; further images are read from disk each time: {error}.", file=sys.stderr
                )

    @contextmanager
    def _locked(self) -> Iterator[None]:
        with AMONG_THREADS:
            fcntl.lockf(self._file, fcntl.LOCK_EX)
            try:
                yield
            finally:
                fcntl.lockf(self._file, fcntl.LOCK_UN)

    def _size_at(self, index: int) -> int:
        return TAKEN.size + index * SIZE.size

    def _slot_at(self, index: int) -> int:
        return self._slots_start + index * self._slot_bytes


def _nameless_file(folder: Path | None) -> int:
    if folder is None and hasattr(os, "memfd_create"):
        return os.memfd_create("posefoundry images")
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=folder) as file:
        return os.dup(file.fileno())
