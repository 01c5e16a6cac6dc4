"""Templates to pages: one file with its style and script inside, which asks no one for anything."""

import base64
import hashlib
import re
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from posefoundry.evaluation.html.sources import number
from posefoundry.files import write_text_atomic

if TYPE_CHECKING:
    from jinja2 import Environment

NOT_APPLICABLE = "n/a"
MINUS = "\N{MINUS SIGN}"


def write_page(path: Path, template: str, **context: Any) -> Path:
    """Fills a template and writes the page.

    Whatever the template shows is escaped. The page's own policy forbids requests and every script but its own, so
    that a file name that slipped through could do nothing.
    """
    script = _template("page.js")
    script_hash = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    page = _environment().get_template(template).render(
        **context,
        style=_template("page.css"),
        script=script,
        policy=f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{script_hash}'",
    )  # fmt: skip
    # A lone surrogate, which JSON may hold, is no character that UTF-8 can write.
    write_text_atomic(path, page.encode(errors="replace").decode())
    return path


def decimal(value: Any, digits: int = 3) -> str:
    """Returns a number with `digits` decimals, or n/a."""
    known = number(value)
    return NOT_APPLICABLE if known is None else f"{known:.{digits}f}".replace("-", MINUS)


def measure(value: Any) -> str:
    """Returns a measurement of any size, milliseconds as well as shares, with as many decimals as tell something."""
    known = number(value)
    digits = 3 if known is None or abs(known) < 10 else 1 if abs(known) < 1000 else 0
    return decimal(known, digits)


def plain(value: Any) -> str:
    """Returns a value of a passport; a fraction without the digits that only binary numbers have."""
    return f"{value:.6g}" if isinstance(value, float) else NOT_APPLICABLE if value is None else str(value)


def probability(value: Any) -> str:
    """Returns a p value, never more exact than it can be."""
    known = number(value)
    return "" if known is None else "p < 0.001" if known < 0.001 else f"p = {known:.3f}"


def signed(value: Any, digits: int = 3) -> str:
    """Returns a difference with its sign."""
    known = number(value)
    if known is None:
        return NOT_APPLICABLE
    text = f"{abs(known):.{digits}f}"
    return text if float(text) == 0 else f"{'+' if known > 0 else MINUS}{text}"


def percent(value: Any, digits: int = 0) -> str:
    """Returns a share as per cent."""
    known = number(value)
    return NOT_APPLICABLE if known is None else f"{known * 100:.{digits}f} %"


def count(value: Any) -> str:
    """Returns a whole number with thin spaces between thousands."""
    known = number(value)
    return NOT_APPLICABLE if known is None else f"{known:,.0f}".replace(",", "\N{NARROW NO-BREAK SPACE}")


def words(name: Any) -> str:
    """Returns a name as it is spoken: `left_wrist` becomes `left wrist`."""
    return str(name).replace("_", " ")


def slice_title(name: Any) -> str:
    """Returns a slice's name as it is spoken: `keypoint=left_wrist&size=small` becomes `left wrist, size small`."""
    parts = []
    for part in re.split(r"&(?=[^&=]+=)", str(name)):
        group, equals, value = part.partition("=")
        if group in ("keypoint", "class", "visibility", "truncation") and equals:
            parts.append(words(value))
        else:
            parts.append(f"{words(group)} {value}" if equals else words(part))
    return "all persons" if parts == ["all"] else ", ".join(parts)


@cache
def _environment() -> "Environment":
    from jinja2 import Environment, FunctionLoader, StrictUndefined

    environment = Environment(
        loader=FunctionLoader(_template), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    environment.filters |= {
        "decimal": decimal, "signed": signed, "share": percent, "quantity": count, "measure": measure, "plain": plain,
        "probability": probability, "words": words, "slice_title": slice_title, "number": number,
    }  # fmt: skip
    return environment


def _template(name: str) -> str:
    return (files("posefoundry.evaluation.html") / "templates" / name).read_text(encoding="utf-8")
