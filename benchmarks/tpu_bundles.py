"""Counts the cycles of a compiled TPU program, from the text of its scheduled instruction bundles.

A TPU core issues one bundle a cycle, in order; bundles that only wait for a result are there too
(in the dump "packed-bundles-post-ra"; they are folded into others in "final_bundles", which would
make long latencies free). Loops and branches stand once and are walked as the core would walk
them. Of all instructions only those are executed that decide where control goes or how much is
transferred. What depends on data, or on an instruction unknown here, is taken as not branching and
as transferred.
"""

import dataclasses
import operator
import re

DELAY_SLOTS = 4  # bundles after a branch that are issued whether it is taken or not
GRANULE = 32  # bytes, the unit in which a transfer states its size
TRANSFERS = ("dma.hbm_to_vmem", "dma.vmem_to_hbm", "dma.general")
MOST_STEPS = 50_000_000

State = dict[str, int | None]  # by register, or by the text of a fixed address


@dataclasses.dataclass(frozen=True)
class Count:
    """What a program issues.

    cycles: bundles, which is the time without stalls.
    hbm_bytes: moved between HBM and the core.
    visits: how often the bundles [start, stop) were issued.
    """

    cycles: int
    hbm_bytes: int
    visits: dict[tuple[int, int], int]


@dataclasses.dataclass(frozen=True)
class Instruction:
    """`%target = opcode (guard) operands`; a value is named %<number>_<register>."""

    opcode: str
    target: str
    guard: str | None  # "%p1_p0" or "!%p1_p0"
    operands: tuple[str, ...]

    @property
    def writes(self) -> str:
        """The value, or the fixed address in memory, that it sets."""
        return self.operands[0] if self.opcode == "sst" else self.target

    @property
    def reads(self) -> set[str]:
        operands = self.operands[1:] if self.opcode == "sst" else self.operands
        # A guarded write leaves the old value, which stands in the guard.
        values = set(re.findall(r"%\w+", " ".join((self.guard or "", *operands))))
        return values | set(operands) if self.opcode == "sld" else values


@dataclasses.dataclass
class Segment:
    """Bundles [start, stop), with no way in or out between them."""

    start: int
    stop: int
    steps: list[list[Instruction]]  # of each bundle, what matters
    branch: Instruction | None
    target: int | None
    transfers: list[Instruction]


def count(text: str) -> Count:
    """Walks one program's scheduled bundles.

    Raises:
      ValueError: a loop whose end could not be found out.
    """
    segments = _segments(parse(text))
    state: State = {}
    visits = dict.fromkeys(segments, 0)
    hbm_bytes = place = 0
    arrival = target = None  # the jump under way: after which bundle, and to where
    for _ in range(MOST_STEPS):
        segment = segments.get(place)
        if segment is None:
            spans = {(at, segments[at].stop): times for at, times in visits.items()}
            cycles = sum((stop - start) * times for (start, stop), times in spans.items())
            return Count(cycles, hbm_bytes, spans)
        visits[place] += 1
        for transfer in segment.transfers:
            if _guard(transfer, state) is not False:
                hbm_bytes += GRANULE * (_value(transfer.operands[0], state) or 0)
        if segment.branch:
            taken = _guard(segment.branch, state)
            if taken is None and segment.target <= place:
                raise ValueError(f"what ends the loop at bundle {place:#x} is not known")
            if taken:
                arrival, target = place + 1 + DELAY_SLOTS, segment.target
        for bundle in segment.steps:
            # All of a bundle's instructions read before any of them writes.
            new = [(_place(i), _result(i, state)) for i in bundle]
            state.update(new)
        place = segment.stop
        if place == arrival:
            place, arrival = target, None
    raise ValueError(f"a loop near bundle {place:#x} did not end in {MOST_STEPS} steps")


def parse(text: str) -> list[list[Instruction]]:
    """All bundles in order; of vectors' instructions, which decide nothing, none."""
    bundles = []
    for chunk in re.split(r"(?m)^ *(?:0x[0-9a-f]+|0) +(?:[A-Z]{2})?: ", text)[1:]:
        if "/*" in chunk:
            chunk = chunk.replace("/*size_in_granules=*/", "size_in_granules=")
            # Where two cores share a program (v4, v5p), the first one's part.
            chunk = re.sub(r"sld \S+ /\* megacore core id", "smov 0 /*", chunk)
            chunk = re.sub(r"/\*.*?\*/", "", chunk, flags=re.DOTALL)
        parts = chunk[chunk.index("{") + 1 : chunk.rindex("}")].split(";;")
        parts = [part for part in map(str.strip, parts) if part and not part.startswith("%v")]
        bundles.append([_instruction(part) for part in parts])
    return bundles


