"""Examples by their position in a stream, with what is done where one is corrupt.

Training: another one of the same epoch stands in, the next that is whole; it is augmented with the
generator of the position. Evaluation: the image is zeros and the mask False. Both are functions of
the position, so they do not depend on who reads what, and nothing of it is part of a run's state.
"""

import functools
import sys
from collections.abc import Iterator
from typing import Protocol

import numpy as np

from sasa_jax.data.corrupt import CorruptRecord, CorruptRecords, described
from sasa_jax.data.image_transforms import Example, Transform


class Examples(Protocol):
    """What a loader reads: a random-access sequence of examples: `Split`, `DetectionSplit`.

    An example that cannot be used raises CorruptRecord. Name and split are for people.
    """

    name: str
    split: str

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Example: ...


def read(
    split: Examples, index: int, transform: Transform, rng: np.random.Generator | None
) -> Example:
    """One example, transformed.

    Raises:
      CorruptRecord: it cannot be used.
    """
    example = split[index]
    try:
        return transform(example, rng)
    except CorruptRecord as error:
        raise CorruptRecord(error, example.get("file_name")) from error


def readable(split: Examples, transform: Transform) -> Iterator[tuple[Example, Example]]:
    """All examples that can be used, in order: as stored, and transformed for evaluation."""
    for index in range(len(split)):
        try:
            yield split[index], read(split, index, transform, None)
        except CorruptRecord:
            continue


class Shard:
    """A stream as one process sees it: item j is the global position that is its j-th."""

    def __init__(self, stream: Examples, start: int, global_batch: int, shard: slice):
        self._stream = stream
        self._start = start
        self._global_batch = global_batch
        self._first = shard.start
        self._local_batch = shard.stop - shard.start

    def __len__(self) -> int:
        return len(self._stream) - self._start

    def __getitem__(self, item: int) -> Example:
        step, row = divmod(item, self._local_batch)
        return self._stream[self._start + step * self._global_batch + self._first + row]


class TrainStream:
    """The endless training stream: item p is a function of (seed, p).

    Grain's own shuffle and random_map do the same at several times the cost, which for images as
    small as the digits is more than everything else.
    """

    def __init__(self, split: Examples, transform: Transform, seed: int, corrupt: CorruptRecords):
        self._split = split
        self._transform = transform
        self._seed = seed
        self._corrupt = corrupt

    def __len__(self) -> int:
        return sys.maxsize

    def __getitem__(self, position: int) -> Example:
        example, corrupt = self.read(position)
        if example is None:
            raise self._corrupt.too_many(described(*pair) for pair in corrupt.items())
        return example

    def read(self, position: int) -> tuple[Example | None, dict[int, CorruptRecord]]:
        """The example at a position, and the corrupt ones that it stands in for.

        None if there are more of them in a row than may be in the whole split.
        """
        size, corrupt = len(self._split), {}
        for place in range(position, position + self._corrupt.allowed + 1):
            # Past the end of an epoch its beginning follows.
            index = self.index(position // size * size + place % size)
            rng = np.random.default_rng((self._seed, 1, position))
            try:
                return read(self._split, index, self._transform, rng), corrupt
            except CorruptRecord as error:
                corrupt[index] = error
        return None, corrupt

    def index(self, position: int) -> int:
        """The example that belongs at a position."""
        size = len(self._split)
        epoch, item = divmod(position, size)
        return int(_order(self._seed, epoch, size)[item])


# Threads that read ahead straddle two epochs; 10 MB each for ImageNet.
@functools.lru_cache(maxsize=4)
def _order(seed: int, epoch: int, size: int) -> np.ndarray:
    """The permutation [size] of an epoch."""
    return np.random.default_rng((seed, 0, epoch)).permutation(size)


class EvalStream:
    """All examples with a mask, filled up with zeros, of index -1, to whole global batches."""

    def __init__(
        self, split: Examples, transform: Transform, batch_size: int, corrupt: CorruptRecords
    ):
        self._split = split
        self._transform = transform
        self._length = -(-len(split) // batch_size) * batch_size
        self._corrupt = corrupt

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, position: int) -> Example:
        if position >= len(self._split):
            return {**self._zeros, "index": np.int64(-1)}
        try:
            return {**self.read(position), "mask": np.True_}
        except CorruptRecord:
            return {**self._zeros, "index": np.int64(position)}

    def read(self, position: int) -> Example:
        """An example.

        Raises:
          CorruptRecord: it cannot be used.
        """
        return read(self._split, position, self._transform, None)

    @functools.cached_property
    def _zeros(self) -> Example:
        # Of the shapes of any example: a process may hold nothing but padding.
        corrupt = []
        for index in range(self._corrupt.allowed + 1):
            try:
                example = self.read(index)
            except CorruptRecord as error:
                corrupt.append(described(index, error))
            else:
                return {k: np.zeros_like(v) for k, v in example.items()} | {"mask": np.False_}
        raise self._corrupt.too_many(corrupt)
