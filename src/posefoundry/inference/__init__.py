"""One Predictor over several runtimes: images in, persons with keypoints out."""
