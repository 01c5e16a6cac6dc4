"""How a figure becomes a picture: limbs, clothes, face and hair, painted from back to front.

Every limb is a tapered capsule with an outline whose rounded ends are centred on the joints, so that a joint is a
place that the eye can point at also in a straight limb.
"""

from dataclasses import dataclass

import cv2
import numpy as np

from posefoundry.datasets.synthetic.figure import HEAD_HALF_HEIGHT, HEAD_HALF_WIDTH, Figure
from posefoundry.datasets.synthetic.layer import Colour, Layer, Radii, capsule, ellipse, outlined_capsule, shade
from posefoundry.datasets.synthetic.outfit import Outfit
from posefoundry.skeleton import COCO_KEYPOINT_NAMES

LEFT, RIGHT = 0, 1
NOSE, LEFT_EYE, LEFT_EAR, LEFT_SHOULDER, LEFT_ELBOW, LEFT_WRIST, LEFT_HIP, LEFT_KNEE, LEFT_ANKLE = (
    COCO_KEYPOINT_NAMES.index(name)
    for name in ("nose", *(f"left_{n}" for n in ("eye", "ear", "shoulder", "elbow", "wrist", "hip", "knee", "ankle")))
)  # fmt: skip

# Radii at both ends of the limbs, as fractions of standing height.
UPPER_ARM_RADII, FOREARM_RADII, HAND_RADII = (0.046, 0.038), (0.036, 0.027), (0.024, 0.026)
THIGH_RADII, SHIN_RADII, SHOE_RADII = (0.066, 0.050), (0.047, 0.033), (0.036, 0.026)
TORSO_RADIUS, PELVIS_RADIUS, NECK_RADII = 0.042, 0.064, (0.042, 0.036)
OUTLINE, OUTLINE_SHADE = 0.008, 0.5

# How much darker the left side is than the right: what tells them apart where the face does not show.
CLOTH_SHADES, SKIN_SHADES = (0.5, 1.08), (0.86, 1.0)
EYE_WHITE, PUPIL, LIPS = (245.0, 245.0, 245.0), (30.0, 25.0, 20.0), (60.0, 50.0, 130.0)


@dataclass(frozen=True)
class PaintedPerson:
    """A person on a layer.

    Attributes:
        layer: The picture.
        keypoints_xy: (17, 2) in px, inside the image or not.
        hidden_by_self: (17,) bool: another part of the own body lies over the joint, as an arm over a hip, or the
            head of a person seen from behind over nose and eyes.
    """

    layer: Layer
    keypoints_xy: np.ndarray
    hidden_by_self: np.ndarray


def paint_person(
    figure: Figure, outfit: Outfit, *, origin_xy: np.ndarray, height_px: float, size_px: int
) -> PaintedPerson:
    """Paints a figure.

    Args:
        figure: The pose.
        outfit: The looks.
        origin_xy: (2,) place of the hips' centre in px.
        height_px: Standing height.
        size_px: Side of the square image.
    """
    return _Painter(figure, outfit, origin_xy, height_px, size_px).paint()


