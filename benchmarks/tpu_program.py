"""Adds up a program that XLA has compiled for a TPU: time by kind of operation, collectives."""

import collections
import dataclasses
import hashlib
import math
import re
from pathlib import Path

from benchmarks import tpu_bundles


@dataclasses.dataclass(frozen=True)
class Chip:
    clock: float  # Hz
    bandwidth: float  # bytes/s of the HBM
    memory: float  # bytes of HBM


# Clocks follow from peak bfloat16 FLOP/s (197, 459, 918 T) and the sizes of the matrix units.
CHIPS = {
    "TPU v5 lite": Chip(clock=1.5e9, bandwidth=819e9, memory=16e9),
    "TPU v5": Chip(clock=1.75e9, bandwidth=2765e9, memory=95e9),
    "TPU v6 lite": Chip(clock=1.75e9, bandwidth=1640e9, memory=32e9),
}


@dataclasses.dataclass(frozen=True)
class Kernel:
    """One kernel, in all its calls: milliseconds issuing bundles, and moving bytes."""

    name: str
    calls: int
    compute_ms: float
    transfer_ms: float

    @property
    def milliseconds(self) -> float:
        return max(self.compute_ms, self.transfer_ms)


@dataclasses.dataclass(frozen=True)
class Collective:
    """One kind of collective at one place of the program.

    Attributes:
      kind: such as "all-reduce".
      origin: the operation of the traced program that it comes from.
      files: of the Python stack there, innermost first.
      shape: of what it carries, as XLA writes it.
      calls: how often a run of the program executes it.
    """

    kind: str
    origin: str
    files: tuple[str, ...]
    shape: str
    calls: int

    @property
    def sizes(self) -> list[int]:
        """Elements of each array that it carries."""
        return [size for _, size in _arrays(self.shape)]

    @property
    def bytes(self) -> int:
        """In all calls."""
        return self.calls * _bytes(self.shape)


@dataclasses.dataclass(frozen=True)
class Operation:
    """One line of a compiled program: `%name = shape opcode(...), attributes`."""

    name: str
    shape: str
    opcode: str
    text: str

    @property
    def operands(self) -> list[str]:
        """The names of the operations that it takes its inputs from."""
        _, _, rest = self.text.partition(f" {self.opcode}(")
        return re.findall(r"%([\w.-]+)", rest.partition(")")[0])

    @property
    def called(self) -> list[str]:
        """The computations that it calls."""
        pattern = r"(?:calls|body|to_apply|\w+_computation)=%?([\w.-]+)"
        branches = re.search(r"branch_computations=\{([^}]*)\}", self.text)
        more = re.findall(r"%?([\w.-]+)", branches[1]) if branches else []
        return re.findall(pattern, self.text) + more


# Costs nothing, or is hidden behind what runs meanwhile.
FREE = set(
    "parameter constant tuple get-tuple-element bitcast iota partition-id replica-id after-all "
    "opt-barrier copy-start copy-done slice-start slice-done dynamic-slice-start "
    "dynamic-slice-done async-update async-done".split()
)
FREE_CALLS = re.compile('custom_call_target="(ConcatBitcast|AllocateBuffer|Assume)')
COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
BYTES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s32": 4, "u32": 4, "f32": 4, "f64": 8}


