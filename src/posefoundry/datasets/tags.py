"""Tags of images, such as camera or site: a table by file name, by which the evaluation slices its numbers."""

import csv
import io
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from posefoundry.datasets.coco import flat_name
from posefoundry.errors import PosefoundryError
from posefoundry.files import write_text_atomic

TAGS_NAME = "tags.csv"
CORRECTED = "corrected"
# What the evaluation slices by on its own; a tag of that name would be taken for it.
SLICE_GROUPS = ("all", "keypoint", "visibility", "size", "truncation", "persons", "class")
Tags = dict[str, dict[str, str]]


def read_tags(path: Path, *, where: str, file_names: Iterable[str] | None = None, reserved: Sequence[str] = ()) -> Tags:
    """Reads a CSV file with a column `file_name` and one column a tag; an empty cell is no tag.

    Args:
        path: The CSV file.
        where: The setting that named it, for messages.
        file_names: The images; rows of others are left out, which is told. By default none are.
        reserved: Names that no tag may have, beside those of the evaluation's slices.

    Returns:
        Values by tag, by bare file name; every row has every tag.

    Raises:
        PosefoundryError: The file is missing or not CSV in UTF-8, has no column `file_name`, a tag's name is empty,
            comes twice, is reserved or that of a group of slices, a tag or value has a `=` or `&` in it, a row
            contradicts another, no row is of an image, or two images share a bare file name.
    """
    try:
        rows = list(csv.reader(io.StringIO(path.read_text(encoding="utf-8-sig"))))
    except FileNotFoundError:
        raise PosefoundryError(f"{where}: expected a CSV file, found none at {path}.") from None
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise PosefoundryError(f"{where}: expected CSV in UTF-8, got {path}: {error}.") from None
    header = [name.strip() for name in rows[0]] if rows else []
    names = [name for name in header if name != "file_name"]
    if header.count("file_name") != 1 or "" in names or len(set(names)) < len(names):
        raise PosefoundryError(f"{path}: expected one column file_name and tags with distinct names, got {header}.")
    if taken := [name for name in names if name in reserved]:
        raise PosefoundryError(f"{path}: the tag {taken[0]!r} is ingest's own, for corrected images. Rename yours.")
    tags: Tags = {}
    for number, row in enumerate(rows[1:], start=2):
        if not any(cell.strip() for cell in row):
            continue
        if len(row) != len(header):
            raise PosefoundryError(f"{path}, line {number}: expected {len(header)} cells, got {len(row)}.")
        values = {name: cell.strip() for name, cell in zip(header, row, strict=True)}
        name = flat_name(values.pop("file_name"))
        if tags.setdefault(name, values) != values:
            raise PosefoundryError(f"{path}, line {number}: {name!r} stands there twice, with different tags.")
    for name in names:
        if name in SLICE_GROUPS:
            raise PosefoundryError(f"{path}: the evaluation has slices by {name!r} already. Rename that tag.")
        for text in (name, *(values[name] for values in tags.values())):
            if "=" in text or "&" in text:
                raise PosefoundryError(
                    f"{path}: expected tags without '=' and '&', by which the gate's rules name slices, got {text!r}."
                )
    return tags if file_names is None else _of_images(path, tags, file_names)


def _of_images(path: Path, tags: Tags, file_names: Iterable[str]) -> Tags:
    """Returns the tags of these images; a table may cover all splits, where one is judged."""
    names = Counter(map(flat_name, file_names))
    if strange := sorted(set(tags) - set(names)):
        told = f"{path}: {len(strange)} of {len(tags)} rows are of images that the annotations do not have"
        if len(strange) == len(tags):
            raise PosefoundryError(
                f"{told}, such as {strange[0]!r}; expected names such as {next(iter(names), None)!r}. Is it another "
                "data set's table?"
            )
        print(f"{told}, such as {strange[0]!r}: left out.", file=sys.stderr)
    own = {name: values for name, values in tags.items() if name in names}
    if shared := sorted(name for name in own if names[name] > 1):
        raise PosefoundryError(f"{path}: {shared[0]!r} stands for {names[shared[0]]} images. Rename these files.")
    return own


def write_tags(path: Path, tags: Tags, file_names: Iterable[str], corrected: set[str] | None) -> None:
    """Writes the tags of some images, in their order; whoever has none has empty cells.

    Args:
        path: The CSV file.
        tags: The user's.
        file_names: The images; without any tag, only the header is written.
        corrected: Those that were corrected, or None where there are no corrections and the column is left out.
    """
    names = list(next(iter(tags.values()), {}))
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["file_name", *names, *([CORRECTED] if corrected is not None else [])])
    if names or corrected is not None:
        for file_name in file_names:
            own = tags.get(file_name, {})
            cells = [own.get(name, "") for name in names]
            cells += ["yes" if file_name in corrected else "no"] if corrected is not None else []
            writer.writerow([file_name, *cells])
    write_text_atomic(path, out.getvalue())
