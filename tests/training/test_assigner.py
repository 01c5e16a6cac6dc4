"""The vectorised assigner against the definition, person by person and anchor by anchor."""

import torch

from posefoundry.training.assigner import CANDIDATES_PER_PERSON, assign
from posefoundry.training.boxes import complete_iou


def scene(seed: int, n_persons: int = 4, n_classes: int = 2) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    y, x = torch.meshgrid(torch.arange(12) * 8 + 4.0, torch.arange(12) * 8 + 4.0, indexing="ij")
    points = torch.stack([x, y], -1).reshape(-1, 2)
    corner = torch.rand(1, n_persons, 2, generator=generator) * 60
    boxes = torch.cat([corner, corner + 10 + torch.rand(1, n_persons, 2, generator=generator) * 30], -1)
    noise = torch.randn(1, len(points), 4, generator=generator) * 4
    return {
        "scores": torch.rand(1, len(points), n_classes, generator=generator),
        "predicted_boxes_xyxy": torch.cat([points - 12, points + 12], -1)[None] + noise,
        "anchor_points_xy": points,
        "class_ids": torch.randint(0, n_classes, (1, n_persons), generator=generator),
        "boxes_xyxy": boxes,
        "is_person": torch.tensor([[True] * (n_persons - 1) + [False]]),
    }


def by_definition(s: dict[str, torch.Tensor]) -> tuple[dict[int, int], dict[int, float]]:
    """Person and target score of each positive anchor, by plain loops."""
    points, wanted_by = s["anchor_points_xy"], {}
    metric, overlap = {}, {}
    for person in range(s["boxes_xyxy"].shape[1]):
        if not s["is_person"][0, person]:
            continue
        x1, y1, x2, y2 = s["boxes_xyxy"][0, person].tolist()
        inside = [a for a, (x, y) in enumerate(points.tolist()) if x1 < x < x2 and y1 < y < y2]
        for anchor in inside:
            iou = complete_iou(s["boxes_xyxy"][0, person], s["predicted_boxes_xyxy"][0, anchor]).clamp(min=0)
            score = s["scores"][0, anchor, s["class_ids"][0, person]]
            overlap[person, anchor], metric[person, anchor] = iou.item(), (score**0.5 * iou**6).item()
        best = sorted(inside, key=lambda a: -metric[person, a])[:CANDIDATES_PER_PERSON]
        for anchor in best:
            wanted_by.setdefault(anchor, []).append(person)
    owner = {}
    for anchor, persons in wanted_by.items():
        everyone = [p for p in range(s["boxes_xyxy"].shape[1]) if (p, anchor) in overlap]
        owner[anchor] = persons[0] if len(persons) == 1 else max(everyone, key=lambda p: overlap[p, anchor])
    target = {}
    for anchor, person in owner.items():
        own = [a for a, p in owner.items() if p == person]
        best_metric, best_overlap = max(metric[person, a] for a in own), max(overlap[person, a] for a in own)
        target[anchor] = metric[person, anchor] * best_overlap / (best_metric + 1e-9)
    return owner, target


def test_equals_the_definition() -> None:
    contested = 0
    for seed in range(20):
        s = scene(seed)
        result = assign(**s, min_side_px=8)
        owner, target = by_definition(s)
        # Among candidates that do not overlap at all, any may fill a person's ten.
        overlapping = sorted(anchor for anchor in owner if target[anchor] > 0)
        assert (result.scores[0].sum(-1) > 0).nonzero().flatten().tolist() == overlapping
        assert result.is_positive.sum() >= len(overlapping)
        for anchor in overlapping:
            assert result.person_index[0, anchor] == owner[anchor]
            own_class = s["class_ids"][0, owner[anchor]]
            torch.testing.assert_close(
                result.scores[0, anchor, own_class], torch.tensor(target[anchor]), rtol=1e-4, atol=1e-6
            )
        assert (result.scores[0][~result.is_positive[0]] == 0).all()
        contested += len(owner) < 30
    assert contested  # some scenes have persons that share anchors


def test_a_person_smaller_than_a_cell_finds_an_anchor() -> None:
    s = scene(0, n_persons=2)
    s["boxes_xyxy"][0, 0] = torch.tensor([41.0, 41.0, 43.0, 43.0])  # between the anchor centres at 36 and 44
    assert not assign(**s, min_side_px=1).is_positive.any()
    assert assign(**s, min_side_px=16).is_positive.any()
