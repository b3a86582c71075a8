"""Local attention at ResNet-50's shapes: every implementation, PyTorch's unfold, the convolution.

    taskset -c 0,1 python benchmarks/local_attention.py

One image size a resolution, 8 heads, window 7, batch 8, float32. The operator alone, without
projections; the convolution is the 3x3 that the layer replaces. All contenders take turns in one
process and medians are given. Temporary bytes are XLA's, of the compiled program.

Prints a table and writes benchmarks/results/local_attention_<device>.json. With --json it prints
one object a line instead: implementation, shape, dtype, direction (forward or forward_backward),
milliseconds, temporary_bytes (null for PyTorch), ratio_to_definition, ratio_to_unfold (how many
times faster; null without PyTorch). With --quick: batch 2, three repetitions.
"""

import argparse
import datetime
import importlib.metadata
import json
import os
import platform
import re
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import jax

from sasa_jax import local_attention
from sasa_jax.ops.local_attention.registry import IMPLEMENTATIONS
from sasa_jax.ops.local_attention.workloads import RESOLUTIONS, Workload

try:
    import torch
except ImportError:
    torch = None

# Reuse freed memory: without these, page faults on fresh memory drown what is measured.
MALLOC = {
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": "30000000000",
    "MALLOC_ARENA_MAX": "1",
}
Call = Callable[[], object]
DIRECTIONS = ("forward", "forward_backward")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="batch 2, three repetitions")
    parser.add_argument("--json", action="store_true", help="one object a line, no table")
    arguments = parser.parse_args()
    batch, repetitions = (2, 3) if arguments.quick else (8, 9)
    if torch is not None:
        torch.set_num_threads(cores())
    records = []
    for workload in RESOLUTIONS:
        found = measure(workload, batch, repetitions)
        records += found
        for line in map(json.dumps, found) if arguments.json else table(workload, found):
            print(line, flush=True)
    path = write(records, batch, repetitions)
    if not arguments.json:
        print(f"written to {path}")


def measure(workload: Workload, batch: int, repetitions: int) -> list[dict]:
    """Times of all contenders, taken in turns."""
    contenders = {**jax_contenders(workload, batch), **torch_contenders(workload, batch)}
    times: dict = {name: [] for name in contenders}
    for call, _ in contenders.values():
        call()  # warm up
    for _ in range(repetitions):
        for name, (call, _) in contenders.items():
            start = time.perf_counter()
            call()
            times[name].append(time.perf_counter() - start)
    medians = {name: 1000 * statistics.median(taken) for name, taken in times.items()}
    records = []
    for (name, direction), (_, temporary_bytes) in contenders.items():
        milliseconds = medians[name, direction]
        unfold = medians.get(("pytorch_unfold", direction))
        records.append(
            {
                "implementation": name,
                "shape": workload.name,
                "dtype": "float32",
                "direction": direction,
                "milliseconds": round(milliseconds, 3),
                "temporary_bytes": temporary_bytes,
                "ratio_to_definition": round(medians["definition", direction] / milliseconds, 2),
                "ratio_to_unfold": unfold and round(unfold / milliseconds, 2),
            }
        )
    return records


