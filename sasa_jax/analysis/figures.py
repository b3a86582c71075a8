"""What figures share."""

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

COLOURS = ("#E69F00", "#56B4E9", "#D55E00", "#CC79A7", "#F0E442", "#009E73")  # Okabe and Ito


def figure_pixels(figure: Figure, dpi: int = 150) -> np.ndarray:
    """The figure drawn, uint8 [H, W, 3]."""
    figure.set_dpi(dpi)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()