class _Painter:
    def __init__(self, figure: Figure, outfit: Outfit, origin_xy: np.ndarray, height_px: float, size_px: int) -> None:
        self.figure, self.outfit = figure, outfit
        self.origin_xy, self.height_px = origin_xy, height_px
        self.layer = Layer(size_px)
        self.joints = figure.keypoints_xy
        self.parts_of_joint: list[set[int]] = [set() for _ in self.joints]

    def paint(self) -> PaintedPerson:
        figure = self.figure
        if self.outfit.has_long_hair and not figure.from_behind:
            self._long_hair()
        for side in (LEFT, RIGHT):
            if figure.arms_behind[side]:
                self._arm(side)
        self._pelvis()
        self._leg(1 - figure.near_leg)
        self._leg(figure.near_leg)
        self._torso()
        self._head()
        for side in (LEFT, RIGHT):
            if not figure.arms_behind[side]:
                self._arm(side)
        keypoints_xy = self._to_px(self.joints)
        return PaintedPerson(self.layer, keypoints_xy, self._hidden_by_self(keypoints_xy))

    def _to_px(self, points: np.ndarray) -> np.ndarray:
        return self.origin_xy + self.height_px * points

    def _begin_part(self, *joints: int) -> None:
        part = self.layer.begin_part()
        for joint in joints:
            self.parts_of_joint[joint].add(part)

    def _fill(self, polygon: np.ndarray, colour: Colour, *, is_decoration: bool = False) -> None:
        self.layer.fill(self._to_px(polygon), colour, is_decoration=is_decoration)

    def _limb(self, start: np.ndarray, end: np.ndarray, radii: Radii, colour: Colour, *joints: int) -> None:
        """Paints a capsule with its outline as the next part, which the given joints belong to."""
        self._begin_part(*joints)
        outer, inner = outlined_capsule(start, end, radii, OUTLINE)
        self._fill(outer, shade(colour, OUTLINE_SHADE))
        self._fill(inner, colour, is_decoration=True)

    def _disc(self, centre: np.ndarray, half_axes: tuple[float, float], colour: Colour) -> None:
        """Paints an ellipse with its outline into the current part."""
        turn = self.figure.head_turn_rad
        grown = (half_axes[0] + OUTLINE, half_axes[1] + OUTLINE)
        self._fill(ellipse(centre, grown, turn), shade(colour, OUTLINE_SHADE))
        self._fill(ellipse(centre, half_axes, turn), colour, is_decoration=True)

    def _arm(self, side: int) -> None:
        outfit = self.outfit
        shoulder_joint, elbow_joint, wrist_joint = (j + side for j in (LEFT_SHOULDER, LEFT_ELBOW, LEFT_WRIST))
        shoulder, elbow, wrist = (self.joints[j] for j in (shoulder_joint, elbow_joint, wrist_joint))
        skin, sleeve = shade(outfit.skin, SKIN_SHADES[side]), shade(outfit.shirt, CLOTH_SHADES[side])
        self._limb(wrist, self.figure.hands_xy[side], HAND_RADII, skin, wrist_joint)
        forearm = shade(sleeve, 0.9) if outfit.has_long_sleeves else skin
        self._limb(elbow, wrist, FOREARM_RADII, forearm, elbow_joint, wrist_joint)
        across = (wrist - elbow)[::-1] * (-1, 1)
        across *= 0.02 / max(float(np.hypot(*across)), 1e-6)
        band = shade(outfit.accent, CLOTH_SHADES[side])
        self._limb(wrist - across, wrist + across, (0.011, 0.011), band, wrist_joint)
        self._limb(shoulder, elbow, UPPER_ARM_RADII, sleeve, shoulder_joint, elbow_joint)

    def _leg(self, side: int) -> None:
        outfit = self.outfit
        hip_joint, knee_joint, ankle_joint = (j + side for j in (LEFT_HIP, LEFT_KNEE, LEFT_ANKLE))
        hip, knee, ankle = (self.joints[j] for j in (hip_joint, knee_joint, ankle_joint))
        cloth, skin = shade(outfit.trousers, CLOTH_SHADES[side]), shade(outfit.skin, SKIN_SHADES[side])
        shin = shade(cloth, 0.88) if outfit.has_long_trousers else skin
        shoe = shade(outfit.shoes, CLOTH_SHADES[side])
        self._limb(knee, ankle, SHIN_RADII, shin, knee_joint, ankle_joint)
        self._limb(ankle, self.figure.toes_xy[side], SHOE_RADII, shoe, ankle_joint)
        self._limb(hip, knee, THIGH_RADII, cloth, hip_joint, knee_joint)

    def _pelvis(self) -> None:
        left, right = self.joints[LEFT_HIP], self.joints[LEFT_HIP + RIGHT]
        radii = (PELVIS_RADIUS, PELVIS_RADIUS)
        self._limb(left, right, radii, self.outfit.trousers, LEFT_HIP, LEFT_HIP + RIGHT)

    def _torso(self) -> None:
        """Paints the shirt from the shoulders to a hem that runs through both hip joints, and the belt."""
        joints = (LEFT_SHOULDER, LEFT_SHOULDER + RIGHT, LEFT_HIP, LEFT_HIP + RIGHT)
        left, right, left_hip, right_hip = (self.joints[joint] for joint in joints)
        self._begin_part(*joints)
        sideways = (left_hip - right_hip) / max(float(np.hypot(*(left_hip - right_hip))), 1e-6)
        for grow, factor in ((OUTLINE, OUTLINE_SHADE), (0.0, 1.0)):
            radius, hem = TORSO_RADIUS + grow, (PELVIS_RADIUS + grow) * sideways
            corners = [
                *ellipse(left, (radius, radius)),
                *ellipse(right, (radius, radius)),
                left_hip + hem,
                right_hip - hem,
            ]
            hull = cv2.convexHull(np.array(corners, np.float32))[:, 0]
            self._fill(hull, shade(self.outfit.shirt, factor), is_decoration=factor == 1.0)
        if self.outfit.has_stripes:
            for depth in (0.3, 0.5, 0.7):
                ends = left + depth * (left_hip - left), right + depth * (right_hip - right)
                self._fill(capsule(*ends, (0.014, 0.014)), self.outfit.accent, is_decoration=True)
        reach = 0.8 * PELVIS_RADIUS * sideways
        belt = capsule(left_hip + reach, right_hip - reach, (0.012, 0.012))
        self._fill(belt, shade(self.outfit.shoes, 0.35))

    def _head(self) -> None:
        figure, outfit = self.figure, self.outfit
        self._limb(figure.neck_xy, figure.head_xy, NECK_RADII, shade(outfit.skin, 0.9))
        for ear in (LEFT_EAR, LEFT_EAR + RIGHT):
            self._begin_part(ear)
            self._disc(self.joints[ear], (0.022, 0.028), shade(outfit.skin, 0.95))
        ears = (LEFT_EAR, LEFT_EAR + RIGHT)  # beside the head: its edge does not hide them
        size = (HEAD_HALF_WIDTH, HEAD_HALF_HEIGHT)
        if figure.from_behind:
            self._begin_part(*ears)
            self._disc(figure.head_xy, size, outfit.hair)
            if outfit.has_long_hair:
                self._long_hair()
        else:
            self._begin_part(*ears, NOSE, LEFT_EYE, LEFT_EYE + RIGHT)
            self._disc(figure.head_xy, size, outfit.skin)
            self._fringe()
            self._face()

    def _fringe(self) -> None:
        """Paints hair over the upper part of a head seen from the front."""
        grown = (HEAD_HALF_WIDTH + 1.5 * OUTLINE, HEAD_HALF_HEIGHT + 1.5 * OUTLINE)
        whole = ellipse(self.figure.head_xy, grown, self.figure.head_turn_rad)
        upper = np.arange(13, 23)  # of the 24 corners, clockwise from the right
        self._fill(whole[upper], self.outfit.hair)

    def _long_hair(self) -> None:
        centre, neck = self.figure.head_xy, self.figure.neck_xy
        self._begin_part()
        tip = neck + 0.35 * (neck - centre)
        self._fill(capsule(centre, tip, (0.112, 0.085)), shade(self.outfit.hair, 0.8))

    def _face(self) -> None:
        turn = self.figure.head_turn_rad
        nose = self.joints[NOSE]
        for eye in (self.joints[LEFT_EYE], self.joints[LEFT_EYE + RIGHT]):
            self._fill(ellipse(eye, (0.023, 0.019), turn), EYE_WHITE, is_decoration=True)
            self._fill(ellipse(eye, (0.013, 0.015), turn), PUPIL, is_decoration=True)
        self._fill(ellipse(nose, (0.013, 0.019), turn), shade(self.outfit.skin, 0.62), is_decoration=True)
        mouth = nose + 0.038 * np.array([-np.sin(turn), np.cos(turn)])
        self._fill(ellipse(mouth, (0.030, 0.008), turn), LIPS, is_decoration=True)

    def _hidden_by_self(self, keypoints_xy: np.ndarray) -> np.ndarray:
        size_px = len(self.layer.parts)
        hidden = np.zeros(len(keypoints_xy), bool)
        for joint, (x, y) in enumerate(np.floor(keypoints_xy).astype(int).tolist()):
            if 0 <= x < size_px and 0 <= y < size_px:
                hidden[joint] = int(self.layer.parts[y, x]) not in self.parts_of_joint[joint]
        return hidden
