"""Stage convert: COCO keypoints -> YOLO pose labels, with a receipt."""

from pathlib import Path

from posefoundry.config import Convert
from posefoundry.datasets.convert import convert_dataset
from posefoundry.datasets.receipt import summarise, write_receipt
from posefoundry.datasets.yolo import SPLITS
from posefoundry.files import write_json_atomic
from posefoundry.stages.runner import run_as_command


def run(settings: Convert, *, raw: Path, yolo: Path, receipt: Path, report: Path) -> None:
    """Turns COCO keypoints into YOLO pose labels; the receipt says what became of each annotation."""
    lines = convert_dataset(raw, yolo, images=settings.images, min_box_side_px=settings.min_box_side_px)
    write_receipt(receipt, lines)
    of_split = {split: summarise(line for line in lines if line.split == split) for split in SPLITS}
    write_json_atomic(report, {"all": summarise(lines), **of_split})


if __name__ == "__main__":
    run_as_command("convert", run)
