"""Pictures of what a classifier says."""

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from sasa_jax.analysis.figures import COLOURS

_HEIGHT = 3.0  # inches


def classes_figure(
    image: np.ndarray, names: Sequence[str], scores: Sequence[float], *, title: str = ""
) -> Figure:
    """The image, and beside it a bar for each class, in the order given.

    Args:
        image: uint8 [H, W, 3].
        names: K class names, the best first.
        scores: K probabilities, 0 to 1.
        title: stands over both.
    """
    aspect = min(max(image.shape[1] / image.shape[0], 0.5), 2.0)
    widths = _HEIGHT * aspect, _HEIGHT
    figure = Figure(figsize=(sum(widths), _HEIGHT), layout="constrained")
    picture, bars = figure.subplots(1, 2, width_ratios=widths)
    picture.imshow(image, interpolation="nearest")
    picture.axis("off")
    places = np.arange(len(names))
    bars.barh(places, scores, color=[COLOURS[0]] + [COLOURS[1]] * (len(names) - 1), height=0.8)
    for place, name, score in zip(places, names, scores, strict=True):
        bars.text(0.02, place, f"{name} {score:.3f}", va="center", fontsize=9)
    bars.set_xlim(0, 1)
    bars.set_ylim(max(len(names), 5) - 0.5, -0.5)
    bars.set_yticks([])
    bars.set_xticks([0, 0.5, 1])
    bars.tick_params(labelsize=7)
    bars.spines[["top", "right", "left"]].set_visible(False)
    if title:
        figure.suptitle(title, fontsize=9)
    return figure
