"""The objects in an image."""

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

import jax
import numpy as np

from sasa_jax.detection import Detections
from sasa_jax.models import Variables
from sasa_jax.prediction.predictor import Image, Predictor


@dataclasses.dataclass(frozen=True)
class Detected:
    """The objects found in one image, best first.

    Attributes:
        names: of their classes.
        indices: the numbers of the classes' logits, from 0.
        scores: 0 to 1.
        boxes: (top, left, bottom, right), in pixels of the image as it came.
    """

    names: tuple[str, ...]
    indices: tuple[int, ...]
    scores: tuple[float, ...]
    boxes: tuple[tuple[float, float, float, float], ...]


class DetectionPredictor(Predictor):
    """Attributes as `Predictor`."""

    inputs: ClassVar[tuple[str, ...]] = ("image", "scale", "size")

    def __call__(
        self,
        images: Image | Iterable[Image],
        *,
        max_detections: int | None = None,
        min_score: float = 0.0,
        batch_size: int = 32,
    ) -> list[Detected]:
        """Finds objects in images.

        Args:
            images: one or several: files, their contents, or pixels uint8 [H, W, 1 or 3], RGB.
            max_detections: the best so many of each image; None is all that the evaluation takes,
                `config["decoding"]["max_detections"]` at most.
            min_score: 0 to 1; the evaluation takes those above
                `config["decoding"]["score_threshold"]`.
            batch_size: images at a time.

        Returns:
            One result for each image, in order.

        Raises:
            ImageError: an image that cannot be read.
            ValueError: a number that is not allowed.
        """
        return self._call(images, batch_size, max_detections=max_detections, min_score=min_score)

    def _check_options(
        self, *, max_detections: int | None = None, min_score: float = 0.0
    ) -> dict[str, Any]:
        if max_detections is not None and max_detections < 1:
            raise ValueError(f"max_detections must be at least 1, got {max_detections}")
        if not 0 <= min_score <= 1:
            raise ValueError(f"min_score must be between 0 and 1, got {min_score}")
        return {"max_detections": max_detections, "min_score": min_score}

    def _outputs(self, variables: Variables, batch: dict[str, jax.Array]) -> Any:
        return self.task.detect(variables, batch["image"], batch["size"])

    def _result(
        self,
        outputs: Detections,
        example: Mapping[str, np.ndarray],
        *,
        max_detections: int | None,
        min_score: float,
    ) -> Detected:
        found = [
            slot
            for slot in range(int(outputs.count))
            if outputs.scores[slot] >= min_score and self.class_names[outputs.classes[slot]]
        ][:max_detections]
        boxes = outputs.boxes[found].astype(np.float64) / np.float64(example["scale"])
        indices = tuple(outputs.classes[found].tolist())
        return Detected(
            names=tuple(self.class_names[index] for index in indices),
            indices=indices,
            scores=tuple(outputs.scores[found].tolist()),
            boxes=tuple(map(tuple, boxes.tolist())),
        )
