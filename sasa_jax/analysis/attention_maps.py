"""Pictures of what the heads look at, for a few pixels of one image.

    logits, attention = model(images, return_attention=True)
    of_first = {layer: weights[0] for layer, weights in attention.items()}
    save_attention_figure("maps.png", first_image, of_first)

`attention_figure` returns the matplotlib Figure instead, for notebooks. There is no pyplot here, so
nothing is shown or kept behind the caller's back.
"""

import os
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.patheffects import withStroke

from sasa_jax.analysis.attention_windows import QueryWindow, pick_queries, query_window
from sasa_jax.analysis.figures import COLOURS
from sasa_jax.checks import nearest

COLOUR_MAP = "viridis"  # even in lightness, so it is read without colour vision too

# Inches.
_CELL = 0.78  # a heat map
_STEP = _CELL + 0.08  # from one to the next
_PICTURE = 4.2
_MARGIN = 0.3
_HEADING = 0.62  # over each layer
_CROP_GAP = 0.15  # between the crop and the first head
_COLOUR_BAR = 0.75
_NOTES = 2.2  # title and notes, over and under the picture

_READING = (
    "Numbers: the query pixels, with the windows of the layers shown.\n"
    "Each row: what lies in the window, then every head's weights over it.\n"
    "White square: the query itself. Hatched: outside the image.\n"
    "Colour: weight, on a square-root scale of its own for each layer;\n"
    "the dashed line is where all weights would be if spread evenly."
)
_LABEL = dict(fontsize=12, fontweight="bold", ha="center", va="center")


def save_attention_figure(
    path: str | os.PathLike[str],
    image: np.ndarray,
    attention: Mapping[str, Any],
    *,
    queries: Sequence[tuple[int, int]] | None = None,
    layers: Sequence[str] | None = None,
    heads: Sequence[int] | None = None,
    title: str = "",
) -> None:
    """Writes one picture; the arguments of `attention_figure`.

    PNG unless `path` ends in .svg or .pdf, where words stay words and lines lines.
    """
    figure = attention_figure(
        image, attention, queries=queries, layers=layers, heads=heads, title=title
    )
    with rc_context({"svg.fonttype": "none"}):
        figure.savefig(path, dpi=150)


def attention_figure(
    image: np.ndarray,
    attention: Mapping[str, Any],
    *,
    queries: Sequence[tuple[int, int]] | None = None,
    layers: Sequence[str] | None = None,
    heads: Sequence[int] | None = None,
    title: str = "",
) -> Figure:
    """The image with a few query pixels, and for each layer every head's weights over the window.

    Args:
        image: uint8 [H, W, 3].
        attention: weights by layer, as a model returns them, of this image alone: [H', W', N, K,
            K], in the attention stem [H/4, W/4, N, 16, 16].
        queries: (row, column) of pixels of `image`; None takes three where the image has edges.
        layers: names from `attention`, in the order to show; None takes at most four, from the
            first to the last.
        heads: numbers from 1, in the order to show; None takes all of every layer.
        title: stands over the image.

    Raises:
        TypeError: the image is not uint8.
        ValueError: a wrong shape, a query outside the image, an unknown layer, a head that a layer
            does not have.
    """
    image = np.asarray(image)
    if image.dtype != np.uint8:
        raise TypeError(f"image must be uint8, got {image.dtype}: undo the normalisation first")
    if image.ndim != 3 or image.shape[-1] != 3:
        raise ValueError(f"image must be [H, W, 3], got {list(image.shape)}")
    queries = pick_queries(image) if queries is None else list(queries)
    layers = _pick_layers(attention) if layers is None else list(layers)
    for layer in layers:
        if layer not in attention:
            raise ValueError(
                f"layers: the attention has no {layer!r}{nearest(layer, attention)}; it has "
                f"{', '.join(attention)}"
            )
        most = np.shape(attention[layer])[2]
        for head in heads or ():
            if not 1 <= head <= most:
                raise ValueError(f"heads: {layer} has the {most} heads 1 to {most} and no {head}")
    if not (queries and layers):
        raise ValueError(f"nothing to show: {len(queries)} queries, {len(layers)} layers")
    windows = {
        layer: [query_window(attention[layer], query, image.shape[:2]) for query in queries]
        for layer in layers
    }
    return _draw(image, windows, queries, heads, title)


def _pick_layers(attention: Mapping[str, Any], most: int = 4) -> list[str]:
    # jax.jit returns dicts sorted by key; the network's order is the stem, then the groups.
    names = sorted(attention, key=lambda name: (name != "stem", name))
    if len(names) <= most:
        return names
    return [names[round(k)] for k in np.linspace(0, len(names) - 1, most)]


class _Canvas:
    """A figure on which things are placed by hand, in inches from the top left.

    By hand so that the cells of all layers stand in line, whatever their numbers of heads.
    """

    def __init__(self, width: float, height: float):
        self.width, self.height = width, height
        self.figure = Figure(figsize=(width, height), facecolor="white")

    def axes(self, x: float, y: float, width: float, height: float) -> Axes:
        bottom = 1 - (y + height) / self.height
        size = width / self.width, height / self.height
        axes = self.figure.add_axes((x / self.width, bottom, *size))
        axes.set_xticks([])
        axes.set_yticks([])
        return axes

    def text(self, x: float, y: float, words: str, **style: Any) -> None:
        style = {"va": "top", "color": "0.3"} | style
        self.figure.text(x / self.width, 1 - y / self.height, words, **style)


