"""The library that people of YOLO know: `YOLO`, its verbs and its results."""
