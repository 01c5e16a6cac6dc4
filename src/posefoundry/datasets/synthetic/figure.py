"""Poses: where the joints of a drawn person are, as fractions of the standing height."""

from dataclasses import dataclass

import numpy as np

# Body measures as fractions of standing height: those of a sturdy, big-headed figure, so that at 192 px the eyes are
# still apart and the body fills about half of its box, as people in photographs do.
NECK_Y, SHOULDER_Y = -0.300, -0.262
SHOULDER_HALF_WIDTH, HIP_HALF_WIDTH = 0.122, 0.072
UPPER_ARM, FOREARM, HAND = 0.145, 0.135, 0.045
THIGH, SHIN, FOOT = 0.225, 0.205, 0.060
HEAD_HALF_WIDTH, HEAD_HALF_HEIGHT = 0.092, 0.112
HEAD_ABOVE_NECK = 0.098
EYE_APART, EYE_Y, NOSE_Y, EAR_Y = 0.040, -0.008, 0.036, 0.004


@dataclass(frozen=True)
class Figure:
    """One pose. Lengths are fractions of standing height, x to the image's right, y down, (0, 0) between the hips.

    Attributes:
        keypoints_xy: (17, 2) in COCO's order.
        hands_xy: (2, 2) finger tips, left then right.
        toes_xy: (2, 2) tips of the shoes, left then right.
        neck_xy: (2,) foot of the neck.
        head_xy: (2,) centre of the head.
        head_turn_rad: Rotation of the head in the image plane.
        from_behind: The person shows the back; left and right change sides.
        arms_behind: Whether the left and the right arm are behind the body.
        near_leg: 0 if the left leg is in front of the right one, else 1.
    """

    keypoints_xy: np.ndarray
    hands_xy: np.ndarray
    toes_xy: np.ndarray
    neck_xy: np.ndarray
    head_xy: np.ndarray
    head_turn_rad: float
    from_behind: bool
    arms_behind: tuple[bool, bool]
    near_leg: int

    def extent(self) -> tuple[np.ndarray, np.ndarray]:
        """Returns the upper left and the lower right corner (2,) of a box about the figure."""
        reach = np.concatenate([self.keypoints_xy, self.hands_xy, self.toes_xy])
        head = HEAD_HALF_HEIGHT + 0.02
        low = np.minimum(reach.min(0) - 0.045, self.head_xy - head)
        return low, np.maximum(reach.max(0) + 0.045, self.head_xy + head)


def sample_figure(rng: np.random.Generator) -> Figure:
    """Draws a pose: mostly upright, with arms hanging, bent, spread or raised, legs standing, walking or squatting."""
    from_behind = bool(rng.random() < 0.4)
    outward = np.array([-1.0, 1.0]) if from_behind else np.array([1.0, -1.0])  # image x of the left and right side
    yaw = rng.uniform(-0.5, 0.5)
    shoulders = np.stack([outward * SHOULDER_HALF_WIDTH * np.cos(yaw), np.full(2, SHOULDER_Y)], 1)
    hips = np.stack([outward * HIP_HALF_WIDTH * np.cos(yaw), np.zeros(2)], 1)
    arms = [_sample_arm(rng, shoulders[side], outward[side]) for side in (0, 1)]
    legs = _sample_legs(rng, hips, outward)
    head_turn = float(np.clip(rng.normal(0, 0.12), -0.3, 0.3))
    neck = np.array([0.0, NECK_Y])
    head = neck + HEAD_ABOVE_NECK * np.array([np.sin(head_turn), -np.cos(head_turn)])
    face = _face(outward, yaw) @ _rotation(head_turn).T + head
    joints = np.concatenate(
        [face, shoulders, *(np.stack([arms[0][i], arms[1][i]]) for i in (0, 1)), hips, legs[0], legs[1]]
    )
    lean = _sample_lean(rng)
    turn = _rotation(lean).T
    behind = tuple(bool(rng.random() < 0.1) for _ in range(2))
    return Figure(
        keypoints_xy=joints @ turn,
        hands_xy=np.stack([arms[0][2], arms[1][2]]) @ turn,
        toes_xy=legs[2] @ turn,
        neck_xy=neck @ turn,
        head_xy=head @ turn,
        head_turn_rad=head_turn + lean,
        from_behind=from_behind,
        arms_behind=(behind[0], behind[1]),
        near_leg=int(rng.integers(2)),
    )


