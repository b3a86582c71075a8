"""Table 2, detection on COCO: the paper's parameter and FLOPS cells beside ours.

`python -m sasa_jax.analysis.tables` prints it below the classification tables. A parameter cell is
matched when our count rounds to the printed digit, a FLOPS cell when our count is within 1 %.

All five parameter cells are reachable. Of the FLOPS cells the two of full attention contradict
table 1 (`paper.INCONSISTENT`) and are not counted; their marks are in brackets. Of the other three
the plain convention reaches two (attention in the heads is 1.1 % off), the itemised one all.

The text says that the FPN's layers become attention too. That has fewer parameters than are
printed; it is in the last line, and an option of the network.
"""

import dataclasses
import functools
from collections.abc import Iterable, Sequence

from flax import nnx

from sasa_jax.analysis.flops import Counts, Flops, count
from sasa_jax.analysis.paper import DETECTION_CLASSES, INCONSISTENT, TITLES, DetectionRow
from sasa_jax.analysis.text import align, mark, same_digit
from sasa_jax.models import create_retinanet

REACHABLE = Flops(plain=2, itemised=3)
"""Counted FLOPS cells that must be matched, of 3."""

TOLERANCE = 0.01


@dataclasses.dataclass(frozen=True)
class DetectionResult:
    """One row with our counts, in the paper's units: 10^6 parameters, 10^9 FLOPS."""

    row: DetectionRow
    parameters: float
    flops: tuple[float, float]  # plain, itemised

    @property
    def parameters_match(self) -> bool:
        """Whether the printed digit is ours."""
        return same_digit(self.parameters, self.row.parameters)

    @property
    def flops_errors(self) -> tuple[float, float]:
        """How much ours are above the printed ones, plain and itemised, as a share of them."""
        plain, itemised = (flops / self.row.flops - 1 for flops in self.flops)
        return plain, itemised

    @property
    def flops_match(self) -> tuple[bool, bool]:
        """Whether those are within the tolerance."""
        plain, itemised = (abs(error) <= TOLERANCE for error in self.flops_errors)
        return plain, itemised


def evaluate(row: DetectionRow) -> DetectionResult:
    """Counts the detector of one row at 640x640."""
    counts = _count(row.model, tuple(row.overrides.items()), tuple(row.detector.items()))
    plain, itemised = counts.flops
    return DetectionResult(row, counts.parameters / 1e6, (plain / 1e9, itemised / 1e9))


@functools.cache
def _count(model: str, overrides: tuple, detector: tuple) -> Counts:
    def build() -> nnx.Module:
        return create_retinanet(
            {"name": model, **dict(overrides)},
            num_classes=DETECTION_CLASSES,
            rngs=nnx.Rngs(0),
            **dict(detector),
        )

    return count(build, 640)


def passes(results: Iterable[DetectionResult]) -> bool:
    """All parameter cells, and the FLOPS cells that are reachable."""
    results = list(results)
    plain, itemised = _matched(results)
    return (
        all(result.parameters_match for result in results)
        and plain >= REACHABLE.plain
        and itemised >= REACHABLE.itemised
    )


def format_results(results: Sequence[DetectionResult]) -> str:
    """The table as aligned text, with the score below."""
    conventions = ("plain", "off", "", "itemised", "off", "")
    header = [
        ("row", "heads, backbone", "params M", "", "", "FLOPS B", *[""] * 6, "AP %", ""),
        ("", "", "paper", "ours", "", "paper", *conventions, "paper", "ours"),
    ]
    text = align([*header, *map(_cells, results)], left=(0, 1, 4, 8, 11))
    text.insert(len(header), f"\nTable 2: {TITLES[2]}")
    consistent = sum(not result.row.inconsistent for result in results)
    matched = zip(("plain", "itemised"), _matched(results), REACHABLE, strict=True)
    return "\n".join(
        [
            *text,
            "",
            f"parameters       {sum(result.parameters_match for result in results)} of "
            f"{len(results)} cells match",
            *(
                f"FLOPS, {name:9} {cells} of {consistent} cells within 1 %, {reachable} reachable"
                for name, cells, reachable in matched
            ),
            "",
            f"(...)  not counted: {INCONSISTENT}",
            f"text   {_as_the_text_says(results[-1])}",
        ]
    )


def _cells(result: DetectionResult) -> tuple[str, ...]:
    row = result.row
    flops = []
    for ours, error, match in zip(
        result.flops, result.flops_errors, result.flops_match, strict=True
    ):
        good = mark(match, "ok")
        flops += [f"{ours:.1f}", f"{100 * error:+.1f} %", f"({good})" if row.inconsistent else good]
    return (
        row.name,
        row.label,
        f"{row.parameters:.1f}",
        f"{result.parameters:.3f}",
        mark(result.parameters_match, "ok"),
        f"{row.flops:.0f}",
        *flops,
        f"{row.ap[0]:.1f}",
        "not run",
    )


def _matched(results: Iterable[DetectionResult]) -> tuple[int, int]:
    """Counted FLOPS cells within the tolerance, plain and itemised."""
    matches = [result.flops_match for result in results if not result.row.inconsistent]
    return sum(plain for plain, _ in matches), sum(itemised for _, itemised in matches)


def _as_the_text_says(result: DetectionResult) -> str:
    row = result.row
    detector = {**row.detector, "heads": "attention", "fpn": "attention"}
    other = evaluate(dataclasses.replace(row, detector=detector))
    plain, itemised = other.flops
    return (
        f"{row.name} with attention in the FPN too, as the text says: {other.parameters:.1f} M "
        f"parameters, {plain:.1f} B plain, {itemised:.1f} B itemised"
    )
