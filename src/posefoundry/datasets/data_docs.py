"""Great Expectations' Data Docs made into a site that needs no network, behind a front page in plain words.

As they come, the pages fetch their styles, scripts and logo from elsewhere, so that they look broken where there is no
network and tell others that somebody reads them where there is.
"""

import html
import re
import shutil
from collections.abc import Sequence
from pathlib import Path

from posefoundry.datasets.checks import CheckResult

# Scripts only fold and filter; the icon, the logo and the footer's advertisement are remote.
_REMOTE_PARTS = re.compile(
    r"<script\b.*?</script>|<link\b[^>]*>|<img\b[^>]*>|<footer>.*?</footer>|url\('http[^)]*\)", re.DOTALL
)

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #1c2430; margin: 0 auto; padding: 24px; max-width: 1200px; }
a { color: #0b57a4; }
table { border-collapse: collapse; margin: 12px 0; width: 100%; }
td, th { border: 1px solid #d5dbe3; padding: 6px 10px; text-align: left; vertical-align: top; }
th { background: #f2f5f8; }
code { font-size: 13px; white-space: pre-wrap; }
.passed, .text-success { color: #14713d; }
.error, .text-danger { color: #b3261e; }
.warning, .text-warning { color: #8a5a00; }
.passed, .error, .warning { font-weight: 600; white-space: nowrap; }
"""

# The few classes that Great Expectations' pages take from Bootstrap and Font Awesome. A link to a folded part opens it.
_STYLE_OF_PAGES = (
    _STYLE
    + """
.navbar > div > nav > div, .card.mb-3 { display: none; }
.breadcrumb { list-style: none; display: flex; gap: 8px; padding: 0; }
.row { display: block; }
.alert-secondary { background: #f2f5f8; border-left: 4px solid #8a97a8; padding: 8px 14px; margin-top: 20px; }
h5, h6 { font-size: 16px; margin: 0; }
.card-header, .sticky { position: static; }
.ge-navigation-sidebar-content { columns: 3; }
.collapse { display: none; }
.collapse:target { display: block; }
.badge { border: 1px solid; padding: 0 6px; }
.fa-check-circle::before { content: "passed"; }
.fa-times::before { content: "failed"; }
.fa-exclamation-triangle::before { content: "could not run"; }
.alert .fas { display: none; }
.fas { font-style: normal; font-weight: 600; white-space: nowrap; }
"""
)


def make_self_contained(docs: Path, results: Sequence[CheckResult]) -> None:
    """Takes everything remote out of a Data Docs site and writes its front page, `index.html`.

    Args:
        docs: The site as Great Expectations built it; changed in place.
        results: What came of the checks.
    """
    shutil.rmtree(docs / "static", ignore_errors=True)
    for page in docs.rglob("*.html"):
        text = _REMOTE_PARTS.sub("", page.read_text(encoding="utf-8"))
        page.write_text(text.replace("</head>", f"<style>{_STYLE_OF_PAGES}</style></head>", 1), encoding="utf-8")
    (docs / "index.html").write_text(_front_page(docs, results), encoding="utf-8")


def _front_page(docs: Path, results: Sequence[CheckResult]) -> str:
    errors = sum(not result.passed and result.check.level == "error" for result in results)
    warnings = sum(not result.passed and result.check.level == "warning" for result in results)
    verdict = f"{errors} of {len(results)} checks failed" if errors else f"Passed: {len(results)} checks, no errors"
    noted = f"; {warnings} warnings" if warnings else ""
    failed_first = sorted(results, key=lambda result: (result.passed, result.check.level))
    links = "".join(
        f'<li><a href="{page.relative_to(docs).as_posix()}">{page.stem.removeprefix("data-")}</a>: each check with the '
        "values found</li>"
        for page in sorted(docs.glob("validations/**/*.html"))
    )
    return f"""<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>Data checks</title><style>{_STYLE}</style></head><body>
<h1>Data checks</h1>
<p class="{"error" if errors else "passed"}">{verdict}{noted}.</p>
<table><tr><th>Result</th><th>What must hold</th><th>Of</th><th>Rows</th><th>Failed</th><th>First found</th></tr>
{"".join(map(_front_page_row, failed_first))}</table>
<h2>In detail</h2><ul>{links}</ul>
</body></html>
"""


def _front_page_row(result: CheckResult) -> str:
    check = result.check
    status = "passed" if result.passed else check.level
    found = "<br>".join(html.escape(text) for text in ([result.fault] if result.fault else result.offenders))
    return (
        f'<tr><td class="{status}">{status}</td><td>{html.escape(check.title)}<br><code>{check.name}</code></td>'
        f"<td>{check.table}</td><td>{result.rows}</td><td>{result.failed_rows}</td><td>{found}</td></tr>\n"
    )