def jax_contenders(workload: Workload, batch: int) -> dict[tuple[str, str], tuple[Call, int]]:
    """(name, direction) -> (call, temporary bytes)."""
    keys = iter(jax.random.split(jax.random.key(0), 7))
    shape = workload.shape(batch)
    query, key, value, cotangent = (jax.random.normal(next(keys), shape) for _ in range(4))
    tables = [jax.random.normal(next(keys), (workload.window, shape[-1] // 2)) for _ in range(2)]
    contenders: dict = {
        name: (partial(local_attention, implementation=name), (query, key, value, *tables))
        for name in IMPLEMENTATIONS
    }
    channels = workload.channels
    image = query.reshape(*shape[:3], channels)
    kernel = jax.random.normal(next(keys), (3, 3, channels, channels))
    contenders["convolution_3x3"] = (convolution, (image, kernel))

    found = {}
    for name, (function, inputs) in contenders.items():

        def both(cotangent: jax.Array, *inputs: jax.Array, function: Callable = function) -> tuple:
            output, transpose = jax.vjp(function, *inputs)
            return output, transpose(cotangent.reshape(output.shape))

        programs = (
            (jax.jit(function), inputs),
            (jax.jit(both), (cotangent, *inputs)),
        )
        for direction, (program, inputs) in zip(DIRECTIONS, programs, strict=True):
            compiled = program.lower(*inputs).compile()
            call = partial(lambda f, x: jax.block_until_ready(f(*x)), compiled, inputs)
            found[name, direction] = (call, compiled.memory_analysis().temp_size_in_bytes)
    return found


def convolution(image: jax.Array, kernel: jax.Array) -> jax.Array:
    return jax.lax.conv_general_dilated(
        image, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def torch_contenders(workload: Workload, batch: int) -> dict[tuple[str, str], tuple[Call, None]]:
    """The usual PyTorch layer: windows unfolded by torch.nn.functional.unfold."""
    if torch is None:
        return {}
    height, width, heads, window = (
        workload.height,
        workload.width,
        workload.heads,
        workload.window,
    )
    dim, pixels = workload.channels // heads, height * width
    generator = torch.Generator().manual_seed(0)
    image = (batch, workload.channels, height, width)
    query, key, value, cotangent = (torch.randn(image, generator=generator) for _ in range(4))
    tables = [torch.randn(window, dim // 2, generator=generator) for _ in range(2)]
    inputs = [x.requires_grad_() for x in (query, key, value, *tables)]

    def windows(x: torch.Tensor) -> torch.Tensor:
        unfolded = torch.nn.functional.unfold(x, window, padding=window // 2)
        return unfolded.view(batch, heads, dim, window**2, pixels)

    def attend() -> torch.Tensor:
        rows, columns = tables
        relative = torch.cat(
            [rows[:, None].expand(-1, window, -1), columns[None].expand(window, -1, -1)], dim=-1
        ).view(1, 1, window**2, dim, 1)
        keys = windows(key) + relative.transpose(2, 3)
        logits = (query.view(batch, heads, dim, 1, pixels) * keys).sum(dim=2)
        weights = logits.softmax(dim=2)
        return (weights[:, :, None] * windows(value)).sum(dim=3).view(image)

    def forward() -> None:
        with torch.no_grad():
            attend()

    def forward_backward() -> None:
        torch.autograd.grad(attend(), inputs, cotangent)

    calls = zip(DIRECTIONS, (forward, forward_backward), strict=True)
    return {("pytorch_unfold", direction): (call, None) for direction, call in calls}


def table(workload: Workload, records: list[dict]) -> list[str]:
    head = f"{workload.name:18}{'':>18}{'ms':>10}{'temp. MB':>10}{'/definition':>13}{'/unfold':>9}"
    lines = ["", head]
    for record in records:
        temporary = record["temporary_bytes"]
        lines.append(
            f"{record['implementation']:18}{record['direction']:>18}"
            f"{record['milliseconds']:10.1f}"
            f"{'-' if temporary is None else format(temporary / 1e6, '.1f'):>10}"
            f"{record['ratio_to_definition']:12.1f}x"
            f"{format(record['ratio_to_unfold'] or float('nan'), '.1f'):>8}x"
        )
    return lines


def write(records: list[dict], batch: int, repetitions: int) -> Path:
    device = jax.devices()[0].device_kind
    name = f"local_attention_{re.sub('[^a-z0-9]+', '_', device.lower())}.json"
    path = Path(__file__).parent / "results" / name
    path.parent.mkdir(exist_ok=True)
    versions = {"python": platform.python_version()}
    for package in ("jax", "jaxlib", "numpy", "torch"):
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = None
    setting = {
        "date": datetime.date.today().isoformat(),
        "device": device,
        "cores": cores(),
        "versions": versions,
        "batch": batch,
        "repetitions": repetitions,
    }
    path.write_text(json.dumps(setting | {"records": records}, indent=1) + "\n")
    return path


def cores() -> int:
    """Cores this process may use, so that PyTorch takes as many as JAX."""
    return len(os.sched_getaffinity(0))


if __name__ == "__main__":
    if any(os.environ.get(name) != value for name, value in MALLOC.items()):
        # The allocator reads them when a process starts.
        os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | MALLOC)
    main()
