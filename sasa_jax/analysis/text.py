"""Tables as text."""

from collections.abc import Collection, Sequence


def align(rows: Sequence[Sequence[str]], left: Collection[int]) -> list[str]:
    """One line for each row, columns under one another and two spaces apart.

    Args:
        rows: cells, as many in each row.
        left: columns, from 0, that start at the left; the others, numbers, end at the right.
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            cell.ljust(width) if column in left else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def mark(match: bool, good: str) -> str:
    """What stands beside a cell: `good` or MISS."""
    return good if match else "MISS"


def same_digit(ours: float, printed: float) -> bool:
    """Whether a number rounds to the one that a table prints with one decimal."""
    return f"{ours:.1f}" == f"{printed:.1f}"
