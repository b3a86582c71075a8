"""The classes of an image."""

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

import jax
import numpy as np

from sasa_jax.models import Variables
from sasa_jax.prediction.predictor import Image, Predictor


@dataclasses.dataclass(frozen=True)
class Classified:
    """The best classes of one image, best first.

    Attributes:
        names: of the classes.
        indices: their logits' numbers, from 0.
        scores: their probabilities, 0 to 1; over all classes they sum to 1.
    """

    names: tuple[str, ...]
    indices: tuple[int, ...]
    scores: tuple[float, ...]


class ClassificationPredictor(Predictor):
    """Attributes as `Predictor`."""

    static_options: ClassVar[tuple[str, ...]] = ("top_k",)

    def __call__(
        self, images: Image | Iterable[Image], *, top_k: int = 5, batch_size: int = 32
    ) -> list[Classified]:
        """Classifies images.

        Args:
            images: one or several: files, their contents, or pixels uint8 [H, W, 1 or 3], RGB.
            top_k: classes to give; all where there are fewer.
            batch_size: images at a time.

        Returns:
            One result for each image, in order.

        Raises:
            ImageError: an image that cannot be read.
            ValueError: a number that is not allowed.
        """
        return self._call(images, batch_size, top_k=top_k)

    def _check_options(self, *, top_k: int = 5) -> dict[str, Any]:
        if top_k < 1:
            raise ValueError(f"top_k must be at least 1, got {top_k}")
        return {"top_k": min(top_k, len(self.class_names))}

    def _outputs(self, variables: Variables, batch: dict[str, jax.Array], *, top_k: int) -> Any:
        logits = self.task.predict(variables, batch["image"])
        # Of the logits, as the evaluation takes them: scores may tie where they round to 0 or 1.
        classes = jax.lax.top_k(logits, top_k)[1]
        return classes, jax.numpy.take_along_axis(jax.nn.softmax(logits), classes, axis=1)

    def _result(self, outputs: Any, example: Mapping[str, np.ndarray], *, top_k: int) -> Classified:
        classes, scores = (x.tolist() for x in outputs)
        return Classified(
            names=tuple(self.class_names[index] for index in classes),
            indices=tuple(classes),
            scores=tuple(scores),
        )
