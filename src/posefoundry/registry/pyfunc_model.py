"""The registered model as MLflow runs it: pixels or paths in, persons with boxes and keypoints out.

    model = mlflow.pyfunc.load_model("models:/posefoundry@production")
    model.predict("street.jpg", params={"confidence": 0.4})

Input, one image or several:

- a path, or the file itself as `data:image/jpeg;base64,...` (for REST clients), or a list of these;
- an image (H, W, 3) uint8 **RGB**, a batch (N, H, W, 3), or a list of images of any sizes;
- a pandas Series of these, or a DataFrame with one column or a column `image`.

Output: a list with one entry an image, also for a single image:

    {"image_size_hw": [480, 640],
     "persons": [{"bbox_xyxy": [x1, y1, x2, y2], "score": 0.93, "class": "person",
                  "keypoints_xyv": [[x, y, confidence], ...]}]}

Coordinates are pixels of the given image. MLflow keeps this file with the model and runs it from there.
"""

import base64
import binascii
from pathlib import Path
from typing import Any

import mlflow
import numpy as np

from posefoundry.errors import PosefoundryError


class PosePrediction:
    """Loads the ONNX artifact and predicts.

    Not itself a `PythonModel`: MLflow wraps `predict` of those in a check of the type hint, which would refuse
    arrays. Inherited from here, the hint still gives the model its signature.
    """

    def load_context(self, context: Any) -> None:
        """Opens the ONNX model; called once by `mlflow.pyfunc.load_model`."""
        from posefoundry.inference.backends import load_backend

        self.backend = load_backend(Path(context.artifacts["onnx"]))

    def predict(
        self, context: Any, model_input: list[Any], params: dict[str, Any] | None = None
    ) -> list[dict[str, Any]]:
        """Finds the persons in each image.

        Args:
            context: MLflow's; the artifacts were opened by `load_context`.
            model_input: Images or paths in any of the forms above.
            params: `confidence` and `nms_iou`.

        Raises:
            PosefoundryError: An input is none of the forms above, or a file cannot be read as an image.
        """
        from posefoundry.inference.predictor import Predictor

        results = Predictor(self.backend, **(params or {})).predict(images_of(model_input))
        class_names = self.backend.info.class_names
        return [
            {
                "image_size_hw": [int(side) for side in result.image_size_hw],
                "persons": [
                    {
                        "bbox_xyxy": [float(value) for value in box],
                        "score": float(score),
                        "class": class_names[int(class_id)],
                        "keypoints_xyv": [[float(value) for value in point] for point in keypoints],
                    }
                    for box, score, class_id, keypoints in zip(
                        result.boxes_xyxy, result.scores, result.class_ids, result.keypoints_xyv, strict=True
                    )
                ],
            }
            for result in results
        ]


class PosePythonModel(PosePrediction, mlflow.pyfunc.PythonModel):
    """What `mlflow.pyfunc.load_model` returns, unwrapped."""


def images_of(model_input: Any) -> list[np.ndarray | Path]:
    """Brings every accepted form of input to a list of paths and images (H, W, 3) uint8 BGR.

    Raises:
        PosefoundryError: The input is none of them.
    """
    if hasattr(model_input, "columns"):  # a DataFrame; pandas itself need not be imported for that
        columns = list(model_input.columns)
        if len(columns) != 1 and "image" not in columns:
            raise PosefoundryError(f"Expected a DataFrame with one column, or with a column 'image', got {columns}.")
        model_input = model_input["image" if "image" in columns else columns[0]]
    if hasattr(model_input, "tolist") and (not isinstance(model_input, np.ndarray) or model_input.dtype.kind in "OUS"):
        model_input = model_input.tolist()
    if isinstance(model_input, str | Path):
        return [_path_or_content(model_input)]
    if isinstance(model_input, list | tuple):
        if not model_input:
            return []
        if _depth(model_input) != 3:
            return [image for item in model_input for image in images_of(item)]
    return _images_of_array(model_input)


def _images_of_array(pixels: Any) -> list[np.ndarray | Path]:
    array = np.asarray(pixels)
    if array.ndim not in (3, 4) or array.shape[-1] != 3 or 0 in array.shape:
        raise PosefoundryError(
            f"Expected an image (H, W, 3) or a batch (N, H, W, 3), RGB, got an array of shape {array.shape}."
        )
    if array.dtype != np.uint8:
        # JSON has no uint8: what a server receives are plain whole numbers.
        if array.dtype.kind not in "iu" or array.min() < 0 or array.max() > 255:
            raise PosefoundryError(f"Expected pixels uint8, 0 to 255, got {array.dtype}. Convert the image first.")
        array = array.astype(np.uint8)
    batch_rgb = array if array.ndim == 4 else array[None]
    return [np.ascontiguousarray(image_rgb[..., ::-1]) for image_rgb in batch_rgb]


def _path_or_content(text: str | Path) -> np.ndarray | Path:
    if not str(text).startswith("data:image/"):
        return Path(text)
    from posefoundry.inference.images import decode_image_bgr

    try:
        content = base64.b64decode(str(text).partition(",")[2], validate=True)
    except binascii.Error as error:
        raise PosefoundryError(f"Expected an image as data:image/...;base64,..., got broken base64: {error}.") from None
    return decode_image_bgr(content, "the given image")


def _depth(nested: Any) -> int:
    """Counts how deep lists of plain numbers are nested; arrays, paths and strings count as no list."""
    depth = 0
    while isinstance(nested, list | tuple) and nested:
        nested = nested[0]
        depth += 1
    return depth if isinstance(nested, int | float) else 0


mlflow.models.set_model(PosePythonModel())
