"""The worst and the best images, ground truth next to prediction, for eyes to judge what numbers cannot say."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from posefoundry.evaluation.matching import SEEN_CONFIDENCE, Match
from posefoundry.inference.drawing import draw_poses
from posefoundry.inference.images import read_image_bgr
from posefoundry.inference.results import PoseResult
from posefoundry.skeleton import Skeleton

PANEL_MIN_PX, PANEL_MAX_PX = 480, 720  # long side: small images are enlarged, so that skeletons can be told apart
GAP_PX, CAPTION_PX, LABEL_PX = 8, 58, 85
INK, PAPER, GREY, PALE = (40, 40, 40), (255, 255, 255), (150, 150, 150), (215, 215, 215)
FONT = cv2.FONT_HERSHEY_SIMPLEX


def draw_overlays(
    folder: Path,
    image_paths: dict[int, Path],
    annotations: Sequence[dict[str, Any]],
    detections: Sequence[dict[str, Any]],
    matches: Sequence[Match],
    rows: Sequence[Mapping[str, Any]],
    skeleton: Skeleton,
    count: int,
) -> list[Path]:
    """Writes `worst_<rank>_<image>.jpg` and `best_<rank>_<image>.jpg`.

    Images are ranked by their score, see `ImageScores`; those without one are left out. The ground truth shows each
    person with its OKS, and pale who need not be found: crowds and persons without keypoints. The prediction shows the
    detections with a score of .25 or more, the same that the OKS is of.

    Args:
        folder: Where to; created if missing.
        image_paths: Path of each image, by image id.
        annotations: The ground truth.
        detections: COCO results.
        matches: Who was found.
        rows: Entries of images.json.
        skeleton: The keypoint schema.
        count: Images in all: half of them the worst, half the best.
    """
    folder.mkdir(parents=True, exist_ok=True)
    row_of = {row["image_id"]: row for row in rows if row["score"] is not None}
    ranked = sorted(row_of, key=lambda image_id: (row_of[image_id]["score"], image_paths[image_id].name))
    n_best = min(count, len(ranked)) // 2
    n_worst = min(count, len(ranked)) - n_best
    chosen = [("worst", rank, image_id) for rank, image_id in enumerate(ranked[:n_worst], 1)]
    chosen += [("best", rank, image_id) for rank, image_id in enumerate(ranked[::-1][:n_best], 1)]
    matches_of, truth_of, found_of = _by_image(matches), _by_image(annotations), _by_image(detections)
    written = []
    for kind, rank, image_id in chosen:
        source = image_paths[image_id]
        picture = _overlay(
            read_image_bgr(source),
            truth_of[image_id],
            found_of[image_id],
            matches_of[image_id],
            skeleton,
            f"{kind} {rank}: {source.name}",
            row_of[image_id],
        )
        path = folder / f"{kind}_{rank:02}_{source.stem}.jpg"
        path.write_bytes(cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, 90])[1].tobytes())
        written.append(path)
    return written


def _by_image(entries: Sequence[Any]) -> dict[int, list[Any]]:
    found: dict[int, list[Any]] = defaultdict(list)
    for entry in entries:
        found[(entry.annotation if isinstance(entry, Match) else entry)["image_id"]].append(entry)
    return found


def _overlay(
    image_bgr: np.ndarray,
    annotations: list[dict[str, Any]],
    detections: list[dict[str, Any]],
    matches: list[Match],
    skeleton: Skeleton,
    title: str,
    row: Mapping[str, Any],
) -> np.ndarray:
    """Puts both panels side by side under a caption."""
    height, width = image_bgr.shape[:2]
    scale = float(np.clip(max(height, width), PANEL_MIN_PX, PANEL_MAX_PX)) / max(height, width)
    interpolation = cv2.INTER_CUBIC if scale > 1 else cv2.INTER_AREA
    image = cv2.resize(image_bgr, (round(width * scale), round(height * scale)), interpolation=interpolation)
    seen = [detection for detection in detections if detection["score"] >= SEEN_CONFIDENCE]
    prediction = draw_poses(image, _result(seen, scale, image.shape[:2]), skeleton)
    truth = _draw_truth(image, annotations, matches, skeleton, scale)
    gap = np.full((image.shape[0], GAP_PX, 3), PAPER, np.uint8)
    panels = np.hstack((truth, gap, prediction))
    caption = np.full((CAPTION_PX, panels.shape[1], 3), PAPER, np.uint8)
    mean_oks = "" if row["mean_oks"] is None else f"mean OKS {row['mean_oks']:.2f}; "
    found = f"{row['found']} of {row['persons']} found (OKS .50)"
    numbers = f"{mean_oks}{found}, {row['false_positives']} false positives"
    _write(caption, title, (8, 22), 0.55, INK)
    _write(caption, numbers, (image.shape[1] + GAP_PX + 8, 22), 0.55, INK)
    _write(caption, "ground truth, with each person's OKS", (8, 46), 0.45, GREY)
    _write(caption, "prediction, with scores from .25", (image.shape[1] + GAP_PX + 8, 46), 0.45, GREY)
    return np.vstack((caption, panels))


def _draw_truth(
    image: np.ndarray, annotations: list[dict[str, Any]], matches: list[Match], skeleton: Skeleton, scale: float
) -> np.ndarray:
    persons = [match.annotation for match in matches]
    canvas = image.copy()
    for annotation in annotations:
        if not any(annotation is person for person in persons):
            x, y, width, height = (round(value * scale) for value in annotation["bbox"])
            reason = "crowd" if annotation.get("iscrowd") else "no keypoints"
            for colour, thickness in ((INK, 3), (PALE, 1)):
                cv2.rectangle(canvas, (x, y), (x + width, y + height), colour, thickness, cv2.LINE_AA)
                if width > LABEL_PX:
                    _write(canvas, reason, (x + 4, y + 14), 0.4, colour, thickness)
    # The tag that shows a detection's score shows a person's OKS here.
    shown = [{**match.annotation, "score": match.oks} for match in matches]
    return draw_poses(canvas, _result(shown, scale, image.shape[:2]), skeleton)


def _result(entries: list[dict[str, Any]], scale: float, size_hw: tuple[int, ...]) -> PoseResult:
    """Turns COCO entries, annotations or detections, into what `draw_poses` draws on the scaled image."""
    boxes = np.array([entry["bbox"] for entry in entries], np.float32).reshape(-1, 4) * scale
    boxes[:, 2:] += boxes[:, :2]
    n_numbers = len(entries[0]["keypoints"]) if entries else 3
    keypoints = np.array([entry["keypoints"] for entry in entries], np.float32).reshape(-1, n_numbers // 3, 3)
    keypoints[..., :2] *= scale
    return PoseResult(
        boxes_xyxy=boxes,
        scores=np.array([entry["score"] for entry in entries], np.float32),
        class_ids=np.zeros(len(entries), np.int64),
        keypoints_xyv=keypoints,
        image_size_hw=(size_hw[0], size_hw[1]),
        path=None,
        speed_ms={},
    )


def _write(
    canvas: np.ndarray,
    text: str,
    origin: tuple[int, int],
    size: float,
    colour: tuple[int, int, int],
    thickness: int = 1,
) -> None:
    cv2.putText(canvas, text, origin, FONT, size, colour, thickness, cv2.LINE_AA)
