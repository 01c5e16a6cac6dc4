"""`posefoundry evaluate`: judges anybody's COCO results file by the code that the pipeline judges its own models by."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

from pydantic import ValidationError

from posefoundry.commands.words import arguments_of, refuse_others, required
from posefoundry.config import Evaluate
from posefoundry.datasets.tags import read_tags
from posefoundry.errors import PosefoundryError
from posefoundry.evaluation import passport
from posefoundry.evaluation.error_types import diagnose
from posefoundry.evaluation.fast_oks import MAX_BOXES_PER_IMAGE, MAX_POSES_PER_IMAGE
from posefoundry.evaluation.ground_truth import AREA_RULES, AreaRule, read_detections, require_coco_form
from posefoundry.evaluation.matching import SEEN_CONFIDENCE, match_persons
from posefoundry.evaluation.oks import Evaluation, Metrics, OksEvaluator
from posefoundry.evaluation.pck import Placement, check_reference, place, placement_figures
from posefoundry.evaluation.sigma_choice import choose_sigmas
from posefoundry.evaluation.slice_table import slice_rows
from posefoundry.evaluation.slices import ALL, tag_columns
from posefoundry.evaluation.summary import summary
from posefoundry.evaluation.warnings import flat_sigma_warning, is_flat, unseen_warning
from posefoundry.files import read_json, sha256_of_file, write_json_atomic
from posefoundry.params import describe_validation_error

PCK_KEYS = ("pck_thresholds", "pck_reference", "pckh_threshold")
KEYS = ("json", "sigmas", "area", "slices", "tags", "seen", *PCK_KEYS)
COLUMNS = ("all", ".50", ".75", "small", "medium", "large")
TABLE = {
    "OKS AP": ("oks_ap", "oks_ap50", "oks_ap75", None, "oks_ap_m", "oks_ap_l"),
    "OKS AR": ("oks_ar", "oks_ar50", "oks_ar75", None, "oks_ar_m", "oks_ar_l"),
    "box AP": ("box_ap", "box_ap50", "box_ap75", "box_ap_s", "box_ap_m", "box_ap_l"),
}
SLICE_FIGURES = ("oks_ap", "oks_ap50", "oks_ap75", "oks_ar")


def evaluate(words: list[str]) -> None:
    """Compares detections with annotations; prints the figures and writes them, if asked, as JSON."""
    arguments = arguments_of("evaluate", words)
    annotations = Path(required("evaluate", arguments, "annotations", "person_keypoints_val2017.json"))
    detections = Path(required("evaluate", arguments, "detections", "results.json"))
    refuse_others("evaluate", arguments, ("annotations", "detections", *KEYS))
    area_rule = _area_rule(arguments.get("area", "annotation"))
    out = _output(arguments, annotations, detections)
    with_slices, crossed = _slices(arguments)
    min_score, settings = _min_score(arguments.get("seen", SEEN_CONFIDENCE)), _pck_settings(arguments)

    content = read_json(annotations)
    require_coco_form(content, str(annotations))
    sigmas = choose_sigmas(content, arguments.get("sigmas"), str(annotations))
    evaluator = OksEvaluator(
        content,
        sigmas=sigmas.values,
        area_rule=area_rule,
        tags=_tags(Path(arguments["tags"]), content["images"]) if "tags" in arguments else None,
        crossed=crossed,
        where=str(annotations),
    )
    check_reference(settings.pck_reference, evaluator.keypoint_names)
    results = read_json(detections)
    found = read_detections(results, evaluator.truth, str(detections))
    evaluation = evaluator.evaluate_arrays(found)
    placement = place(evaluation, evaluator.keypoint_names, settings.pck_reference, min_score)
    everybody = evaluation.slicer.population(ALL)
    metrics = evaluation.metrics | placement_figures(placement, everybody, evaluator.truth.image, settings)
    errors = diagnose(evaluation, evaluator.keypoint_names, min_score)
    slices = slice_rows(evaluation, placement, settings) if with_slices else None
    warnings = _warnings(evaluator, evaluation, results, placement, min_score)

    counts = {
        "images": len(evaluator.images),
        "persons": len(evaluator.persons),
        "detections": len(results),
        "images_with_detections": len(set(found.image.tolist())),
    }
    _print_figures(evaluation.metrics, counts, found.have_boxes)
    print()
    for line in summary(metrics, slices or [], errors, settings.pck_reference):
        print(f"{line[0].upper()}{line[1:]}.")
    if slices:
        _print_slices(slices)
    print(f"\nArea: {AREA_RULES[area_rule]}.")
    print(f"Sigmas: {sigmas.origin}.")
    for sentence in warnings:
        print(f"Warning: {sentence}")
    if out:
        files = {"annotations_sha256": sha256_of_file(annotations), "detections_sha256": sha256_of_file(detections)}
        report = {
            **metrics,
            **counts,
            "errors": errors,
            **({"slices": slices} if slices is not None else {}),
            "warnings": warnings,
            "passport": files | _rules(evaluator, area_rule, settings, min_score),
        }
        _write(out, report)


def _rules(evaluator: OksEvaluator, area_rule: AreaRule, settings: Evaluate, min_score: float) -> dict[str, Any]:
    """Returns what the passport says of how the figures were measured."""
    return {
        "area_rule": AREA_RULES[area_rule],
        "areas_from_box": evaluator.truth.areas_from_box,
        "sigmas": evaluator.sigmas.tolist(),
        "pck_reference": settings.pck_reference,
        "pck_min_score": min_score,
        "max_poses_per_image": MAX_POSES_PER_IMAGE,
        "max_boxes_per_image": MAX_BOXES_PER_IMAGE,
        "versions": passport.software_versions(),
    }


def _area_rule(given: Any) -> AreaRule:
    for rule in get_args(AreaRule):
        if given == rule:
            return rule
    raise PosefoundryError(f"evaluate: area: expected one of {', '.join(get_args(AreaRule))}, got {given!r}.")


def _min_score(given: Any) -> float:
    if isinstance(given, bool) or not isinstance(given, int | float) or not abs(given) < math.inf:
        raise PosefoundryError(
            f"evaluate: seen: expected a number, the score from which on a detection counts for PCK, got {given!r}."
        )
    return given


def _pck_settings(arguments: dict[str, Any]) -> Evaluate:
    try:
        return Evaluate.model_validate({key: arguments[key] for key in PCK_KEYS if key in arguments})
    except ValidationError as error:
        raise PosefoundryError(f"evaluate: {describe_validation_error(error, Evaluate)}") from None


def _output(arguments: dict[str, Any], *inputs: Path) -> Path | None:
    if "json" not in arguments:
        return None
    out = Path(arguments["json"])
    if out.is_dir() or not out.name:
        raise PosefoundryError(f"evaluate: json: expected a file to write, got the folder {out}/. Say json=out.json.")
    if any(path.exists() and out.exists() and path.samefile(out) for path in inputs):
        raise PosefoundryError(f"evaluate: json: expected another file than the inputs, got {out}.")
    return out


def _write(out: Path, report: dict[str, Any]) -> None:
    try:
        write_json_atomic(out, report)
    except OSError as error:
        raise PosefoundryError(
            f"evaluate: json: expected a file that can be written, got {out}: {error.strerror}. Nothing was written."
        ) from None
    print(out)


def _slices(arguments: dict[str, Any]) -> tuple[bool, tuple[str, ...]]:
    """Returns whether slices are asked for, and which crossed ones."""
    given = arguments.get("slices", "tags" in arguments)
    if isinstance(given, bool):
        return given, ()
    crossed = given if isinstance(given, list) else [given]
    if crossed and all(isinstance(name, str) for name in crossed):
        return True, tuple(crossed)
    raise PosefoundryError(
        f"evaluate: slices: expected true, false, or crossed slices such as 'keypoint&size', got {given!r}."
    )


def _tags(path: Path, images: list[dict[str, Any]]) -> dict[str, list[str | None]]:
    for number, image in enumerate(images):
        if not isinstance(image.get("file_name"), str):
            raise PosefoundryError(
                f"evaluate: tags: expected images with a 'file_name', by which {path} names them, got none in "
                f"images[{number}] of the annotations."
            )
    names = [image["file_name"] for image in images]
    return tag_columns(read_tags(path, where="evaluate: tags", file_names=names), names)


def _warnings(
    evaluator: OksEvaluator,
    evaluation: Evaluation,
    results: list[dict[str, Any]],
    placement: Placement,
    min_score: float,
) -> list[str]:
    warnings = []
    truth = evaluator.truth
    if not evaluator.persons:
        warnings.append(
            "There is nobody to find: the annotations hold no person with labelled keypoints, crowds aside."
        )
    elif not results:
        warnings.append(
            "There is not a single detection. If the model did find somebody, this is not its results file."
        )
    if truth.areas_from_box:
        warnings.append(
            f"The area of {truth.areas_from_box} of {len(truth.areas)} annotations was computed from the box. Compare "
            "these figures only with others by the same rule."
        )
    sigmas = evaluator.sigmas.tolist()
    if is_flat(sigmas):  # whom each detection is matched with takes a while to find out
        matches = match_persons(evaluator, evaluation, results, min_score)
        flat = flat_sigma_warning(sigmas, evaluation.metrics["oks_ap"], matches)
        warnings += [flat] if flat else []
    unseen = unseen_warning(evaluation, placement.is_found, min_score)
    return warnings + ([unseen] if unseen else [])


def _print_figures(metrics: Metrics, counts: dict[str, int], have_boxes: bool) -> None:
    print(
        f"{counts['images']:,} images, {counts['persons']:,} persons; {counts['detections']:,} detections in "
        f"{counts['images_with_detections']:,} images"
    )
    print(f"{'':8}" + "".join(f"{column:>9}" for column in COLUMNS))
    for name, keys in TABLE.items():
        print(f"{name:8}" + "".join(f"{'' if key is None else _figure(metrics[key]):>9}" for key in keys))
    if not have_boxes:
        print("The detections have no boxes, so there is no box AP.")


def _print_slices(rows: Sequence[dict[str, Any]]) -> None:
    width = max(len(row["slice"]) for row in rows)
    print(f"\n{'slice':{width}}{'images':>9}{'persons':>9}{'AP':>9}{'AP50':>9}{'AP75':>9}{'AR':>9}")
    for row in rows:
        figures = "".join(f"{_figure(row[key]):>9}" for key in SLICE_FIGURES)
        print(f"{row['slice']:{width}}{row['images']:9,}{row['persons']:9,}{figures}")


def _figure(value: float | None) -> str:
    return "n/a" if value is None else f"{value:.4f}"
