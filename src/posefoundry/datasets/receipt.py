"""The receipt of a conversion: for each source annotation one line that says what became of it."""

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from posefoundry.errors import PosefoundryError
from posefoundry.files import write_text_atomic

Outcome = Literal["written", "clipped", "left_out"]
OUTCOMES: tuple[Outcome, ...] = get_args(Outcome)


@dataclass(frozen=True, kw_only=True)
class ReceiptLine:
    """What became of one annotation.

    Attributes:
        split: train, val or test.
        image: File name of its image; None where the source names no such image.
        annotation_id: The source's id.
        outcome: `written` as it is, `clipped` to the image and written, or `left_out`.
        reason: Why it was left out, or what was clipped; None where it was written as it is.
        line: Number of its line in the label file, counted from 1; None where it was left out.
    """

    split: str
    image: str | None
    annotation_id: Any
    outcome: Outcome
    reason: str | None
    line: int | None


def write_receipt(path: Path, lines: Iterable[ReceiptLine]) -> None:
    """Writes a receipt as JSON lines, whole or not at all."""
    write_text_atomic(path, "".join(json.dumps(asdict(line), ensure_ascii=False) + "\n" for line in lines))


def read_receipt(path: Path) -> list[ReceiptLine]:
    """Reads what `write_receipt` wrote.

    Raises:
        PosefoundryError: The file is missing or a line is not one of a receipt; the message names the line.
    """
    try:
        texts = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise PosefoundryError(f"{path}: expected a conversion receipt, got: {error}.") from None
    lines = []
    for number, text in enumerate(texts, start=1):
        if text:
            try:
                line = ReceiptLine(**json.loads(text))
            except (ValueError, TypeError) as error:
                raise PosefoundryError(
                    f"{path}, line {number}: expected a line of a conversion receipt, got {text[:80]!r} ({error}). "
                    "Run the convert stage again."
                ) from None
            lines.append(line)
    return lines


def check_complete(lines: Iterable[ReceiptLine], annotation_ids: Iterable[tuple[str, Any]]) -> None:
    """Checks that a receipt accounts for each annotation once and for nothing else.

    Args:
        lines: The receipt.
        annotation_ids: Split and id of each source annotation, those that were set aside included.

    Raises:
        PosefoundryError: An annotation is missing from the receipt, or stands in it too often.
    """
    expected = Counter((split, repr(annotation_id)) for split, annotation_id in annotation_ids)
    accounted = Counter((line.split, repr(line.annotation_id)) for line in lines)
    if expected != accounted:
        missing, surplus = list((expected - accounted).elements()), list((accounted - expected).elements())
        raise PosefoundryError(
            f"The receipt must account for each of {expected.total()} annotations once, but {len(missing)} are missing "
            f"(first: {missing[:3]}) and {len(surplus)} are too many (first: {surplus[:3]}). The annotation files may "
            "name images that they do not list; run the ingest stage again."
        )


def summarise(lines: Iterable[ReceiptLine]) -> dict[str, Any]:
    """Counts a receipt's lines.

    Returns:
        `annotations`, the number of each outcome, `clipped_because` and `left_out_because` by reason; the outcomes add
        up to `annotations`, the reasons to their outcome.
    """
    lines = list(lines)
    outcomes = Counter(line.outcome for line in lines)
    return {
        "annotations": len(lines),
        **{outcome: outcomes[outcome] for outcome in OUTCOMES},
        "clipped_because": _reasons(lines, "clipped"),
        "left_out_because": _reasons(lines, "left_out"),
    }


def _reasons(lines: list[ReceiptLine], outcome: Outcome) -> dict[str, int]:
    return dict(sorted(Counter(line.reason or "" for line in lines if line.outcome == outcome).items()))