def _draw(
    image: np.ndarray,
    windows: Mapping[str, Sequence[QueryWindow]],
    queries: Sequence[tuple[int, int]],
    heads: Sequence[int] | None,
    title: str,
) -> Figure:
    """The picture on the left, one block of heat maps for each layer on the right."""
    most_heads = len(heads or ()) or max(len(shown[0].weights) for shown in windows.values())
    left = _MARGIN + _PICTURE + 0.7
    block = _HEADING + len(queries) * _STEP
    picture_height = _PICTURE * min(image.shape[0] / image.shape[1], 2)
    canvas = _Canvas(
        width=left + (most_heads + 1) * _STEP + _CROP_GAP + _COLOUR_BAR + _MARGIN,
        height=_MARGIN + max(len(windows) * block, picture_height + _NOTES) + _MARGIN,
    )
    title_lines = textwrap.wrap(title or "Attention", 44)
    bold = dict(fontweight="bold", color="black")
    canvas.text(_MARGIN, _MARGIN, "\n".join(title_lines), fontsize=13, **bold)
    top = _MARGIN + 0.15 + 0.25 * len(title_lines)
    _draw_picture(canvas.axes(_MARGIN, top, _PICTURE, picture_height), image, windows, queries)
    notes_top = top + picture_height + 0.2
    canvas.text(_MARGIN, notes_top, _READING, fontsize=8.5, linespacing=1.6)
    for index, (layer, shown) in enumerate(windows.items()):
        top = _MARGIN + index * block
        canvas.text(left, top, layer, fontsize=11, **bold)
        _draw_layer(canvas, left, top, image, shown, heads)
    return canvas.figure


def _draw_layer(
    canvas: _Canvas,
    left: float,
    top: float,
    image: np.ndarray,
    shown: Sequence[QueryWindow],
    heads: Sequence[int] | None,
) -> None:
    all_heads, size, _ = shown[0].weights.shape
    heads = heads or range(1, all_heads + 1)
    pixels = shown[0].box[2] / size
    about = f"window {size}x{size}, one slot is {pixels:g} pixel{'s' if pixels != 1 else ''}"
    canvas.text(left + 2 * _STEP, top + 0.02, about, fontsize=9)
    places = [left + _CROP_GAP + (place + 1) * _STEP for place in range(len(heads) + 1)]
    for head, x in zip(heads, places, strict=False):
        canvas.text(x + _CELL / 2, top + 0.32, f"head {head}", fontsize=8, ha="center")
    top += _HEADING - 0.12
    # Square root: a head may look at one slot or, nearly evenly, at all K^2.
    scale = PowerNorm(0.5, vmin=0, vmax=max(float(window.weights.max()) for window in shown))
    for number, window in enumerate(shown):
        y = top + number * _STEP
        colour = COLOURS[number % len(COLOURS)]
        label = {**_LABEL, "color": colour}
        canvas.text(left - 0.2, y + _CELL / 2, str(number + 1), **label)
        _draw_crop(canvas.axes(left, y, _CELL, _CELL), image, window, colour)
        for head, x in zip(heads, places, strict=False):
            _draw_map(canvas.axes(x, y, _CELL, _CELL), window.weights[head - 1], window, scale)
    bar = canvas.axes(places[-1] + 0.05, top, 0.1, (len(shown) - 1) * _STEP + _CELL)
    canvas.figure.colorbar(ScalarMappable(scale, COLOUR_MAP), cax=bar)
    bar.tick_params(labelsize=8, length=2)
    bar.axhline(1 / size**2, color="white", linestyle="--", linewidth=1)


def _draw_picture(
    axes: Axes,
    image: np.ndarray,
    windows: Mapping[str, Sequence[QueryWindow]],
    queries: Sequence[tuple[int, int]],
) -> None:
    axes.imshow(image, extent=(0, image.shape[1], image.shape[0], 0), interpolation="nearest")
    outline = [withStroke(linewidth=3, foreground="black")]
    for number, (row, column) in enumerate(queries):
        colour = COLOURS[number % len(COLOURS)]
        for shown in windows.values():
            top, left, height, width = shown[number].box
            axes.add_patch(
                Rectangle((left, top), width, height, fill=False, edgecolor=colour, linewidth=1.2)
            )
        axes.text(
            column + 0.5, row + 0.5, str(number + 1), color=colour, path_effects=outline, **_LABEL
        )


def _draw_crop(axes: Axes, image: np.ndarray, window: QueryWindow, colour: str) -> None:
    """What lies in the window, at the same places as in the maps."""
    top, left, height, width = window.box
    axes.set_facecolor("0.85")
    axes.imshow(image, extent=(0, image.shape[1], image.shape[0], 0), interpolation="nearest")
    axes.set_xlim(left, left + width)
    axes.set_ylim(top + height, top)
    for spine in axes.spines.values():
        spine.set(edgecolor=colour, linewidth=2)
    slot = height / len(window.inside), width / len(window.inside)
    corner = left + window.query[1] * slot[1], top + window.query[0] * slot[0]
    _mark_query(axes, corner, slot[1], slot[0])


def _draw_map(axes: Axes, weights: np.ndarray, window: QueryWindow, scale: PowerNorm) -> None:
    axes.imshow(weights, cmap=COLOUR_MAP, norm=scale, interpolation="nearest")
    for y, x in np.argwhere(~window.inside):
        axes.add_patch(
            Rectangle((x - 0.5, y - 0.5), 1, 1, fill=False, hatch="////", edgecolor="0.7", lw=0)
        )
    _mark_query(axes, (window.query[1] - 0.5, window.query[0] - 0.5), 1, 1)
    axes.spines[:].set_visible(False)


def _mark_query(axes: Axes, corner: tuple[float, float], width: float, height: float) -> None:
    outline = [withStroke(linewidth=2.4, foreground="black")]
    axes.add_patch(
        Rectangle(
            corner, width, height, fill=False, edgecolor="white", lw=1.2, path_effects=outline
        )
    )
