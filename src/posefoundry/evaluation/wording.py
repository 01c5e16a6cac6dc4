"""How metrics, slices, errors and figures are called in sentences, so that they can be read aloud."""

# How a metric is called.
METRIC_NAMES = {
    "oks_ap": "Pose accuracy (OKS AP)",
    "oks_ap50": "Pose accuracy at a lenient match (OKS AP50)",
    "oks_ap75": "Pose accuracy at a strict match (OKS AP75)",
    "oks_ap_m": "Pose accuracy on medium-sized persons (OKS AP-M)",
    "oks_ap_l": "Pose accuracy on large persons (OKS AP-L)",
    "oks_ar": "Pose recall (OKS AR)",
    "oks_ar50": "Pose recall at a lenient match (OKS AR50)",
    "oks_ar75": "Pose recall at a strict match (OKS AR75)",
    "oks_ar_m": "Pose recall on medium-sized persons (OKS AR-M)",
    "oks_ar_l": "Pose recall on large persons (OKS AR-L)",
    "box_ap": "Person detection (box AP)",
    "box_ap50": "Person detection at a lenient match (box AP50)",
    "box_ap75": "Person detection at a strict match (box AP75)",
    "box_ap_s": "Person detection of small persons (box AP-S)",
    "box_ap_m": "Person detection of medium-sized persons (box AP-M)",
    "box_ap_l": "Person detection of large persons (box AP-L)",
}
ERROR_TYPES = {
    "good": "close enough to count as exact",
    "jitter": "near the right place, not exact",
    "inversion": "left and right exchanged, or another joint of the same person",
    "swap": "on another person's joint",
    "miss": "nowhere near any joint",
    "background": "a detection where nobody is",
    "duplicate": "another detection of somebody found already",
    "missed_person": "a person nobody detected",
}
ERROR_PLURALS = {
    "inversion": "inversions", "swap": "swaps", "miss": "misses", "background": "false positives in the background",
    "duplicate": "duplicates", "missed_person": "missed persons",
}  # fmt: skip
TRUNCATION = {"truncated": "cut off by the border", "whole": "wholly in the picture"}
CORRECTED = {"yes": "corrected images", "no": "images that were not corrected"}


def title(metric: str) -> str:
    """Returns how a metric is called."""
    return METRIC_NAMES.get(metric, f"The metric {metric}")


def where(slice_name: str | None) -> str:
    """Returns a slice as it follows a metric: ` at the left wrist of small persons`; nothing for everybody."""
    if slice_name in (None, "all"):
        return ""
    chosen = dict(part.partition("=")[::2] for part in str(slice_name).split("&"))
    keypoint, visibility = chosen.pop("keypoint", None), chosen.pop("visibility", None)
    size, truncation, of_class = (chosen.pop(group, None) for group in ("size", "truncation", "class"))
    persons, corrected = chosen.pop("persons", None), chosen.pop("corrected", None)
    words: list[str | None] = []
    if keypoint:
        words += ["at", f"keypoint {keypoint}" if keypoint.isdigit() else "the", visibility]
        words += [] if keypoint.isdigit() else keypoint.split("_")
    elif visibility:
        words += ["at", visibility, "keypoints"]
    if size or truncation:
        words += ["of", size, "persons", TRUNCATION.get(truncation or "", truncation)]
    if of_class:
        words.append(f"of class {of_class}")
    if persons:
        words.append(f"in images of {persons.replace('+', ' or more')} person{'' if persons == '1' else 's'}")
    if corrected:
        words.append(f"in {CORRECTED.get(corrected, f'images with corrected {corrected}')}")
    if chosen:
        tags = " and ".join(f"{tag.replace('_', ' ')} {value}" for tag, value in chosen.items())
        words.append(f"in images with {tags}")
    return " " + " ".join(word for word in words if word)


def digits_of(one: float, other: float) -> int:
    """Returns three decimals, or as many as it takes to see that two numbers differ."""
    return next((n for n in range(3, 9) if f"{one:.{n}f}" != f"{other:.{n}f}"), 3)


def interval_in_words(interval: tuple[float, float], confidence: float) -> str:
    """Returns an interval as it is shown in sentences: `95 % interval -0.030 to +0.004`."""
    return f"{100 * confidence:g} % interval {interval[0]:+.3f} to {interval[1]:+.3f}"


def counted(number: int, noun: str) -> str:
    """Returns `1 person`, `2 persons`."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
