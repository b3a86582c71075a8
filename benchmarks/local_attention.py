"""Local attention at the networks' shapes: every implementation, its peers, the convolution.

    taskset -c 0,1 python benchmarks/local_attention.py
    python benchmarks/local_attention.py --estimate v5e:2x2    # no TPU needed, but libtpu

ResNet-50's shapes at 224x224, first blocks included, and RetinaNet's pyramid at 640x640; 8 heads,
window 7, boundary "zero". The operator alone, without projections; the convolution is the 3x3 that
the layer replaces. Measured on what is there, all contenders taking turns in one process (medians;
float32 on CPU, bfloat16 elsewhere), or estimated on one chip from what libtpu compiles
(tpu_estimate.py says what that counts). Temporary bytes are XLA's, of the compiled program. What
does not fit into memory is left out, and said.

Prints a table and writes benchmarks/results/local_attention_<device or estimate>.json and .png.
With --json it prints one object a line instead: implementation, shape, dtype, direction (forward
or forward_backward), milliseconds, temporary_bytes (null for PyTorch), ratio_to_definition,
ratio_to_unfold (how many times faster; null where the other is left out), measured, batch, picked
(whether it is taken by default). With --quick: ResNet-50's four resolutions, batch 2, three turns,
no result files.
"""

import argparse
import itertools
import json
import math
import os
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import jax

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import common, torch_peers
from benchmarks.contenders import contenders
from benchmarks.tpu_estimate import Topology
from sasa_jax.ops.local_attention.workloads import RESNET50, RESOLUTIONS, RETINANET, Workload

DIRECTIONS = ("forward", "forward_backward")
CACHE_BYTES = 500e6  # more than any accelerator's cache: inputs are to come from its memory
Key = tuple[str, str]  # (contender, direction)


