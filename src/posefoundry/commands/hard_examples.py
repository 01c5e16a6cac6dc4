"""`posefoundry hard-examples`: the images most worth a person's time, as a folder for an annotation tool."""

from collections import Counter
from pathlib import Path
from typing import Any

from posefoundry.commands.words import arguments_of, refuse_others
from posefoundry.datasets.coco import load_coco_keypoints
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
        raise PosefoundryError(f"hard-examples: count: expected a whole number from 1, got {count!r}.")
    out = Path(arguments.get("out", FOLDER))
    if out.exists() and any(out.iterdir() if out.is_dir() else [out]):
        raise PosefoundryError(
            f"hard-examples: out: expected a new or empty folder, got {out}, which holds something. "
            "Name another: out=round_2."
        )
    annotations, images, detections, production = _inputs(arguments)
    truth = load_coco_keypoints(annotations)
    examples = choose_hard_examples(
        truth, _results(detections), _results(production) if production else None, count=count
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
        print("No model in production to disagree with.")
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
            f"hard-examples: {DETECTIONS} is of other annotations than {ANNOTATIONS} has now. Evaluate again: "
            "dvc repro evaluate."
        )


def _results(path: Path) -> list[dict[str, Any]]:
    content = read_json(path)
    keys = ("image_id", "category_id", "bbox", "keypoints", "score")
    if not isinstance(content, list) or not all(isinstance(d, dict) and all(k in d for k in keys) for d in content):
        raise PosefoundryError(f"{path}: expected a COCO results file, a list of objects with {', '.join(keys)}.")
    return content
