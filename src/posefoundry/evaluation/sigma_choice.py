"""By which sigmas somebody's annotations are judged: what is asked for, what the file states, COCO's; never a guess."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from posefoundry.errors import PosefoundryError
from posefoundry.files import read_json
from posefoundry.skeleton import COCO_KEYPOINT_NAMES, COCO_SIGMAS


@dataclass(frozen=True)
class SigmaChoice:
    """Sigmas and where they are from.

    Attributes:
        values: K standard deviations of annotation, relative to object scale.
        origin: Words for people.
    """

    values: tuple[float, ...]
    origin: str


def choose_sigmas(content: dict[str, Any], given: Any, where: str) -> SigmaChoice:
    """Chooses the sigmas for the content of a COCO annotation file.

    Args:
        content: `annotations` and `categories`, of which `require_coco_form` has seen the form.
        given: `coco`, `flat` (1/K for each), a list of K numbers, a file that holds one as it is or under `sigmas`
            (as `posefoundry sigmas` writes it, a dataset.yaml, JSON); or None for what the categories state, and
            COCO's where the keypoints are COCO's 17.
        where: What the content is called in messages.

    Raises:
        PosefoundryError: Nobody says how many keypoints there are, or by which sigmas they are to be judged; or there
            are not K positive numbers.
    """
    names = _names(content, where)
    k = len(names) if names else _annotated_keypoints(content, where)
    if given is None:
        stated = next((c["sigmas"] for c in content["categories"] if c.get("sigmas")), None)
        if stated is not None:
            return SigmaChoice(_checked(stated, k, f"{where}: categories"), "the annotation file's own")
        if names == COCO_KEYPOINT_NAMES or (not names and k == len(COCO_SIGMAS)):
            return SigmaChoice(COCO_SIGMAS, "COCO's")
        also = ", or sigmas=coco if they are COCO's by other names" if k == len(COCO_SIGMAS) else ""
        shown = f" ({', '.join(names[:4])}{', ...' if k > 4 else ''})" if names else ""
        raise PosefoundryError(
            f"{where}: expected sigmas for its {k} keypoints{shown}, which are not COCO's 17, got none in the file and "
            "no sigmas=. Say sigmas=FILE, as posefoundry sigmas measures them, or sigmas=[...] with "
            f"{k} numbers{also}; sigmas=flat takes 1/{k} for each, which flatters."
        )
    if given == "coco":
        if k != len(COCO_SIGMAS):
            raise PosefoundryError(f"sigmas=coco: expected COCO's 17 keypoints, got {k} in {where}.")
        return SigmaChoice(COCO_SIGMAS, "COCO's")
    if given == "flat":
        return SigmaChoice((1 / k,) * k, f"1/{k} for each keypoint, which nobody measured")
    if isinstance(given, list):
        return SigmaChoice(_checked(given, k, "sigmas"), "as given")
    if not isinstance(given, str):
        raise PosefoundryError(f"sigmas: expected coco, flat, a file or a list of {k} numbers, got {given!r}.")
    return SigmaChoice(_from_file(Path(given), k, names), given)


def _names(content: dict[str, Any], where: str) -> tuple[str, ...]:
    """Returns the names that the categories share; none where they have none."""
    named = [category for category in content["categories"] if category.get("keypoints")]
    for category in named[1:]:
        if category["keypoints"] != named[0]["keypoints"]:
            raise PosefoundryError(
                f"{where}: expected categories with the same keypoints, got other ones in category "
                f"{category.get('id')!r} than in {named[0].get('id')!r}. Evaluate them one by one, each in a file of "
                "its own."
            )
    return tuple(named[0]["keypoints"]) if named else ()


def _annotated_keypoints(content: dict[str, Any], where: str) -> int:
    for annotation in content["annotations"]:
        points = annotation.get("keypoints")
        if isinstance(points, list) and points and len(points) % 3 == 0:
            return len(points) // 3
    raise PosefoundryError(
        f"{where}: expected a COCO keypoint file, got no keypoints in its annotations and no names of keypoints in its "
        "categories. Name the file with keypoints, such as person_keypoints_val2017.json."
    )


def _from_file(path: Path, k: int, names: tuple[str, ...]) -> tuple[float, ...]:
    if path.suffix == ".json":
        content = read_json(path)
    else:
        try:
            content = yaml.safe_load(path.read_bytes())
        except FileNotFoundError:
            raise PosefoundryError(
                f"sigmas: expected coco, flat, a list of {k} numbers or a file, found no file {path}."
            ) from None
        except (OSError, yaml.YAMLError, ValueError) as error:
            raise PosefoundryError(f"{path}: expected YAML with sigmas, got: {' '.join(str(error).split())}.") from None
    stated = content.get("sigmas") if isinstance(content, dict) else content
    if isinstance(content, dict) and isinstance(own := content.get("kpt_names"), list) and names:
        other = next((i for i, (one, two) in enumerate(zip(own, names, strict=False)) if one != two), None)
        if other is not None:
            raise PosefoundryError(
                f"{path}: expected sigmas in the order of the annotations' keypoints, got {own[other]!r} at place "
                f"{other + 1}, where they have {names[other]!r}."
            )
    return _checked(stated, k, str(path))


def _checked(stated: Any, k: int, where: str) -> tuple[float, ...]:
    is_list = isinstance(stated, list)
    if not is_list or len(stated) != k or not all(type(s) in (int, float) and 0 < s < float("inf") for s in stated):
        got = f"{len(stated)}: {stated[:4]}" if is_list else repr(stated)[:80]
        raise PosefoundryError(f"{where}: expected sigmas as a list of {k} positive numbers, got {got}.")
    return tuple(float(sigma) for sigma in stated)
