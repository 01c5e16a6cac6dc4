"""Synthetic people: images drawn with exact keypoints, to train and test on where there are no photographs."""

from posefoundry.datasets.synthetic.scene import SPLITS, DrawnImage, draw_image

__all__ = ["SPLITS", "DrawnImage", "draw_image"]
