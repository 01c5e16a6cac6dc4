"""`posefoundry hard-examples`: the images most worth a person's time, as a folder for an annotation tool."""

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

from posefoundry.commands.words import arguments_of, refuse_others
from posefoundry.datasets.coco import CocoKeypoints, load_coco_keypoints, set_faults_aside
from posefoundry.errors import PosefoundryError
from posefoundry.evaluation.hard_examples import choose_hard_examples
from posefoundry.evaluation.prelabels import write_prelabels
from posefoundry.files import atomic_directory, read_json, sha256_of_file

ANNOTATIONS = Path("data/raw/annotations/test.json")
IMAGES = Path("data/raw/images/test")
DETECTIONS = Path("reports/evaluate/detections.json")
PASSPORT = Path("reports/evaluate/passport.json")
PRODUCTION = Path("reports/gate/production_detections.json")
FOLDER = Path("hard_examples")

KEYS = ("count", "out", "annotations", "images", "detections", "production")


def hard_examples(words: list[str]) -> None:
    """Chooses hard examples and writes them for annotation; by default from what the pipeline left."""
    arguments = arguments_of("hard-examples", words)
    refuse_others("hard-examples", arguments, KEYS)
    count = arguments.get("count", 50)
    if type(count) is not int or count < 1:
        raise PosefoundryError(f"hard-examples: count: expected a whole number above 0, got {count!r}.")
    out = Path(arguments.get("out", FOLDER))
    if out.exists() and any(out.iterdir() if out.is_dir() else [out]):
        raise PosefoundryError(
            f"hard-examples: out: expected a new or empty folder, got {out}, which is not empty. "
            "Name another: out=round_2."
        )
    annotations, images, detections, production = _inputs(arguments)
    truth = _truth(annotations)
    examples = choose_hard_examples(
        truth,
        _results(detections),
        _results(production) if production else None,
        count=count,
        called=(str(annotations), str(detections), str(production)),
    )
    if not examples:
        print(f"None of {len(truth.images)} images is hard: nothing to correct, nothing written.")
        return
    with atomic_directory(out) as folder:
        write_prelabels(folder, examples, truth, images)
    for example in examples[:10]:
        print(f"{example.image['file_name']}: {' '.join(reason.sentence for reason in example.reasons)}")
    if len(examples) > 10:
        print(f"... and {len(examples) - 10} more, in {out / 'reasons.json'}")
    kinds = Counter(reason.kind for example in examples for reason in example.reasons)
    told = ", ".join(f"{number} {kind.replace('_', ' ')}" for kind, number in kinds.most_common())
    print(f"{len(examples)} of {len(truth.images)} images ({told}) -> {out}/")
    if not production:
        print("No model in production to compare with.")
    print("Correct them in CVAT or Label Studio, put the export into data/corrections/<round>/, then: dvc repro")


def _inputs(arguments: dict[str, Any]) -> tuple[Path, Path, Path, Path | None]:
    """Returns annotations, image folder, detections and production's detections.

    Whoever names one of the first three has data of his own, and must name them all.
    """
    given = {key: Path(arguments[key]) for key in KEYS[2:] if key in arguments}
    if not given.keys() & {"annotations", "images", "detections"}:
        _require_same_data()
        production = given.get("production", PRODUCTION if PRODUCTION.is_file() else None)
        return ANNOTATIONS, IMAGES, DETECTIONS, production
    for key, example in (("annotations", "people.json"), ("images", "photos"), ("detections", "found.json")):
        if key not in given:
            raise PosefoundryError(f"hard-examples: expected {key}= as well, for example {key}={example}.")
    return given["annotations"], given["images"], given["detections"], given.get("production")


def _require_same_data() -> None:
    for path, stage in ((ANNOTATIONS, "ingest"), (DETECTIONS, "evaluate"), (PASSPORT, "evaluate")):
        if not path.is_file():
            raise PosefoundryError(
                f"hard-examples: expected {path}, which the stage {stage} writes, found no file. Run the pipeline: "
                "dvc repro; or name annotations=, images= and detections=."
            )
    passport = read_json(PASSPORT)
    if isinstance(passport, dict) and passport.get("annotations_sha256") != sha256_of_file(ANNOTATIONS):
        raise PosefoundryError(
            f"hard-examples: {DETECTIONS} was made with other annotations than {ANNOTATIONS} has now. Evaluate again: "
            "dvc repro evaluate."
        )


def _truth(path: Path) -> CocoKeypoints:
    """Reads annotations, and refuses by name what ingest would set aside.

    But for what nothing here needs: a person may have no keypoints, and OKS takes the box where there is no area.
    """
    truth = load_coco_keypoints(path)
    nobody = [0] * (3 * truth.skeleton.n_keypoints)
    lenient = [a | {"area": a.get("area") or 0, "keypoints": a.get("keypoints") or nobody} for a in truth.annotations]
    _, aside = set_faults_aside(replace(truth, annotations=lenient), "")
    if aside:
        first = aside[0]
        entry = f"annotation {first.annotation['id']}" if first.annotation else f"image {(first.image or {}).get('id')}"
        more = f" (and {len(aside) - 1} more)" if len(aside) > 1 else ""
        raise PosefoundryError(f"{path}: {entry}{more}: {first.detail}. Correct or remove it.")
    return truth


def _results(path: Path) -> Any:
    """Reads COCO results, of which `choose_hard_examples` checks all but that the boxes are there."""
    content = read_json(path)
    for number, entry in enumerate(content if isinstance(content, list) else []):
        if isinstance(entry, dict) and not entry.get("bbox"):
            raise PosefoundryError(
                f"{path}[{number}]: expected a 'bbox', [x, y, width, height] in px, which the pre-label needs, got "
                f"{repr(entry['bbox']) if 'bbox' in entry else 'no such key'}. Let the model write boxes too, as "
                "posefoundry val save_json=True does."
            )
    return content
