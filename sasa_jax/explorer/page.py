"""The page: one HTML file with style, script and data inside, that needs no network."""

import base64
import functools
import html
import json
import os
from importlib import resources
from pathlib import Path
from string import Template
from typing import Any

import numpy as np
from matplotlib import colormaps

from sasa_jax.analysis.attention_maps import COLOUR_MAP
from sasa_jax.analysis.attention_windows import pick_queries
from sasa_jax.data import MEAN_RGB, STD_RGB
from sasa_jax.explorer.explanation import Explanation
from sasa_jax.explorer.network import (
    attention_layers,
    position_logits,
    relative_tables,
    stages,
    stem_logits,
)
from sasa_jax.explorer.packing import pack, pack_codes, quantise
from sasa_jax.nn import AttentionStem

# Signed numbers; like `COLOUR_MAP` it is read without colour vision.
SIGNED_COLOUR_MAP = "PuOr"

# Steps that a weight and a coordinate of a position's logits (to either side of 0) are stored in,
# and bytes of data above which fewer are tried.
LEVELS = ((128, 63), (128, 15), (64, 15), (32, 15))
DATA_SIZE = 4_800_000

SCRIPTS = ("data.js", "reach.js", "draw.js", "panels.js", "main.js")


def write_page(path: str | os.PathLike[str], explanation: Explanation) -> int:
    """Writes the page; returns its size in bytes.

    Raises:
        OSError: the file cannot be written.
    """
    return Path(path).write_bytes(build_page(explanation).encode())


def build_page(explanation: Explanation) -> str:
    """The page's HTML; large ones have coarser weights, and say so."""
    image = {"image": pack(explanation.image.transpose(2, 0, 1))}
    weights = functools.cache(functools.partial(packed_weights, explanation))  # takes seconds
    for levels, position_levels in LEVELS:
        positions, steps = packed_positions(explanation, position_levels)
        data = image | weights(levels) | positions
        if sum(map(len, data.values())) <= DATA_SIZE:
            break
    files = resources.files("sasa_jax.explorer") / "static"
    script = "\n".join((files / name).read_text("utf-8") for name in SCRIPTS)
    return Template((files / "page.html").read_text("utf-8")).substitute(
        title=html.escape(explanation.title or "an image"),
        style=(files / "page.css").read_text("utf-8"),
        # Inside a script element only "<" could end it.
        levels=levels,
        about=json.dumps(
            describe(explanation) | {"levels": levels, "positionSteps": steps},
            separators=(",", ":"),
        ).replace("<", "\\u003c"),
        data="\n".join(
            f'<script type="text/plain" data-name="{html.escape(name)}">{text}</script>'
            for name, text in data.items()
        ),
        script=script,
    )


def notebook_frame(explanation: Explanation, height: int = 900) -> str:
    """The page inside an iframe, for `IPython.display.HTML`."""
    page = html.escape(build_page(explanation))
    return f'<iframe srcdoc="{page}" width="100%" height="{height}" style="border:0"></iframe>'


def packed_weights(explanation: Explanation, levels: int) -> dict[str, str]:
    """The layers' weights, in so many steps; see `packing`.

    The stem's are not among them: the page computes them from the pixels and `stem_logits`, which
    is shorter and exact.
    """
    data = {}
    for name, weights in explanation.attention.items():
        if not _is_stem(name):
            codes, tops = quantise(weights, levels)
            data[f"{name} codes"], data[f"{name} tops"] = pack_codes(codes), pack(tops)
    return data


def packed_positions(
    explanation: Explanation, levels: int
) -> tuple[dict[str, str], dict[str, list[float]]]:
    """The coordinates of `position_logits`, in so many steps to either side of 0.

    Returns:
        The arrays, and the size of a step of every head by layer.
    """
    layers, data, steps = attention_layers(explanation.model), {}, {}
    for name, query in explanation.queries.items():
        _, coordinates = position_logits(layers[name], query)
        step = np.abs(coordinates).max(axis=(1, 2, 3)) / levels + 1e-9
        codes = np.rint(coordinates / step[:, None, None, None]).astype(np.int8)
        data[f"{name} position"], steps[name] = pack(codes.view(np.uint8)), _numbers(step)
    return data, steps


def describe(explanation: Explanation) -> dict[str, Any]:
    """All else that the page shows; JSON, with numbers to six digits."""
    model, (side, _, _) = explanation.model, explanation.image.shape
    flow = {stage.name: stage for stage in stages(model, side)}
    layers, tables, bases, stem = [], {}, {}, None
    for name, layer in attention_layers(model).items():
        height, width, heads, window, _ = explanation.attention[name].shape
        is_stem = isinstance(layer, AttentionStem)
        layers.append(
            dict(name=name, height=height, width=width, heads=heads, window=window, stem=is_stem)
            # A query of a block that halves the map stands before its pool.
            | dict(pixels=flow[flow[name].source or name].pixels)
            | dict(padded=not is_stem and layer.boundary == "zero")
        )
        both = relative_tables(layer)
        if both is not None:
            tables[name] = [_numbers(table) for table in both]
        if name in explanation.queries:
            both, _ = position_logits(layer, explanation.queries[name])
            bases[name] = [_numbers(basis) for basis in both]
        if is_stem:
            content, relative = stem_logits(layer)
            stem = dict(content=_numbers(content, 9), relative=_numbers(relative, 9))
            if layer.values == "spatial":
                stem["mixture"] = _numbers(layer.mixture_weights())
    return {
        "network": explanation.network,
        "step": explanation.step,
        "side": side,
        "shown": explanation.shown,
        "mean": list(MEAN_RGB),
        "deviation": list(STD_RGB),
        "guesses": [vars(guess) for guess in explanation.guesses],
        "layers": layers,
        "tables": tables,
        "bases": bases,
        "stem": stem,
        "stages": [stage._asdict() for stage in flow.values()],
        "query": pick_queries(explanation.image, 1)[0],
        "colours": _colour_table(COLOUR_MAP),
        "signedColours": _colour_table(SIGNED_COLOUR_MAP),
    }


def _is_stem(name: str) -> bool:
    return name.rpartition("/")[2] == "stem"


def _numbers(array: Any, digits: int = 6) -> Any:
    """Nested lists."""
    array = np.asarray(array, np.float64)
    if array.ndim:
        return [_numbers(part, digits) for part in array]
    return float(f"{array:.{digits}g}")


def _colour_table(name: str) -> str:
    """256 colours, three bytes each, base64."""
    colours = colormaps[name](np.arange(256), bytes=True)[:, :3]
    return base64.b64encode(colours.tobytes()).decode()
