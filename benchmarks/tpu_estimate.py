"""Estimates the time of a program on a TPU without a TPU, from what libtpu compiles it to.

    topology = Topology("v5e:2x2")
    compiled, estimate = topology.compile(function, *shapes)

XLA's own operations: the sum of the compiler's `estimated_cycles`, the bodies of loops as often as
they run. Pallas kernels, and the few operations that it gives no estimate for: their scheduled
instruction bundles, counted (tpu_bundles.py), or the bytes they move over the HBM's bandwidth,
whichever takes longer.
Stalls, transfers that nothing hides and the time of collectives are not in it: call it estimated,
never measured. Where memory is the limit, the compiler's estimates lie above what its own bundles
would take if nothing stalled, and those of Pallas kernels are that: so the lower bound, in which
every operation is counted by its bundles, stands beside the estimate.
"""

import dataclasses
import importlib.metadata
import os
import re
import tempfile
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
from jax.experimental import topologies
from jax.experimental.layout import Format, Layout
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from benchmarks import tpu_bundles
from benchmarks.tpu_program import CHIPS, Collective, Kernel, Program


@dataclasses.dataclass(frozen=True)
class Estimate:
    device: str
    milliseconds: float
    lower_bound: float | None  # milliseconds, if nothing stalls; where it was asked for
    kinds: dict[str, float]  # milliseconds by kind of operation; sums to `milliseconds`
    kernels: list[Kernel]
    counts: dict[str, tpu_bundles.Count]  # of the kernels, by their code
    collectives: list[Collective]
    uncounted: dict[str, int]  # operations of which neither is known, counted by their bytes
    temporary_bytes: int
    argument_bytes: int

    def lines(self) -> list[str]:
        """A table to print."""
        kinds = sorted(self.kinds.items(), key=lambda item: -item[1])
        return [
            f"{self.device}: {self.milliseconds:.3f} ms estimated, "
            f"{self.temporary_bytes / 1e6:.1f} MB temporaries",
            *([f"  if nothing stalls {self.lower_bound:.3f} ms"] if self.lower_bound else []),
            *(f"  {name:24}{ms:10.3f} ms" for name, ms in kinds),
            *(
                f"  kernel {k.name}: {k.calls} calls, {k.compute_ms:.3f} ms computing, "
                f"{k.transfer_ms:.3f} ms moving"
                for k in sorted(self.kernels, key=lambda k: -k.milliseconds)
            ),
        ]


class Topology:
    """Chips that are not there, to compile for: one for each process, opened before it uses libtpu.

    Args:
      name: such as "v5e:2x2", "v5p:2x2x1" or "v6e:2x2".
      bundles: have libtpu write the bundles of what it compiles. For a whole network that takes
        several times as long as compiling it.

    Raises:
      RuntimeError: libtpu is not installed.
    """

    def __init__(self, name: str, bundles: bool = True):
        try:
            importlib.metadata.version("libtpu")
        except importlib.metadata.PackageNotFoundError:
            raise RuntimeError(
                "the estimate needs libtpu, which compiles for a TPU without one. In an "
                f'environment of its own: pip install "jax[tpu]=={jax.__version__}" '
                "(libtpu 0.0.42 for JAX 0.10.2, 0.0.50 for JAX 0.12.0.1)"
            ) from None
        self._dump = tempfile.TemporaryDirectory()
        self.dump = Path(self._dump.name)  # what libtpu writes of the latest program
        options = {
            "xla_jf_dump_to": str(self.dump),
            "xla_jf_dump_llo_text": "true",
            "xla_jf_dump_llo_pass_label_regex": "packed-bundles-post-ra|deduplication-map",
        }
        # libtpu reads these when it is loaded; the rest keeps it from asking for a real TPU.
        arguments = [f"--{key}={value}" for key, value in options.items() if bundles]
        os.environ["LIBTPU_INIT_ARGS"] = " ".join(arguments)
        os.environ |= {"TPU_SKIP_MDS_QUERY": "1", "TPU_WORKER_HOSTNAMES": "localhost"}
        os.environ |= {"TPU_ACCELERATOR_TYPE": "none", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}
        jax.config.update("jax_platforms", "cpu")
        topology = topologies.get_topology_desc(platform="tpu", topology_name=name)
        self.devices = topology.devices
        self.kind = self.devices[0].device_kind
        self.chip = CHIPS[self.kind]

    def mesh(self, devices: int | None = None) -> Mesh:
        """Along one axis, "data", as in training; all devices, or so many."""
        chosen = np.array(self.devices[:devices])
        return Mesh(chosen, ("data",), axis_types=(AxisType.Auto,))

    def compile(self, function: Callable, *shapes: jax.ShapeDtypeStruct):
        """Compiles for one chip. Returns (compiled, Estimate).

        Inputs and outputs lie in memory as the compiler likes best: what comes before and after
        would produce and take them so.
        """
        mesh = self.mesh(1)
        anyhow = Format(Layout.AUTO, NamedSharding(mesh, PartitionSpec()))
        with jax.set_mesh(mesh):
            program = jax.jit(function, in_shardings=anyhow, out_shardings=anyhow)
            return self.estimate(program.lower(*shapes), lower_bound=True)

    def estimate(
        self,
        lowered: jax.stages.Lowered,
        kernels: dict[str, tpu_bundles.Count] | None = None,
        lower_bound: bool = False,
    ) -> tuple[jax.stages.Compiled, Estimate]:
        """Compiles what was lowered for these devices, and estimates one chip's time.

        Args:
          lowered: the program.
          kernels: what Pallas kernels issue that were counted before (`count_kernels`).
          lower_bound: also tell the time if nothing stalls.
        """
        for path in self.dump.iterdir():
            path.unlink()
        compiled = lowered.compile()
        program = Program(
            compiled.as_text(), self.chip, _bundle_files(self.dump), kernels or {}, lower_bound
        )
        memory = compiled.memory_analysis()
        return compiled, Estimate(
            device=self.kind,
            milliseconds=sum(program.kinds.values()),
            lower_bound=program.lower_bound,
            kinds=dict(program.kinds),
            kernels=program.kernels(),
            counts=program.counts,
            collectives=program.collectives(),
            uncounted=dict(program.uncounted),
            temporary_bytes=memory.temp_size_in_bytes,
            argument_bytes=memory.argument_size_in_bytes,
        )


def count_kernels(
    name: str, programs: list[tuple[Callable, tuple[jax.ShapeDtypeStruct, ...]]]
) -> dict[str, tpu_bundles.Count]:
    """What the Pallas kernels in some small programs issue, each program compiled for one chip.

    A whole network is compiled without writing bundles, in another process, and takes them from
    here: give this to a process of its own.
    """
    topology = Topology(name)
    counts = {}
    for function, shapes in programs:
        counts |= topology.compile(function, *shapes)[1].counts
    return counts


def _bundle_files(folder: Path) -> dict[str, Path]:
    """Where libtpu wrote the scheduled bundles of each operation of the program just compiled."""
    files = {}
    for path in folder.glob("*-packed-bundles-post-ra.txt"):
        name = re.fullmatch(r"\d+-(.*)-\d+-packed-bundles-post-ra.txt", path.name)[1]
        files[name] = path
    # Of equal operations one is compiled.
    for path in folder.glob("*deduplication-map.txt"):
        for block in path.read_text().split("key:")[1:]:
            kept, *equal = re.findall(r"(?m)^(?:  )?([^\s:\[]+)$", block)
            files |= {name: files[kept] for name in equal if kept in files}
    return files
