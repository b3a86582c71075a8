"""The page: one HTML file with style, script and data inside, that needs no network."""

import base64
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
from sasa_jax.explorer.network import attention_layers, relative_tables, stages, stem_logits
from sasa_jax.explorer.packing import pack, pack_codes, quantise
from sasa_jax.nn import AttentionStem

# Signed numbers; like `COLOUR_MAP` it is read without colour vision.
SIGNED_COLOUR_MAP = "PuOr"

# Steps that a weight is stored in, and bytes of data above which fewer are tried.
LEVELS = (128, 64, 32)
DATA_SIZE = 4_900_000

SCRIPTS = ("data.js", "reach.js", "draw.js", "panels.js", "main.js")


def write_page(path: str | os.PathLike[str], explanation: Explanation) -> int:
    """Writes the page; returns its size in bytes.

    Raises:
        OSError: the file cannot be written.
    """
    return Path(path).write_bytes(build_page(explanation).encode())


def build_page(explanation: Explanation) -> str:
    """The page's HTML; large ones have coarser weights, and say so."""
    for levels in LEVELS:
        data = packed(explanation, levels)
        if sum(map(len, data.values())) <= DATA_SIZE:
            break
    files = resources.files("sasa_jax.explorer") / "static"
    script = "\n".join((files / name).read_text("utf-8") for name in SCRIPTS)
    return Template((files / "page.html").read_text("utf-8")).substitute(
        title=html.escape(explanation.title or "an image"),
        style=(files / "page.css").read_text("utf-8"),
        # Inside a script element only "<" could end it.
        levels=levels,
        about=json.dumps(describe(explanation) | {"levels": levels}, separators=(",", ":")).replace(
            "<", "\\u003c"
        ),
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


def packed(explanation: Explanation, levels: int) -> dict[str, str]:
    """The large arrays by name, see `packing`: the image's pixels and the layers' weights.

    The stem's are not among them: the page computes them from the pixels and `stem_logits`, which
    is shorter and exact.
    """
    data = {"image": pack(explanation.image.transpose(2, 0, 1))}
    for name, weights in explanation.attention.items():
        if not _is_stem(name):
            codes, tops = quantise(weights, levels)
            data[f"{name} codes"], data[f"{name} tops"] = pack_codes(codes), pack(tops)
    return data


def describe(explanation: Explanation) -> dict[str, Any]:
    """All else that the page shows; JSON, with numbers to six digits."""
    model, (side, _, _) = explanation.model, explanation.image.shape
    flow = {stage.name: stage for stage in stages(model, side)}
    layers, tables, stem = [], {}, None
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