def _rotation(angle_rad: float) -> np.ndarray:
    cosine, sine = np.cos(angle_rad), np.sin(angle_rad)
    return np.array([[cosine, -sine], [sine, cosine]])


def _sample_lean(rng: np.random.Generator) -> float:
    if rng.random() < 0.06:
        return float(rng.uniform(-0.7, 0.7))
    return float(np.clip(rng.normal(0, 0.07), -0.2, 0.2))


def _face(outward: np.ndarray, yaw: float) -> np.ndarray:
    """Returns nose, eyes and ears (5, 2) about the head's centre; a turned head shifts them to one side."""
    shift = 0.05 * np.sin(yaw)
    left, right = outward
    return np.array(
        [
            [1.3 * shift, NOSE_Y],
            [left * EYE_APART + shift, EYE_Y],
            [right * EYE_APART + shift, EYE_Y],
            [left * (HEAD_HALF_WIDTH + 0.012), EAR_Y],
            [right * (HEAD_HALF_WIDTH + 0.012), EAR_Y],
        ]
    )


def _along(start: np.ndarray, length: float, angle_rad: float, outward: float) -> np.ndarray:
    """Returns the end of a limb; the angle counts from straight down towards the person's outside."""
    return start + length * np.array([outward * np.sin(angle_rad), np.cos(angle_rad)])


def _sample_arm(
    rng: np.random.Generator, shoulder: np.ndarray, outward: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns elbow, wrist and finger tips."""
    manner = rng.random()
    if manner < 0.45:
        upper = rng.uniform(0.08, 0.5)
    elif manner < 0.8:
        upper = rng.uniform(0.5, 1.6)
    else:
        upper = rng.uniform(1.6, 2.8)
    bend_manner = rng.random()
    if bend_manner < 0.4:
        bend = rng.uniform(-0.3, 0.4)
    elif bend_manner < 0.75:
        bend = rng.uniform(0.4, 2.1)
    else:
        bend = rng.uniform(-1.9, -0.3)
    elbow = _along(shoulder, UPPER_ARM * rng.uniform(0.85, 1.0), upper, outward)
    forearm = FOREARM * rng.uniform(0.8, 1.0)
    return (
        elbow,
        _along(elbow, forearm, upper + bend, outward),
        _along(elbow, forearm + HAND, upper + bend, outward),
    )


def _sample_legs(
    rng: np.random.Generator, hips: np.ndarray, outward: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns knees, ankles and toes, each (2, 2), left then right."""
    manner = rng.random()
    thighs, bends = rng.normal(0.07, 0.06, 2), rng.uniform(-0.05, 0.2, 2)
    lengths = rng.uniform(0.92, 1.0, (2, 2))
    if 0.45 <= manner < 0.7:  # a stride towards or away from the viewer: one leg looks shorter
        lengths[int(rng.integers(2))] = rng.uniform(0.65, 0.9, 2)
    elif 0.7 <= manner < 0.85:  # legs apart
        thighs = rng.uniform(0.2, 0.6, 2)
        bends = rng.uniform(0.0, 0.5, 2)
    elif 0.85 <= manner < 0.93:  # one leg lifted sideways
        side = int(rng.integers(2))
        thighs[side], bends[side] = rng.uniform(0.6, 1.4), rng.uniform(0.2, 1.6)
    elif manner >= 0.93:  # squat
        thighs = rng.uniform(0.8, 1.25, 2)
        bends = thighs + rng.uniform(0.0, 0.3, 2)
    knees = np.stack([_along(hips[i], THIGH * lengths[i, 0], thighs[i], outward[i]) for i in (0, 1)])
    shins = thighs - bends
    ankles = np.stack([_along(knees[i], SHIN * lengths[i, 1], shins[i], outward[i]) for i in (0, 1)])
    toes = ankles + FOOT * np.stack([outward * 0.8, np.full(2, 0.35)], 1)
    return knees, ankles, toes
