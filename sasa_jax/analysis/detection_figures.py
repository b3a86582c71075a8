"""Pictures of what a detector found, beside what is there."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.patheffects import withStroke

from sasa_jax.analysis.figures import COLOURS

_CELL = 3.0  # inches of one image's longer side


class DetectedImage(NamedTuple):
    """One image with its boxes, (top, left, bottom, right) in its own pixels.

    Attributes:
        image: uint8 [H, W, 3].
        true_boxes: float [G, 4], drawn dashed and white.
        true_names: G class names.
        boxes: float [D, 4], drawn in colour, one for each class.
        names: D class names.
        scores: float [D], 0 to 1.
    """

    image: np.ndarray
    true_boxes: np.ndarray
    true_names: Sequence[str]
    boxes: np.ndarray
    names: Sequence[str]
    scores: np.ndarray


def detections_figure(
    shown: Sequence[DetectedImage], *, threshold: float = 0.3, title: str = "", columns: int = 4
) -> Figure:
    """A grid of images; predicted boxes above the threshold in colour, true ones dashed in white.

    Raises:
        ValueError: no image to show.
    """
    if not shown:
        raise ValueError("nothing to show: give at least one image")
    columns = min(columns, len(shown))
    rows = math.ceil(len(shown) / columns)
    figure = Figure(figsize=(columns * _CELL, rows * _CELL + 0.5), layout="constrained")
    legend = f"found, with scores from {threshold:g}"
    if any(len(item.true_boxes) for item in shown):
        legend = f"dashed: true, colour: {legend}"
    figure.suptitle(f"{title}; {legend}" if title else legend, fontsize=9)
    names = sorted({name for item in shown for name in (*item.names, *item.true_names)})
    colour_of = {name: COLOURS[index % len(COLOURS)] for index, name in enumerate(names)}
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes in grid.flat:
        axes.axis("off")
    for axes, item in zip(grid.flat, shown, strict=False):
        axes.imshow(item.image, interpolation="nearest")
        for box in item.true_boxes:
            _draw_box(axes, box, "white", linestyle="--", linewidth=1)
        order = np.argsort(item.scores)  # the surest on top
        for index in order[item.scores[order] >= threshold]:
            colour = colour_of[item.names[index]]
            _draw_box(axes, item.boxes[index], colour, linewidth=1.6)
            axes.text(
                item.boxes[index][1],
                item.boxes[index][0],
                f"{item.names[index]} {item.scores[index]:.2f}",
                color=colour,
                fontsize=7,
                va="bottom",
                clip_on=True,
                path_effects=[withStroke(linewidth=2, foreground="black")],
            )
    return figure


def _draw_box(axes: Axes, box: np.ndarray, colour: str, **style: object) -> None:
    top, left, bottom, right = box
    # imshow puts the centre of the first pixel, and not its corner, at 0.
    corner = left - 0.5, top - 0.5
    axes.add_patch(
        Rectangle(corner, right - left, bottom - top, fill=False, edgecolor=colour, **style)
    )
