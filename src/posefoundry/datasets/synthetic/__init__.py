"""Synthetic people: images drawn with exact keypoints, to train and test on where there are no photographs."""

from posefoundry.datasets.synthetic.scene import DrawnImage, draw_image

__all__ = ["DrawnImage", "draw_image"]
