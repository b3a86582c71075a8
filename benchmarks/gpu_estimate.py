"""What the GPU kernels of local attention should take on an H200, counted without a GPU.

    python benchmarks/gpu_estimate.py      # needs Triton: the extra test-gpu

Compiles the three kernels for compute capability 9.0 at ResNet-50's shapes, bfloat16, batch 256, as
the layer calls them, and counts the machine instructions that each program executes: those in a
loop as often as it runs. Microseconds an image, four bounds of which the largest counts:

* issue: one instruction a scheduler and clock;
* exponentials: 16 a multiprocessor and clock;
* matrix units: mma.sync at half of their dense rate;
* L1: one line of the cache, or 128 bytes of shared memory or between lanes, a clock.

Stalls, memory and launches are in none of them. The fourth is what the kernels spend their time on:
for heads of 8 to 32 an H100 took 0.88 to 1.0 times what it says, for heads of 64, which stall, 1.7
times (docs/performance.md).
"""

import re
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.gpu_compile import Compiled, compiled
from sasa_jax.ops.local_attention.gpu_triton.constants import TILE_W
from sasa_jax.ops.local_attention.workloads import RESNET50

KERNELS = ("forward", "backward_queries", "backward_keys")
BATCH = 256
MULTIPROCESSORS, CLOCK = 132, 1.755e9
# Clocks of a multiprocessor that an instruction of one warp takes.
ISSUE, EXPONENTIAL, PRODUCT = 1 / 4, 32 / 16, 4096 / 2048
WARP, BYTES = 32, 2  # lanes; of a bfloat16
LEAST_LOOP = 4  # instructions: the branch to itself at the end of a program is no loop


def main() -> None:
    sums = {kernel: [0.0] * 4 for kernel in KERNELS}
    names = f"{'issue':>8}{'exp':>8}{'matrix':>8}{'L1':>8}{'registers':>11}{'spilled':>9}"
    print(f"{'us an image':32}{names}")
    for workload in RESNET50:
        for kernel in KERNELS:
            found = compiled(kernel, workload.shape(BATCH), "bfloat16", 90, packed=True)
            bounds = bounds_of(found, workload.width)
            for place, bound in enumerate(bounds):
                sums[kernel][place] += workload.layers * bound
            line = "".join(f"{bound:8.3f}" for bound in bounds)
            print(
                f"{workload.name:14}{kernel:18}{line}{found.registers:11}{found.spilled_bytes:9}",
                flush=True,
            )
    for kernel, bounds in sums.items():
        print(f"{'ResNet-50':14}{kernel:18}" + "".join(f"{bound:8.2f}" for bound in bounds))
    total = [sum(bounds) for bounds in zip(*sums.values(), strict=True)]
    print(f"{'ResNet-50':14}{'sum':18}" + "".join(f"{bound:8.2f}" for bound in total))


def bounds_of(found: Compiled, width: int) -> tuple[float, float, float, float]:
    """Microseconds an image by each of the bounds."""
    constants = found.launch.constants
    counted = executed(instructions(found.cubin), -(-width // TILE_W), constants["CHUNKS"])
    lines = WARP * 16 // (constants["GROUP"] * constants["DIM"] * BYTES)
    kinds: Counter[str] = Counter()
    for operation, times in counted.items():
        kinds[operation.split(".")[0]] += times
    clocks = (
        sum(counted.values()) * ISSUE,
        kinds["MUFU"] * EXPONENTIAL,
        kinds["HMMA"] * PRODUCT,
        sum(wavefronts(operation, lines) * times for operation, times in counted.items()),
    )
    warps = found.launch.programs * found.launch.warps
    return tuple(x * warps / (MULTIPROCESSORS * CLOCK) / BATCH * 1e6 for x in clocks)


def wavefronts(operation: str, lines: int) -> int:
    """Clocks for which one warp's instruction keeps L1.

    lines: of the cache that 16 bytes a lane of neighbouring pixels are in. Of what is read in
      smaller pieces, log-sums and deltas, neighbours share them.
    """
    kind, *modifiers = operation.split(".")
    bits = 128 if "128" in modifiers else 64 if "64" in modifiers else 32
    if kind in ("LDG", "STG", "LDGSTS"):
        read = lines if bits == 128 else bits // 32
        return read + (bits // 32 if kind == "LDGSTS" else 0)
    if kind in ("LDS", "STS", "LDL", "STL"):
        return bits // 32
    if kind in ("LDSM", "STSM"):
        return int(modifiers[-1]) if modifiers[-1].isdigit() else 1
    return int(kind == "SHFL")


def executed(code: list[tuple[str | None, str]], steps: int, chunks: int) -> Counter[str]:
    """How often a warp executes each operation, modifiers included.

    Args:
      code: of `instructions`.
      steps, chunks: rounds of the outer and of the inner loop; one of 1 is no loop.
    """
    labels, lines = {}, []
    for label, line in code:
        if label is None:
            lines.append(line)
        else:
            labels[label] = len(lines)
    loops = []
    for place, line in enumerate(lines):
        target = re.search(r"BRA.*?(\.L_x_\d+)", line)
        if target and labels.get(target[1], place) <= place - LEAST_LOOP:
            loops.append(range(labels[target[1]], place + 1))
    rounds = [x for x in (steps, chunks) if x > 1]
    counted: Counter[str] = Counter()
    for place, line in enumerate(lines):
        depth = sum(place in loop for loop in loops)
        operation = re.sub(r"^@!?U?P\w+\s+", "", line).split()[0]
        if operation != "NOP":
            times = 1
            for factor in rounds[:depth]:
                times *= factor
            counted[operation] += times
    return counted


def instructions(cubin: bytes) -> list[tuple[str | None, str]]:
    """(None, instruction) and (label, "") in the order in which they stand."""
    import triton

    disassembler = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "nvdisasm"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        text = subprocess.run(
            [disassembler, "-c", file.name], check=True, capture_output=True, text=True
        ).stdout
    found = re.findall(r"^\s+/\*[0-9a-f]{4,}\*/\s+(.*?);|^(\.L_x_\d+):", text, re.MULTILINE)
    return [(label or None, line) for line, label in found]


if __name__ == "__main__":
    main()
