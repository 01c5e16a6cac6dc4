"""Decoded images are kept once, exactly, within the bound, and leave nothing behind."""

from concurrent.futures import ThreadPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest

from posefoundry.training.image_cache import ImageCache

RNG = np.random.default_rng(1)
IMAGES = [RNG.integers(0, 255, (20 + n, 32, 3), np.uint8) for n in range(8)]


@pytest.fixture(params=["memory", "disk"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path | None:
    return tmp_path / "cache" if request.param == "disk" else None


def test_returns_what_was_put(folder: Path | None) -> None:
    cache = ImageCache(len(IMAGES), 32, limit_bytes=1e6, folder=folder)
    assert cache.get(3) is None
    for index in (3, 0, 7):
        cache.put(index, IMAGES[index])
    for index in (3, 0, 7):
        np.testing.assert_array_equal(cache.get(index), IMAGES[index])
    assert cache.get(1) is None
    assert cache.bytes_kept == sum(IMAGES[index].nbytes for index in (3, 0, 7))


def test_keeps_the_bound(folder: Path | None) -> None:
    limit = sum(image.nbytes for image in IMAGES[:3])
    cache = ImageCache(len(IMAGES), 32, limit_bytes=limit, folder=folder)
    for index, image in enumerate(IMAGES):
        cache.put(index, image)
    assert [cache.get(index) is not None for index in range(len(IMAGES))] == [True] * 3 + [False] * 5
    assert cache.bytes_kept == limit


def test_keeps_the_bound_among_threads() -> None:
    images = [np.full((16, 16, 3), n, np.uint8) for n in range(64)]
    for _ in range(20):
        cache = ImageCache(len(images), 16, limit_bytes=images[0].nbytes * 40)
        with ThreadPoolExecutor(8) as threads:
            list(threads.map(cache.put, range(len(images)), images))
        kept = [cache.get(index) is not None for index in range(len(images))]
        assert cache.bytes_kept == sum(kept) * images[0].nbytes == cache.limit_bytes


def test_leaves_no_file_behind(tmp_path: Path) -> None:
    cache = ImageCache(len(IMAGES), 32, limit_bytes=1e6, folder=tmp_path / "cache")
    cache.put(0, IMAGES[0])
    assert not list((tmp_path / "cache").iterdir())


def test_an_image_too_large_for_its_slot_is_not_kept() -> None:
    cache = ImageCache(2, 32, limit_bytes=1e6)
    cache.put(0, np.full((33, 32, 3), 7, np.uint8))
    assert cache.get(0) is None
    assert cache.get(1) is None


def test_a_full_disk_ends_the_keeping_and_not_the_training(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    cache = ImageCache(len(IMAGES), 32, limit_bytes=1e6)

    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("posefoundry.training.image_cache.os.pwrite", full)
    cache.put(0, IMAGES[0])
    assert cache.get(0) is None
    assert "No space left on device" in capsys.readouterr().err


def test_processes_share_it() -> None:
    cache = ImageCache(len(IMAGES), 32, limit_bytes=1e6)
    process = get_context("spawn").Process(target=cache.put, args=(4, IMAGES[4]))
    process.start()
    process.join()
    assert process.exitcode == 0
    np.testing.assert_array_equal(cache.get(4), IMAGES[4])
