"""`YOLO.predict`: from any source to results, one after the other."""

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, nullcontext
from typing import TYPE_CHECKING, Any

import numpy as np

from posefoundry.api.arguments import PredictArguments
from posefoundry.api.results import Results
from posefoundry.api.saving import Saver
from posefoundry.api.sources import Frame, Source, open_source, take
from posefoundry.errors import PosefoundryError
from posefoundry.evaluation.progress import progress_bar
from posefoundry.inference.predictor import Predictor
from posefoundry.inference.results import PoseResult

if TYPE_CHECKING:
    from posefoundry.api.yolo import YOLO


def predict(
    yolo: "YOLO",
    source: Any,
    arguments: PredictArguments,
    *,
    stream: bool,
    on_fault: Callable[[PosefoundryError], None] | None = None,
) -> Iterator[Results]:
    """See `YOLO.predict`. The source and the model are opened at once, images are read as results are asked for.

    `on_fault` hears of each image that is left out, which is named on stderr.
    """
    opened = open_source(source, vid_stride=arguments.vid_stride)
    if opened.endless and not stream:
        raise PosefoundryError("predict: a camera or live address never ends; ask for its results with stream=True.")
    predictor = yolo.predictor(
        arguments.device,
        arguments.half,
        arguments.end2end,
        image_size_px=arguments.imgsz,
        confidence=arguments.conf,
        nms_iou=arguments.iou,
        max_detections=arguments.max_det,
    )
    return _results(yolo, predictor, opened, arguments, on_fault)


def _results(
    yolo: "YOLO",
    predictor: Predictor,
    source: Source,
    arguments: PredictArguments,
    on_fault: Callable[[PosefoundryError], None] | None,
) -> Iterator[Results]:
    names, info = yolo.names, yolo.details
    done = 0
    with ExitStack() as stack:
        saver = stack.enter_context(Saver.for_arguments(arguments))
        shows_progress = arguments.verbose and source.many and source.count is not None
        progress = stack.enter_context(progress_bar("predict") if shows_progress else nullcontext())
        for frames in take(_readable(source, on_fault), 1 if source.endless else arguments.batch):
            found = predictor.predict([frame.image_bgr for frame in frames], batch_size=arguments.batch)
            for frame, result in zip(frames, found, strict=True):
                kept = _of_classes(result, arguments.classes)
                results = Results.of(kept, frame.image_bgr, frame.path, names, info.skeleton, info.kpt_shape[1])
                saver.keep(results, frame.fps)
                if arguments.show:
                    results.show()
                done += 1
                if progress is not None:
                    progress(done, source.count or done)
                yield results


def _readable(source: Source, on_fault: Callable[[PosefoundryError], None] | None) -> Iterator[Frame]:
    """Yields the frames; names the faults on stderr. A source of which nothing can be read is a fault itself."""
    faults: list[PosefoundryError] = []
    any_frame = False
    for item in source.items:
        if isinstance(item, Frame):
            any_frame = True
            yield item
            continue
        if not source.many:
            raise item
        faults.append(item)
        print(f"Skipped {item}", file=sys.stderr)
        if on_fault is not None:
            on_fault(item)
    if faults and not any_frame:
        raise PosefoundryError(f"Nothing in the source can be read; {len(faults)} faults, the first: {faults[0]}")


def _of_classes(result: PoseResult, classes: list[int] | int | None) -> PoseResult:
    if classes is None:
        return result
    kept = np.isin(result.class_ids, classes)
    return PoseResult(
        boxes_xyxy=result.boxes_xyxy[kept],
        scores=result.scores[kept],
        class_ids=result.class_ids[kept],
        keypoints_xyv=result.keypoints_xyv[kept],
        image_size_hw=result.image_size_hw,
        path=result.path,
        speed_ms=result.speed_ms,
    )