def _instruction(text: str) -> Instruction:
    target, opcode, guard, rest = re.match(
        r"\s*(?:(%\S+) = )?([\w.-]+)\s*(?:\[thread:\S+\]\s*)?(\(!?%p[^)]*\))?,?(.*)",
        text,
        re.DOTALL,
    ).groups()
    # Loads and stores have the guard behind the address.
    if opcode in ("sld", "sst") and (behind := re.search(r"\(!?%p\w+\),?", rest)):
        guard, rest = behind[0].rstrip(","), rest.replace(behind[0], "")
    operands = tuple(part.strip() for part in rest.split(","))
    if opcode == "sbr.rel":
        operands = (re.search(r"bundleno = (\d+)", rest)[1],)
    elif opcode.startswith("dma.") and (size := re.search(r"size_in_granules=(%?\w+)", rest)):
        operands = (size[1],)
    elif opcode == "sst":
        operands = tuple(rest.split())
    return Instruction(opcode, target or "", guard and guard[1:-1], operands)


def _segments(bundles: list[list[Instruction]]) -> dict[int, Segment]:
    """By their first bundle."""
    branches, transfers = {}, {}
    for place, bundle in enumerate(bundles):
        for instruction in bundle:
            if instruction.opcode == "sbr.rel":
                branches[place] = instruction
            elif instruction.opcode in TRANSFERS:
                transfers.setdefault(place, []).append(instruction)
    needed = _needed(bundles, [*branches.values(), *(i for x in transfers.values() for i in x)])
    # A branch, and a bundle with transfers, opens a segment, so that guards are read in time.
    starts = {0} | set(branches) | set(transfers)
    starts |= {int(branch.operands[0]) for branch in branches.values()}
    starts |= {place + 1 + DELAY_SLOTS for place in branches}
    ordered = sorted(place for place in starts if place < len(bundles))
    segments = {}
    for start, stop in zip(ordered, [*ordered[1:], len(bundles)], strict=True):
        # A phi's arguments share its register: nothing is left to do.
        steps = [
            [i for i in bundle if i.writes in needed and i.opcode != "sphi"]
            for bundle in bundles[start:stop]
        ]
        branch = branches.get(start)
        segments[start] = Segment(
            start,
            stop,
            steps=[step for step in steps if step],
            branch=branch,
            target=branch and int(branch.operands[0]),
            transfers=transfers.get(start, []),
        )
    return segments


def _needed(bundles: list[list[Instruction]], roots: list[Instruction]) -> set[str]:
    """The values, and places in memory, that the roots' guards and sizes depend on."""
    by_target = {}
    for instruction in (i for bundle in bundles for i in bundle):
        by_target.setdefault(instruction.writes, []).append(instruction)
    needed: set[str] = set()
    open_ = [name for root in roots for name in root.reads]
    while open_:
        name = open_.pop()
        if name not in needed:
            needed.add(name)
            open_ += [read for i in by_target.get(name, []) for read in i.reads]
    return needed


def _place(instruction: Instruction) -> str:
    writes = instruction.writes
    return writes.rpartition("_")[2] if writes.startswith("%") else writes


def _guard(instruction: Instruction, state: State) -> bool | None:
    """Whether it is executed; None if not known."""
    if instruction.guard is None:
        return True
    value = _value(instruction.guard.partition(",")[0], state)
    return None if value is None else bool(value)


def _value(operand: str, state: State) -> int | None:
    if operand.startswith("!"):
        value = _value(operand[1:], state)
        return None if value is None else int(not value)
    if operand.startswith("%"):
        return state.get(operand.rpartition("_")[2])
    try:
        return _signed(int(operand, 0))
    except ValueError:
        return None


def _result(instruction: Instruction, state: State) -> int | None:
    guard = _guard(instruction, state)
    if guard is False:
        return state.get(_place(instruction))
    if guard is None:
        return None
    opcode = instruction.opcode
    if opcode == "sld":
        return state.get(instruction.operands[0])
    if opcode == "sst":
        return _value(instruction.operands[1], state)
    values = [_value(operand, state) for operand in instruction.operands]
    if opcode == "scalar_select":
        return None if values[0] is None else values[1] if values[0] else values[2]
    if opcode in ("pand", "pnand") and 0 in values:
        return int(opcode == "pnand")
    if opcode == "por" and 1 in values:
        return 1
    operation = OPERATIONS.get(".".join(opcode.split(".")[:2])) or OPERATIONS.get(
        opcode.split(".")[0]
    )
    if operation is None or None in values:
        return None
    return _signed(int(operation(*values)))


def _signed(number: int) -> int:
    return (number + 2**31) % 2**32 - 2**31


def _unsigned(number: int) -> int:
    return number % 2**32


OPERATIONS = {
    "smov": lambda a: a,
    "pmov": lambda a: a,
    "pneg": lambda a: not a,
    "sadd": operator.add,
    "ssub": operator.sub,
    "smul": operator.mul,
    "sand": operator.and_,
    "sor": operator.or_,
    "sxor": operator.xor,
    "smin": min,
    "smax": max,
    "sshll": lambda a, b: a << b if b < 32 else 0,
    "sshrl": lambda a, b: _unsigned(a) >> b,
    "sshra": operator.rshift,
    "scmp.eq": operator.eq,
    "scmp.ne": operator.ne,
    "scmp.lt": operator.lt,
    "scmp.le": operator.le,
    "scmp.gt": operator.gt,
    "scmp.ge": operator.ge,
    "pand": lambda a, b: a and b,
    "por": lambda a, b: a or b,
    "pnand": lambda a, b: not (a and b),
}