def main(argv: list[str] | None = None) -> None:
    shapes = {w.name: w for w in (*RESNET50, *RETINANET)}
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="few shapes, batch 2, three turns")
    parser.add_argument("--json", action="store_true", help="one object a line, no table")
    parser.add_argument("--shapes", nargs="+", choices=shapes, metavar="HxWxC")
    parser.add_argument(
        "--batch",
        type=int,
        nargs="+",
        help="images; a 32nd of them, at least 1, for RetinaNet's shapes",
    )
    parser.add_argument("--contenders", nargs="+", metavar="NAME", help="these only")
    parser.add_argument("--dtype", nargs="+", choices=("float32", "bfloat16"))
    parser.add_argument("--estimate", metavar="TOPOLOGY", help="such as v5e:2x2; no TPU needed")
    arguments = parser.parse_args(argv)
    try:
        topology = Topology(arguments.estimate) if arguments.estimate else None
    except RuntimeError as error:
        sys.exit(f"error: {error}")
    on_cpu = topology is None and jax.default_backend() == "cpu"
    names = arguments.shapes or [
        w.name for w in (RESOLUTIONS if arguments.quick else shapes.values())
    ]
    batches = arguments.batch or [2 if arguments.quick else 8 if on_cpu else 128]
    dtypes = arguments.dtype or ["float32" if on_cpu else "bfloat16"]
    rows = []
    for dtype, batch, name in itertools.product(dtypes, batches, names):
        workload = shapes[name]
        images = max(1, batch // 32) if workload in RETINANET else batch
        common.note(f"{name}, batch {images}, {dtype}")
        if topology:
            found = estimate(topology, workload, images, dtype, arguments.contenders)
        else:
            turns = 3 if arguments.quick else 7
            found = measure(workload, images, dtype, arguments.contenders, turns)
        rows += found
        for line in map(json.dumps, found) if arguments.json else table(found):
            print(line, flush=True)
    if not arguments.quick:
        save(rows, arguments.estimate)


def estimate(
    topology: Topology, workload: Workload, batch: int, dtype: str, only: list[str] | None
) -> list[dict]:
    """The static estimate of each contender on one chip."""
    milliseconds, details = {}, {}
    for name, contender in contenders(workload, batch, dtype, "tpu").items():
        if only and name not in only:
            continue
        for direction, (function, inputs) in contender.programs.items():
            try:
                compiled, found = topology.compile(function, *inputs)
            except jax.errors.JaxRuntimeError as error:
                common.note(f"  {name}, {direction}, left out: {str(error).splitlines()[0]}")
                continue
            if (needed := _total(compiled)) > topology.chip.memory:
                common.note(f"  {name}, {direction}, left out: needs {needed / 1e9:.1f} GB")
                continue
            milliseconds[name, direction] = found.milliseconds
            details[name, direction] = {
                "picked": contender.picked,
                "temporary_bytes": found.temporary_bytes,
                "lower_bound_milliseconds": round(found.lower_bound, 4),
            }
    return records(workload, batch, dtype, milliseconds, details, measured=False)


def measure(
    workload: Workload, batch: int, dtype: str, only: list[str] | None, turns: int
) -> list[dict]:
    """Times of all contenders, taken in turns."""
    calls: dict[Key, Callable[[], object]] = {}
    details: dict[Key, dict] = {}
    repeats: dict[Key, int] = {}
    for name, contender in contenders(workload, batch, dtype, jax.default_backend()).items():
        if only and name not in only:
            continue
        for direction, (function, inputs) in contender.programs.items():
            compiled = jax.jit(function).lower(*inputs).compile()
            if (needed := _total(compiled)) > memory():
                common.note(f"  {name}, {direction}, left out: needs {needed / 1e9:.1f} GB")
                continue
            temporary = compiled.memory_analysis().temp_size_in_bytes
            sets = _input_sets(inputs)
            if len(sets) > 1:
                compiled = jax.jit(partial(_each, function)).lower(*sets).compile()
                if (needed := _total(compiled)) > memory():
                    common.note(f"  {name}, {direction}, left out: needs {needed / 1e9:.1f} GB")
                    continue
            repeats[name, direction] = len(sets) * common.repeats()
            calls[name, direction] = partial(_run, compiled, sets)
            details[name, direction] = {"picked": contender.picked, "temporary_bytes": temporary}
    for name, make in torch_peers.peers(workload, batch, dtype).items():
        if only and name not in only:
            continue
        try:
            if (needed := torch_peers.unfold_bytes(workload, batch, dtype)) > memory():
                raise MemoryError(f"needs about {needed / 1e9:.1f} GB")
            made = make()
            for call in made.values():
                call()
        except Exception as error:  # whatever keeps PyTorch from running this shape
            common.note(f"  {name} left out: {str(error).splitlines()[0]}")
            continue
        for direction, call in made.items():
            calls[name, direction] = call
            repeats[name, direction] = common.repeats()
            details[name, direction] = {"picked": False, "temporary_bytes": None}
    seconds = common.medians(calls, turns)
    milliseconds = {key: 1000 * s / repeats[key] for key, s in seconds.items()}
    return records(workload, batch, dtype, milliseconds, details, measured=True)


def _input_sets(shapes: tuple[jax.ShapeDtypeStruct, ...]) -> list[list[jax.Array]]:
    """Random inputs; on an accelerator so many sets of them that no cache holds them all."""
    size = sum(math.prod(x.shape) * x.dtype.itemsize for x in shapes)
    count = 1 if jax.default_backend() == "cpu" else min(32, math.ceil(CACHE_BYTES / size) + 1)
    keys = iter(jax.random.split(jax.random.key(0), count * len(shapes)))
    return [[jax.random.normal(next(keys), x.shape, x.dtype) for x in shapes] for _ in range(count)]


def _each(function: Callable, *sets: list[jax.Array]) -> list:
    """A call for each set, in one program: the device does not wait for Python between them."""
    return [function(*inputs) for inputs in sets]


def _run(compiled: jax.stages.Compiled, sets: list[list[jax.Array]]) -> None:
    """Compiled of the inputs themselves if there is one set of them, else of the sets."""
    for _ in range(common.repeats()):
        done = compiled(*(sets if len(sets) > 1 else sets[0]))
    jax.block_until_ready(done)


def _total(compiled: jax.stages.Compiled) -> int:
    analysis = compiled.memory_analysis()
    return (
        analysis.temp_size_in_bytes
        + analysis.argument_size_in_bytes
        + analysis.output_size_in_bytes
    )


def memory() -> float:
    """Bytes that a contender may take, of what the device, or this machine, has free.

    On a device half of it, as neither JAX nor PyTorch gives back to the other what it had.
    """
    statistics = jax.devices()[0].memory_stats()
    if statistics and "bytes_limit" in statistics:
        return 0.5 * (statistics["bytes_limit"] - statistics["bytes_in_use"])
    return 0.7 * os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def records(
    workload: Workload,
    batch: int,
    dtype: str,
    milliseconds: dict[Key, float],
    details: dict[Key, dict],
    measured: bool,
) -> list[dict]:
    def ratio(to: str, key: Key) -> float | None:
        other = milliseconds.get((to, key[1]))
        return other and float(f"{other / milliseconds[key]:.4g}")  # digits for slow peers, too

    return [
        {
            "implementation": key[0],
            "shape": workload.name,
            "batch": batch,
            "dtype": dtype,
            "direction": key[1],
            "milliseconds": round(milliseconds[key], 4),
            **details[key],
            "ratio_to_definition": ratio("definition", key),
            "ratio_to_unfold": ratio("pytorch_unfold", key),
            "ratio_to_convolution": ratio("convolution_3x3", key),
            "measured": measured,
        }
        for key in milliseconds
    ]


def table(rows: list[dict]) -> list[str]:
    """One workload's; ratios are how many times faster, * is what is taken by default."""
    first = rows[0]
    head = f"{first['shape']}, batch {first['batch']}, {first['dtype']}"
    lines = [
        "",
        f"{head:34}{'ms':>19}{'temp. MB':>10}{'/definition':>13}{'/unfold':>9}{'/conv3x3':>10}",
    ]
    for row in rows:

        def ratio(name: str, row: dict = row) -> str:
            value = row[f"ratio_to_{name}"]
            return "-" if value is None else f"{value:.2f}x"

        temporary = row["temporary_bytes"]
        name = row["implementation"] + " *" * row["picked"]
        lines.append(
            f"{name:18}{row['direction']:>18}{row['milliseconds']:17.2f}"
            f"{'-' if temporary is None else format(temporary / 1e6, '.1f'):>10}"
            f"{ratio('definition'):>13}{ratio('unfold'):>9}{ratio('convolution'):>10}"
        )
    return lines


def save(rows: list[dict], topology: str | None) -> None:
    device = jax.devices()[0].device_kind
    name = f"local_attention_{'estimate_' + topology if topology else device}"
    path = common.write(name, common.setting(topology) | {"records": rows})
    what = f"static estimate, {topology}" if topology else device
    for direction in DIRECTIONS:
        groups: dict = {}
        for row in rows:
            if row["direction"] == direction and row["dtype"] == rows[0]["dtype"]:
                group = groups.setdefault(f"{row['shape']}\nbatch {row['batch']}", {})
                group[row["implementation"]] = 1 / (row["ratio_to_convolution"] or math.nan)
        picture = path.with_name(f"{path.stem}_{direction}.png")
        title = f"{direction.replace('_', ' + ')}, {rows[0]['dtype']}, {what}"
        common.bars(picture, title, groups, "time, 3x3 convolution = 1")
    common.note(f"written to {path}")


if __name__ == "__main__":
    common.keep_memory()
    main()