class Program:
    """Adds up one compiled program.

    Args:
      text: of the compiled program.
      chip: what it runs on.
      files: the scheduled bundles of its operations, by their names.
      kernels: what Pallas kernels without such a file issue, by their code.
      lower_bound: also count the operations that the compiler has estimated by their bundles.

    Attributes:
      counts: what the program's Pallas kernels issue, by their code.
      uncounted: operations with neither an estimate nor bundles. In the sums they are the bytes
        that they read and write, over the HBM's bandwidth.

    Raises:
      RuntimeError: a Pallas kernel of which nothing is known.
    """

    def __init__(
        self,
        text: str,
        chip: Chip,
        files: dict[str, Path],
        kernels: dict[str, tpu_bundles.Count],
        lower_bound: bool = False,
    ):
        self.kinds: collections.Counter = collections.Counter()
        self.uncounted: collections.Counter = collections.Counter()
        self.lower_bound: float | None = 0.0 if lower_bound else None
        self._text, self._files, self._chip = text, files, chip
        self.counts = dict(kernels)
        self._kernels: dict[str, Kernel] = {}
        self._collectives: collections.Counter = collections.Counter()
        self._computations, entry = _computations(text)
        self._add(entry, times=1)

    def _add(self, computation: str, times: int) -> None:
        shapes = {o.name: o.shape for o in self._computations[computation]}
        for operation in self._computations[computation]:
            opcode = operation.opcode
            base = re.sub("-(start|done)$", "", opcode)
            if opcode == "while":
                trips = self._trips(operation, self._computations[computation])
                if trips is None:
                    self.uncounted["while of unknown length, counted once"] += times
                for body in operation.called:
                    self._add(body, times * (trips or 1))
            elif opcode in ("call", "conditional", "async-start"):
                for called in operation.called:
                    self._add(called, times)
            elif 'custom_call_target="tpu_custom_call"' in operation.text:
                self._add_kernel(operation, times)
            elif base in COLLECTIVES:
                if not opcode.endswith("-done"):
                    origin = re.search(r'op_name="([^"]*)"', operation.text)
                    frame = re.search(r"stack_frame_id=(\d+)", operation.text)
                    files = _stack(self._text, frame[1]) if frame else ()
                    key = base, origin[1] if origin else "", files, operation.shape
                    self._collectives[key] += times
            elif opcode not in FREE and not FREE_CALLS.search(operation.text):
                arrays = [operation.shape, *(shapes.get(name, "") for name in operation.operands)]
                self._add_operation(operation, times, sum(map(_bytes, arrays)))

    def _add_kernel(self, operation: Operation, times: int) -> None:
        body = re.search(r'"body":"([^"]*)"', operation.text)
        code = hashlib.sha256((body[1] if body else operation.text).encode()).hexdigest()
        if code not in self.counts:
            if operation.name not in self._files:
                raise RuntimeError(
                    f"no bundles of the kernel {operation.name}: it was not counted before, and "
                    "libtpu wrote none (it was loaded before the Topology was opened?)"
                )
            self.counts[code] = tpu_bundles.count(self._files[operation.name].read_text())
        title = re.sub(r"\.\d+$", "", operation.name)
        one = self._cost(self.counts[code])
        sofar = self._kernels.get(title, Kernel(title, 0, 0.0, 0.0))
        self._kernels[title] = Kernel(
            title,
            sofar.calls + times,
            sofar.compute_ms + times * one.compute_ms,
            sofar.transfer_ms + times * one.transfer_ms,
        )
        self._count("Pallas kernels", times, one.milliseconds)

    def _cost(self, count: tpu_bundles.Count) -> Kernel:
        """Of one call."""
        return Kernel(
            "",
            calls=1,
            compute_ms=1000 * count.cycles / self._chip.clock,
            transfer_ms=1000 * count.hbm_bytes / self._chip.bandwidth,
        )

    def _add_operation(self, operation: Operation, times: int, moved: int) -> None:
        """One of XLA's own, that reads and writes so many bytes."""
        estimated = re.search(r'"estimated_cycles":"(\d+)"', operation.text)
        bound = None
        if self.lower_bound is not None or not estimated:
            try:
                text = self._files[operation.name].read_text()
                bound = self._cost(tpu_bundles.count(text)).milliseconds
            except (KeyError, ValueError):  # inlined, or with loops of unknown length
                pass
        if estimated:
            milliseconds = 1000 * int(estimated[1]) / self._chip.clock
            self._count(self._kind(operation), times, milliseconds, bound)
        elif bound is not None:
            self._count("no estimate, bundles", times, bound)
        elif _bytes(operation.shape) > 4096:  # less is scalars and the like, of no weight
            self.uncounted[operation.opcode] += times
            self._count("no estimate, bytes", times, 1000 * moved / self._chip.bandwidth)

    def _count(
        self, kind: str, times: int, milliseconds: float, bound: float | None = None
    ) -> None:
        self.kinds[kind] += times * milliseconds
        if self.lower_bound is not None:
            bound = milliseconds if bound is None else min(bound, milliseconds)
            self.lower_bound += times * bound

    def _trips(self, loop: Operation, around: list[Operation]) -> int | None:
        """How often a loop's body runs; JAX's loops of known length count up by one."""
        if known := re.search(r'"known_trip_count":\{"n":"(\d+)"', loop.text):
            return int(known[1])
        carried = {o.name: o for o in around}[loop.operands[0]]
        within = self._computations[re.search(r"condition=%?([\w.-]+)", loop.text)[1]]
        values = {o.name: o for o in (*around, *within)}

        def number(name: str) -> int | None:
            operation = values[name]
            if operation.opcode == "get-tuple-element" and carried.opcode == "tuple":
                index = int(re.search(r"index=(\d+)", operation.text)[1])
                operation = values[carried.operands[index]]
            while operation.opcode in ("copy", "copy-done", "copy-start", "bitcast"):
                operation = values[operation.operands[0]]
            found = re.search(r" constant\((-?\d+)\)", operation.text)
            return int(found[1]) if found else None

        compare = within[-1]
        if compare.opcode != "compare" or "direction=LT" not in compare.text:
            return None
        first, bound = map(number, compare.operands)
        return None if first is None or bound is None else bound - first

    def _kind(self, operation: Operation) -> str:
        inside = {operation.opcode, *self._inside(operation)}
        if "convolution" in inside:
            return "convolutions"
        if inside <= {*FREE, "fusion", "copy", "transpose", "reshape", "convert"}:
            return "copies"
        return "other fusions"

    def _inside(self, operation: Operation) -> set[str]:
        """The opcodes within a fusion."""
        found: set[str] = set()
        if operation.opcode == "fusion":
            for called in operation.called:
                for inner in self._computations[called]:
                    found |= {inner.opcode, *self._inside(inner)}
        return found

    def kernels(self) -> list[Kernel]:
        """By name, all their calls together."""
        return list(self._kernels.values())

    def collectives(self) -> list[Collective]:
        return [Collective(*key, calls) for key, calls in self._collectives.items()]


