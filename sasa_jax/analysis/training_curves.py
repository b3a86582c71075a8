"""Pictures of how a run went."""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from sasa_jax.analysis.figures import COLOURS


def curves_figure(workdir: str | os.PathLike[str], *, metric: str) -> Figure:
    """The loss of every logged interval, and a metric of every evaluation.

    Args:
        workdir: of the run; its metrics.jsonl is read.
        metric: of the evaluation, e.g. "accuracy", or "AP" for detection.

    Raises:
        ValueError: nothing was logged, or no evaluation has that metric; names those it has.
    """
    path = Path(workdir) / "metrics.jsonl"
    if not path.is_file():
        raise ValueError(f"{path} does not exist: give the --workdir of a run")
    records = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    losses = [record for record in records if record["kind"] == "train"]
    scores = [record for record in records if record["kind"] == "eval"]
    for record in scores:
        if f"average/{metric}" not in record:
            there = [key[8:] for key in record if key.startswith("average/")]
            raise ValueError(f"no evaluation has the metric {metric!r}; it has {', '.join(there)}")
    figure = Figure(figsize=(9, 3), layout="constrained")
    left, right = figure.subplots(1, 2)
    _draw(left, losses, ["loss"], "training loss", marker=None)
    _draw(
        right, scores, [f"average/{metric}", f"raw/{metric}"], f"{metric}, evaluation", marker="o"
    )
    if scores:
        right.set_ylim(0, 1)
        right.legend(["averaged weights", "raw weights"], loc="lower right", fontsize=8)
    return figure


def _draw(axes: Any, records: Sequence[dict], keys: Sequence[str], title: str, marker: Any) -> None:
    for key, colour in zip(keys, (COLOURS[1], COLOURS[2]), strict=False):
        steps = [record["step"] for record in records]
        numbers = [record[key] for record in records]
        axes.plot(steps, numbers, marker=marker, color=colour, clip_on=False)
    axes.set_title(title, fontsize=10)
    axes.set_xlabel("step")
    axes.set_xlim(left=0)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.3)
