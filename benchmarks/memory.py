"""How the operator's memory grows with the window, from what XLA compiles.

    python benchmarks/memory.py

Forward and backward pass at 56x56x64, batch 8, float32, K = 3 to 15, for every implementation that
takes the shape: bytes kept between the passes (the inputs, and whatever else the backward pass
asks for) and XLA's temporaries of both passes. Nothing is run.

Prints a table and writes benchmarks/results/memory_<device>.json and .png. With --json it prints
one object a line instead: implementation, shape, batch, dtype, window, kept_bytes,
temporary_bytes.
"""

import argparse
import dataclasses
import json
import math
import sys
from pathlib import Path

import jax
from matplotlib.figure import Figure

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import common
from benchmarks.contenders import Contender, contenders
from sasa_jax.ops.local_attention.workloads import RESNET50, Workload

WINDOWS = tuple(range(3, 16, 2))
BATCH = 8
KINDS = {"kept_bytes": "kept between the passes", "temporary_bytes": "temporaries"}


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="one object a line, no table")
    arguments = parser.parse_args(argv)
    rows = [row for window in WINDOWS for row in memory(RESNET50[0], window)]
    for line in map(json.dumps, rows) if arguments.json else table(rows):
        print(line)
    device = jax.devices()[0].device_kind
    path = common.write(f"memory_{device}", common.setting() | {"records": rows})
    plot(path.with_suffix(".png"), rows)
    common.note(f"written to {path}")


def memory(workload: Workload, window: int) -> list[dict]:
    workload = dataclasses.replace(workload, window=window)
    common.note(f"{workload.name}, window {window}")
    rows = []
    for name, contender in contenders(workload, BATCH, "float32", jax.default_backend()).items():
        if name == "convolution_3x3":
            continue
        function, inputs = contender.programs["forward_backward"]
        compiled = jax.jit(function).lower(*inputs).compile()
        rows.append(
            {
                "implementation": name,
                "shape": workload.name,
                "batch": BATCH,
                "dtype": "float32",
                "window": window,
                "kept_bytes": kept(contender),
                "temporary_bytes": compiled.memory_analysis().temp_size_in_bytes,
            }
        )
    return rows


def kept(contender: Contender) -> int:
    """Bytes that the backward pass needs of the forward pass."""

    def forward(*inputs: jax.Array):
        return jax.vjp(contender.function, *inputs)[1]

    arrays = jax.tree.leaves(jax.eval_shape(forward, *contender.inputs))
    return sum(math.prod(x.shape) * x.dtype.itemsize for x in arrays)


def table(rows: list[dict]) -> list[str]:
    head = "".join(f"{f'K = {window}':>9}" for window in WINDOWS)
    lines = [f"{rows[0]['shape']}, batch {BATCH}, float32; MB{head:>{9 * len(WINDOWS)}}"]
    for (name, kind), values in by_implementation(rows).items():
        label = f"{name}, {KINDS[kind]}"
        lines.append(f"{label:37}" + "".join(f"{value / 1e6:9.1f}" for value in values))
    return lines


def by_implementation(rows: list[dict]) -> dict[tuple[str, str], list[int]]:
    """(implementation, kind of bytes) -> bytes for each window."""
    found: dict[tuple[str, str], list[int]] = {}
    for row in rows:
        for kind in KINDS:
            found.setdefault((row["implementation"], kind), []).append(row[kind])
    return found


def plot(path: Path, rows: list[dict]) -> None:
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots(1, 2, sharey=True)
    for (name, kind), values in by_implementation(rows).items():
        side = axes[list(KINDS).index(kind)]
        side.plot(WINDOWS, [value / 1e6 for value in values], marker="o", label=name)
        side.set_title(KINDS[kind])
    for side in axes:
        side.set_yscale("log")
        side.set_xticks(WINDOWS)
        side.set_xlabel("window K")
        side.grid(which="both", alpha=0.3)
    axes[0].set_ylabel(f"MB, {rows[0]['shape']}, batch {BATCH}, float32")
    axes[1].legend()
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    main()
