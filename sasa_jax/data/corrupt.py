"""Records that cannot be used: they are named, counted and passed over; too many end the run.

A record is corrupt if its checksum says so, if its image is no image, is cut short or is of another
size than stated, or if its label or a box cannot be. Reading it raises `CorruptRecord`, and the
loaders go on with another one. Whatever is not about a single record (a missing file, no
permission, no memory) is raised as it is and ends the run.
"""

import sys
from collections.abc import Iterable

# Public sets of millions of images hold a few; a thousandth points to a bad copy.
MAX_CORRUPT_SHARE = 0.001
# So few end no run, however small the data set is, unless the share is 0.
HANDFUL = 5


class CorruptRecord(ValueError):
    """One record cannot be used; the message says why, after the file's name where it has one."""

    def __init__(self, reason: object, file_name: str | None = None):
        super().__init__(f"{file_name}: {reason}" if file_name else str(reason))


class CorruptDataError(RuntimeError):
    """Too many records of a split are corrupt; says how many, which, and what to do."""


class CorruptRecords:
    """Those of one split that this process has met; each is told on stderr, once.

    They are not saved with a run: one that goes on meets them again, and tells of them again.

    Args:
      name: of the split, for people.
      size: its number of examples.
      max_share: of them that may be corrupt, 0 to 1. 0 lets none pass, and otherwise a handful
        passes, but never all.

    Attributes:
      allowed: number that may be corrupt.

    Raises:
      ValueError: a share out of range.
    """

    def __init__(self, name: str, size: int, max_share: float):
        check_share(max_share)
        most = max(int(max_share * size), HANDFUL) if max_share else 0
        self.allowed = min(most, size - 1)
        self._name = name
        self._size = size
        self._max_share = max_share
        self._found: dict[int, str] = {}

    def __contains__(self, index: int) -> bool:
        return index in self._found

    def add(self, index: int, error: CorruptRecord) -> None:
        """Tells of a record, if it is new.

        Raises:
          CorruptDataError: it is one too many.
        """
        if index in self._found:
            return
        self._found[index] = described(index, error)
        print(f"corrupt, left out: {self._name}, {self._found[index]}", file=sys.stderr, flush=True)
        if len(self._found) > self.allowed:
            raise self.too_many(self._found.values())

    def too_many(self, descriptions: Iterable[str]) -> CorruptDataError:
        """The error that says so."""
        found = list(descriptions)
        return CorruptDataError(
            f"corrupt examples of {self._name}: {len(found):,} of {self._size:,}, more than the "
            f"{self.allowed:,} that data.max_corrupt_share {self._max_share:g} lets pass: "
            f"{'; '.join(found[:3])}{'; ...' if len(found) > 3 else ''}. Copy or prepare the data "
            "anew, or set a larger share; the same command then goes on from the last checkpoint"
        )


def described(index: int, error: CorruptRecord) -> str:
    """An example and what is wrong with it."""
    return f"example {index}: {error}"


def check_share(max_share: float) -> None:
    """Raises ValueError unless it is from 0 to 1."""
    if not 0 <= max_share <= 1:
        raise ValueError(f"max_corrupt_share is {max_share}; expected 0 to 1.")