def _computations(text: str) -> tuple[dict[str, list[Operation]], str]:
    """All computations of a compiled program by name, and the entry's name."""
    computations: dict[str, list[Operation]] = {}
    entry = current = ""
    for line in text.splitlines():
        if head := re.match(r"(ENTRY )?%?([\w.-]+) \(.*\{$", line):
            current = head[2]
            entry = current if head[1] else entry
            computations[current] = []
        elif found := re.match(r"\s+(?:ROOT )?%?([\w.-]+) = (.*?) ([a-z][\w-]*)\(", line):
            computations[current].append(Operation(*found.groups(), text=line))
    return computations, entry


def _stack(text: str, frame: str) -> tuple[str, ...]:
    """The files of a stack frame and its callers, innermost first, from a program's tables."""
    files = []
    while True:
        location, parent = re.search(
            rf"(?m)^{frame} {{file_location_id=(\d+) parent_frame_id=(\d+)}}", text
        ).groups()
        name = re.search(rf"(?m)^{location} {{file_name_id=(\d+) function_name_id", text)[1]
        files.append(re.search(rf'(?m)^{name} "([^"]*)"', text)[1])
        if parent == frame:
            return tuple(files)
        frame = parent


def _arrays(shape: str) -> list[tuple[str, int]]:
    """The dtype and the number of elements of each array in a shape's text."""
    return [
        (dtype, math.prod(int(n) for n in dimensions.split(",") if n))
        for dtype, dimensions in re.findall(r"([a-z]+\d*)\[([\d,]*)\]", shape)
    ]


def _bytes(shape: str) -> int:
    return sum(BYTES.get(dtype, 4) * size for dtype, size in _arrays(shape))
