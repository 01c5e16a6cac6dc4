"""Stage validate: checks the data before anybody trains on it, and keeps what it saw as pages to read."""

from pathlib import Path
from typing import Any

from posefoundry.config import Validate
from posefoundry.datasets.checks import CheckResult, data_checks, run_checks
from posefoundry.datasets.data_docs import make_self_contained
from posefoundry.datasets.tables import build_tables
from posefoundry.errors import PosefoundryError
from posefoundry.files import atomic_directory, write_json_atomic
from posefoundry.stages.runner import run_as_command


def run(settings: Validate, *, raw: Path, yolo: Path, receipt: Path, report: Path, docs: Path) -> None:
    """Checks annotations, labels, images and splits; a failed check of level error stops the pipeline."""
    tables = build_tables(raw, yolo, receipt)
    with atomic_directory(docs) as site:
        results = run_checks(data_checks(settings), tables, site)
        make_self_contained(site, results)
    write_json_atomic(report, _report(results))
    for result in results:
        if not result.passed and result.check.level == "warning":
            print(f"validate: warning: {_sentence(result)}")
    if failed := [result for result in results if not result.passed and result.check.level == "error"]:
        raise PosefoundryError(
            f"expected data that passes all checks of level error, {len(failed)} of them failed:\n"
            + "\n".join(f"  {_sentence(result)}" for result in failed)
            + f"\nFix the source and run the pipeline again. All checks: {docs / 'index.html'}, {report}."
        )


def _sentence(result: CheckResult) -> str:
    check = result.check
    if result.fault:
        return f"{check.name}: could not run, because of the set-up and not of the data: {result.fault}"
    return f"{check.name}: '{check.title}' fails for {result.failed_rows} of {result.rows}: " + "; ".join(
        result.offenders
    )


def _report(results: list[CheckResult]) -> dict[str, Any]:
    failed = [result.check.level for result in results if not result.passed]
    return {
        "passed": "error" not in failed,
        "failed_errors": failed.count("error"),
        "failed_warnings": failed.count("warning"),
        "checks": [
            {
                "name": result.check.name,
                "level": result.check.level,
                "title": result.check.title,
                "table": result.check.table,
                "passed": result.passed,
                "rows": result.rows,
                "failed_rows": result.failed_rows,
                "offenders": list(result.offenders),
                "fault": result.fault,
            }
            for result in results
        ],
    }


if __name__ == "__main__":
    run_as_command("validate", run)
