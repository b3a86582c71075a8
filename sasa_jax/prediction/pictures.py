"""Pictures of predictions."""

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from sasa_jax.analysis import DetectedImage, classes_figure, detections_figure
from sasa_jax.data.image_transforms import decode
from sasa_jax.prediction.classification import Classified
from sasa_jax.prediction.detection import Detected


def draw(file: Path, result: Classified | Detected, target: Path, *, min_score: float) -> None:
    """Writes a PNG of the image with its classes beside it, or its boxes in it.

    Args:
        file: the image.
        result: what was predicted for it.
        target: where the picture goes; folders are made as needed.
        min_score: of the boxes, for the legend.
    """
    image = decode(file.read_bytes())
    if isinstance(result, Classified):
        figure = classes_figure(image, result.names, result.scores)
    else:
        boxes = np.reshape(result.boxes, (-1, 4))
        found = DetectedImage(
            image, np.zeros((0, 4)), (), boxes, result.names, np.array(result.scores)
        )
        figure = detections_figure([found], threshold=min_score)
    target.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(target, dpi=300)


def picture_paths(files: Sequence[Path], folder: Path) -> dict[Path, Path]:
    """A file for each image, laid out as they are: "a/1.jpg" and "b/1.jpg" keep their folders."""
    whole = [file.absolute() for file in files]
    common = os.path.commonpath([file.parent for file in whole])
    return {
        file: folder / f"{path.relative_to(common)}.png"
        for file, path in zip(files, whole, strict=True)
    }
