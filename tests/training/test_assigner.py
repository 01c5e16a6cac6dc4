"""The vectorised assigner against the definition, person by person and anchor by anchor."""

import torch

from posefoundry.training.assigner import Assignment, assign, centres_inside, on_fitting_levels
from posefoundry.training.boxes import complete_iou

KEEP_BEST = 10


def assigned(s: dict[str, torch.Tensor], min_side_px: float = 8, then_single: bool = False) -> Assignment:
    """Assigns a scene by CIoU."""
    return assign(
        s["scores"],
        complete_iou(s["boxes_xyxy"][:, :, None], s["predicted_boxes_xyxy"][:, None]),
        centres_inside(s["anchor_points_xy"], s["boxes_xyxy"], min_side_px) & s["is_person"][..., None],
        s["class_ids"],
        keep_best=KEEP_BEST,
        then_single=then_single,
    )


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
        best = sorted(inside, key=lambda a: -metric[person, a])[:KEEP_BEST]
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
        result = assigned(s)
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
    assert not assigned(s, min_side_px=1).is_positive.any()
    assert assigned(s, min_side_px=16).is_positive.any()


def test_a_single_anchor_is_the_best_of_the_many() -> None:
    for seed in range(20):
        s = scene(seed, n_classes=1)
        many, single = assigned(s), assigned(s, then_single=True)
        for person in range(3):
            own_of_many = (many.person_index == person) & many.is_positive
            own = (single.person_index == person) & single.is_positive
            assert own.sum() == min(1, own_of_many.sum())
            if own.any():
                scores_of_many = torch.where(own_of_many, many.scores[..., 0], -1)
                assert own.nonzero()[0, 1] == scores_of_many.argmax()
        assert single.is_positive.sum() == (single.scores > 0).sum()


def test_levels_are_chosen_by_the_persons_size() -> None:
    strides = torch.tensor([8.0, 16.0, 32.0])
    everywhere = torch.ones(1, 6, 3, dtype=torch.bool)
    sides_px = torch.tensor([4.0, 31.0, 40.0, 80.0, 100.0, 1000.0])  # roots of the boxes' areas
    boxes = torch.stack([torch.zeros(6), torch.zeros(6), sides_px * 2, sides_px / 2], -1)[None]
    levels = on_fitting_levels(everywhere, boxes, strides, (8, 16, 32))
    # By hand: 8 px takes up to 96, 16 px from 32 to 192, 32 px from 64.
    assert levels[0].tolist() == [
        [True, False, False],
        [True, False, False],
        [True, True, False],
        [True, True, True],
        [False, True, True],
        [False, False, True],
    ]


def test_a_person_without_a_candidate_on_its_level_keeps_what_it_has() -> None:
    candidates = torch.tensor([[[False, False, True]]])  # a small person, but only the coarse level has a centre in it
    boxes = torch.tensor([[[0.0, 0.0, 20.0, 20.0]]])
    assert on_fitting_levels(candidates, boxes, torch.tensor([8.0, 16.0, 32.0]), (8, 16, 32)).equal(candidates)
