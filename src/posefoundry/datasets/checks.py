"""The checks on the data, run by Great Expectations; the only file that knows that library."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from posefoundry.config import Validate
from posefoundry.datasets.tables import Tables

# Label lines carry 6 decimals: a corner of a box, made of two rounded numbers, is off by less than 1e-6.
LABEL_TOLERANCE = 1e-5
# Beyond the largest among 604 persons of COCO 2017, 0.48: boxes there enclose what is seen, a keypoint may be hidden.
MAX_KEYPOINT_OFF_BOX = 0.5
OFFENDERS_SHOWN = 5

Level = Literal["error", "warning"]


@dataclass(frozen=True)
class Check:
    """One thing that must hold for each row of a table.

    Attributes:
        name: Short and stable, to search and count by.
        table: persons, images or splits.
        title: What must hold, in plain words.
        expectation: Its kind, a class of Great Expectations.
        arguments: The columns and bounds.
        level: `error` stops the pipeline, `warning` does not.
    """

    name: str
    table: str
    title: str
    expectation: str
    arguments: dict[str, Any]
    level: Level = "error"


@dataclass(frozen=True, kw_only=True)
class CheckResult:
    """What came of a check.

    Attributes:
        check: The check.
        rows: How many rows its table has.
        failed_rows: For how many of them it does not hold.
        offenders: The first of them: where, and what was found there.
        fault: Why the check could not run, which is a fault of the set-up and not of the data; None where it ran.
    """

    check: Check
    rows: int
    failed_rows: int
    offenders: tuple[str, ...]
    fault: str | None = None

    @property
    def passed(self) -> bool:
        """Whether the check ran and holds for each row."""
        return self.fault is None and self.failed_rows == 0


_NULL, _NOT_NULL = "ExpectColumnValuesToBeNull", "ExpectColumnValuesToNotBeNull"
_BETWEEN, _EQUAL, _IN = (
    "ExpectColumnValuesToBeBetween",
    "ExpectColumnPairValuesToBeEqual",
    "ExpectColumnValuesToBeInSet",
)


def data_checks(settings: Validate) -> list[Check]:
    """Returns all checks, with the bounds that the settings ask for."""
    return [*_person_checks(), *_image_checks(), *_split_checks(settings)]


def _person_checks() -> list[Check]:
    def check(name: str, title: str, expectation: str, level: Level = "error", **arguments: Any) -> Check:
        return Check(name, "persons", title, expectation, arguments, level)

    def at_most(column: str, bound: float) -> dict[str, Any]:
        return {"column": column, "min_value": 0, "max_value": bound}

    return [
        check("receipt_complete", "The receipt accounts for each annotation", _NOT_NULL, column="outcome"),
        check("label_line", "Each person has a well-formed label line", _NULL, column="label_fault"),
        check("class", "Each label has its annotation's category", _EQUAL, **_pair("category_id", "label_category_id")),
        check(
            "box_in_image", "Each label's box lies in the image", _BETWEEN, **at_most("box_outside", LABEL_TOLERANCE)
        ),
        check(
            "keypoints_in_image",
            "Each label's keypoints lie in the image",
            _BETWEEN,
            **at_most("keypoints_outside", 0.0),
        ),
        check("visibility", "Each keypoint's visibility is 0, 1 or 2", _BETWEEN, **at_most("odd_visibilities", 0)),
        check(
            "num_keypoints",
            "num_keypoints is the number of labelled keypoints",
            _EQUAL,
            **_pair("num_keypoints", "labelled_keypoints"),
        ),
        check("area", "No person's area is 0 or less", _BETWEEN, column="area", min_value=0, strict_min=True),
        check("area_measured", "No area had to be taken from the box", _NOT_NULL, "warning", column="area"),
        check(
            "label_equals_annotation",
            "Each label says what its annotation says",
            _BETWEEN,
            **at_most("label_difference", LABEL_TOLERANCE),
        ),
        check("inside_image", "No person had to be clipped to the image", _NULL, "warning", column="clipped"),
        check("area_in_box", "No area is larger than its box", _BETWEEN, "warning", **at_most("area_of_box", 1.0)),
        check(
            "keypoints_near_box",
            "No keypoint is farther from its person's box than half the box's longer side",
            _BETWEEN,
            "warning",
            **at_most("keypoints_off_box", MAX_KEYPOINT_OFF_BOX),
        ),
    ]


def _image_checks() -> list[Check]:
    def check(name: str, title: str, expectation: str, level: Level = "error", **arguments: Any) -> Check:
        return Check(name, "images", title, expectation, arguments, level)

    return [
        check("image_exists", "Each annotated image is there", _IN, column="image_exists", value_set=[True]),
        check("image_annotated", "Each image is in the annotations", _IN, column="in_annotations", value_set=[True]),
        check("label_exists", "Each image has a label file", _IN, column="label_exists", value_set=[True]),
        check(
            "image_size", "Each image has the size that the annotations say", _EQUAL, **_pair("size", "size_of_file")
        ),
        check("image_unchanged", "Each image is as long as when it came", _EQUAL, **_pair("bytes", "bytes_of_file")),
        check(
            "label_lines", "Each label file has the receipt's lines", _EQUAL, **_pair("receipt_lines", "label_lines")
        ),
        check("fingerprint", "The manifest has each image's fingerprint", _NOT_NULL, column="sha256"),
        check("splits_disjoint", "No image is in two splits", _NULL, column="also_in_split"),
        check("images_distinct", "No image is twice in its split", _NULL, "warning", column="repeats"),
    ]


def _split_checks(settings: Validate) -> list[Check]:
    least, most = settings.min_persons_per_split, settings.max_set_aside_fraction
    return [
        Check(
            "min_persons",
            "splits",
            f"Each split has at least {least} labelled persons (validate.min_persons_per_split)",
            _BETWEEN,
            {"column": "persons", "min_value": least},
        ),
        Check(
            "set_aside",
            "splits",
            f"At most {most:.2%} of the annotations were set aside as broken (validate.max_set_aside_fraction); "
            "set_aside.json in the raw data says why",
            _BETWEEN,
            {"column": "set_aside_fraction", "max_value": most},
        ),
        Check(
            "images_set_aside",
            "splits",
            "No image was set aside as broken",
            _BETWEEN,
            {"column": "images_set_aside", "max_value": 0},
            "warning",
        ),
    ]


def _pair(a: str, b: str) -> dict[str, Any]:
    return {"column_A": a, "column_B": b, "ignore_row_if": "either_value_is_missing"}


def run_checks(checks: list[Check], tables: Tables, docs: Path) -> list[CheckResult]:
    """Runs the checks and writes Great Expectations' Data Docs.

    Args:
        checks: What must hold; each names its table.
        tables: What it must hold for.
        docs: An existing folder that receives the site.

    Returns:
        A result for each check, in their order.
    """
    os.environ["GX_ANALYTICS_ENABLED"] = "false"  # read when the library is imported; otherwise it reports its use
    import great_expectations as gx

    context = _context(docs)
    source = context.data_sources.add_pandas("data")
    by_name = {check.name: check for check in checks}
    results: dict[str, CheckResult] = {}
    for table in dict.fromkeys(check.table for check in checks):
        frame = getattr(tables, table)
        expectations = [_expectation(check) for check in checks if check.table == table]
        suite = context.suites.add(gx.ExpectationSuite(table, expectations=expectations))
        batch = source.add_dataframe_asset(table).add_batch_definition_whole_dataframe("all")
        definition = context.validation_definitions.add(gx.ValidationDefinition(name=table, data=batch, suite=suite))
        checkpoint = gx.Checkpoint(name=table, validation_definitions=[definition], result_format=_RESULT_FORMAT)
        outcome = context.checkpoints.add(checkpoint).run(
            batch_parameters={"dataframe": frame}, run_id=gx.RunIdentifier(run_name="validate")
        )
        for validation in outcome.run_results.values():
            for result in validation.results:
                check = by_name[result.expectation_config.meta["check"]]
                results[check.name] = _result(check, result.to_json_dict(), len(frame))
    context.build_data_docs()
    return [results[check.name] for check in checks]


# Failing rows come by the table's index, which says where they are; naming index columns instead takes Great
# Expectations a minute for 300,000 failing rows.
_RESULT_FORMAT = {"result_format": "SUMMARY", "partial_unexpected_count": 20}


def _context(docs: Path) -> Any:
    import great_expectations as gx
    from great_expectations.data_context.types.base import DataContextConfig, InMemoryStoreBackendDefaults

    site = {
        "class_name": "SiteBuilder",
        "show_how_to_buttons": False,
        "site_index_builder": {"class_name": "DefaultSiteIndexBuilder"},
        "store_backend": {"class_name": "TupleFilesystemStoreBackend", "base_directory": str(docs.absolute())},
    }
    config = DataContextConfig(
        store_backend_defaults=InMemoryStoreBackendDefaults(init_temp_docs_sites=False),
        data_docs_sites={"docs": site},
        progress_bars={"globally": False},
        analytics_enabled=False,
    )
    return gx.get_context(mode="ephemeral", project_config=config)


def _expectation(check: Check) -> Any:
    import great_expectations.expectations as gxe

    return getattr(gxe, check.expectation)(
        **check.arguments,
        description=check.title if check.level == "error" else f"{check.title} (a warning only)",
        severity="critical" if check.level == "error" else "warning",
        meta={"check": check.name},
    )


def _result(check: Check, result: dict[str, Any], n_rows: int) -> CheckResult:
    """Reads one result; an exception, of a column that is not there for instance, is told from a failing row."""
    if fault := _fault(result["exception_info"]):
        return CheckResult(check=check, rows=n_rows, failed_rows=0, offenders=(), fault=fault)
    details = result["result"]
    found = zip(details["partial_unexpected_index_list"], details["partial_unexpected_list"], strict=True)
    offenders = [f"{where}{_found(check, values)}" for where, values in found]
    return CheckResult(
        check=check,
        rows=n_rows,
        failed_rows=details["unexpected_count"],
        offenders=tuple(offenders[:OFFENDERS_SHOWN]),
    )


def _fault(exception_info: dict[str, Any]) -> str | None:
    """Returns the first exception's message; the record is flat where there is none and by metric where there is."""
    records = [exception_info] if "raised_exception" in exception_info else list(exception_info.values())
    return next((record["exception_message"] for record in records if record["raised_exception"]), None)


def _found(check: Check, values: Any) -> str:
    """Says what a failing row holds, in the words that its kind of check needs."""
    if check.expectation in (_NOT_NULL, _IN):
        return ""  # the title says that it is missing
    if check.expectation == _NULL:
        return f": {values}"
    columns = [check.arguments[key] for key in ("column", "column_A", "column_B") if key in check.arguments]
    return ": " + ", ".join(
        f"{column} {value:.4g}" if isinstance(value, float) else f"{column} {value}"
        for column, value in zip(columns, values if isinstance(values, list | tuple) else [values], strict=True)
    )
