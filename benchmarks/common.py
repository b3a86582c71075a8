"""What the benchmarks share: taking turns, the setting of a run, result files, the plot."""

import datetime
import importlib.metadata
import json
import os
import platform
import re
import statistics
import sys
import time
from collections.abc import Callable, Hashable, Mapping
from pathlib import Path

import jax
from matplotlib.figure import Figure

RESULTS = Path(__file__).parent / "results"
# Reuse freed memory: without these, page faults on fresh memory drown what is measured on CPU.
# Leave memory to PyTorch on GPU.
ENVIRONMENT = {
    "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": "30000000000",
    "MALLOC_ARENA_MAX": "1",
}


def keep_memory() -> None:
    """Starts this program again under `ENVIRONMENT`, which is read when a process starts."""
    if any(os.environ.get(name) != value for name, value in ENVIRONMENT.items()):
        os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | ENVIRONMENT)


def note(text: str) -> None:
    """Progress; standard output is for results."""
    print(text, file=sys.stderr, flush=True)


def medians(calls: Mapping[Hashable, Callable[[], object]], repetitions: int) -> dict:
    """Seconds of each call, which must not return before its work is done.

    All take turns, so that whatever else the machine does meets them alike.
    """
    times: dict = {name: [] for name in calls}
    for call in calls.values():
        call()  # warm up
    for turn in range(repetitions):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            times[name].append(time.perf_counter() - start)
        note(f"  turn {turn + 1} of {repetitions}")
    return {name: statistics.median(taken) for name, taken in times.items()}


def setting(topology: str | None = None) -> dict:
    """Where and with what a run was made; a topology is one that was only compiled for."""
    versions: dict = {"python": platform.python_version()}
    for package in ("jax", "jaxlib", "libtpu", "numpy", "torch"):
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = None
    return {
        "date": datetime.date.today().isoformat(),
        "device": f"none: compiled for {topology}" if topology else jax.devices()[0].device_kind,
        "cores": cores(),
        "load": round(os.getloadavg()[0], 1),  # at its end; above `cores`, others disturbed it
        "versions": versions,
    }


def write(name: str, content: dict) -> Path:
    """Writes one result file; returns its path."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{slug(name)}.json"
    path.write_text(json.dumps(content, indent=1) + "\n")
    return path


def slug(text: str) -> str:
    return re.sub("[^a-z0-9]+", "_", text.lower()).strip("_")


def repeats() -> int:
    """How often a timed call does its work before it waits.

    More than once where work waits in an accelerator's queue, so that starting it is not timed.
    """
    return 1 if jax.default_backend() == "cpu" else 10


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0))


def bars(path: Path, title: str, groups: Mapping[str, Mapping[str, float]], unit: str) -> None:
    """A picture of one group of bars for each key; every group may hold other names."""
    names = list(dict.fromkeys(name for group in groups.values() for name in group))
    figure = Figure(figsize=(1.5 + 1.6 * len(groups), 4.5), layout="constrained")
    axes = figure.subplots()
    width = 0.85 / len(names)
    for place, name in enumerate(names):
        x = [i + (place - (len(names) - 1) / 2) * width for i in range(len(groups))]
        heights = [group.get(name, float("nan")) for group in groups.values()]
        axes.bar(x, heights, width, label=name)
    axes.set_xticks(range(len(groups)), list(groups))
    axes.set_yscale("log")
    axes.grid(axis="y", which="both", alpha=0.3)
    axes.set_ylabel(unit)
    axes.set_title(title)
    figure.legend(fontsize="small", loc="outside right upper")  # never in front of bars
    figure.savefig(path, dpi=120)
