"""Batches for training and evaluation, run by Grain.

Training is one endless stream of examples whose positions 0, 1, 2, ... are the same for any number
of processes: position p is example `permutation(seed, epoch)[p mod n]` of epoch `p // n`, augmented
with a random generator that depends on (seed, p) alone. Global batch k is the positions
[k B, (k + 1) B), of which process r of P reads the r-th of P equal parts, so laying the parts end
to end gives the same global array for every P. Batches run across the ends of epochs: nothing is
dropped. The only state is the next position.
"""

import functools
import os
import sys
from collections.abc import Iterator
from typing import Protocol

import grain
import numpy as np

from sasa_jax.data.image_transforms import Example, Transform

Batch = dict[str, np.ndarray]


class Examples(Protocol):
    """What a loader reads: a random-access sequence of examples: `Split`, `DetectionSplit`."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Example: ...


class _Shard:
    """The stream as one process sees it: item j is the global position that is its j-th."""

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


class _Stream:
    """The training stream: item p is a function of (seed, p).

    Grain's own shuffle and random_map do the same at several times the cost, which for images as
    small as the digits is more than everything else.
    """

    def __init__(self, split: Examples, transform: Transform, seed: int):
        self._split = split
        self._transform = transform
        self._seed = seed

    def __len__(self) -> int:
        return sys.maxsize

    def __getitem__(self, position: int) -> Example:
        size = len(self._split)
        epoch, item = divmod(position, size)
        example = self._split[int(_order(self._seed, epoch, size)[item])]
        return self._transform(example, np.random.default_rng((self._seed, 1, position)))


# Threads that read ahead straddle two epochs; 10 MB each for ImageNet.
@functools.lru_cache(maxsize=4)
def _order(seed: int, epoch: int, size: int) -> np.ndarray:
    """The permutation [size] of an epoch."""
    return np.random.default_rng((seed, 0, epoch)).permutation(size)


class TrainLoader:
    """Endless iterator over this process's part of the global batches; see `train_loader`."""

    def __init__(
        self,
        split: Examples,
        transform: Transform,
        batch_size: int,
        seed: int,
        shard: slice,
        threads: int,
        worker_processes: int,
    ):
        self._stream = _Stream(split, transform, seed)
        self._batch_size = batch_size
        self._shard = shard
        self._threads = threads
        self._worker_processes = worker_processes
        self._identity = {"seed": seed, "num_examples": len(split)}
        self._start(0)

    def _start(self, position: int) -> None:
        self._position = position
        source = _Shard(self._stream, position, self._batch_size, self._shard)
        self._iterator = _iterate(source, self._shard, self._threads, self._worker_processes)

    def __iter__(self) -> "TrainLoader":
        return self

    def __next__(self) -> Batch:
        batch = next(self._iterator)
        self._position += self._batch_size
        return batch

    def get_state(self) -> dict[str, int]:
        """Position of the next batch in the stream; JSON-able, equal on every process."""
        return {"position": self._position, **self._identity}

    def set_state(self, state: dict[str, int]) -> None:
        """Go on after the batch at which `get_state` was taken, bit for bit.

        Another number of processes gives the same global batches; another batch size goes on from
        the same position of the stream.

        Raises:
          ValueError: the state is of a loader with another seed or number of examples.
        """
        for key, own in self._identity.items():
            if state[key] != own:
                raise ValueError(
                    f"state has {key} {state[key]}, this loader {own}: it is of another stream. "
                    "Resume with the data and the seed that the run began with."
                )
        self.close()
        self._start(int(state["position"]))

    def close(self) -> None:
        """End the reading threads; only `set_state` may follow."""
        self._iterator.close()


class EvalLoader:
    """Iterable over this process's part of all examples, in order; see `eval_loader`."""

    def __init__(
        self, split: Examples, transform: Transform, batch_size: int, shard: slice, threads: int
    ):
        self._padded = _Padded(split, transform, batch_size)
        self._batch_size = batch_size
        self._shard = shard
        self._threads = threads

    def __len__(self) -> int:
        """Number of batches, the same on every process."""
        return len(self._padded) // self._batch_size

    def __iter__(self) -> Iterator[Batch]:
        source = _Shard(self._padded, 0, self._batch_size, self._shard)
        iterator = _iterate(source, self._shard, self._threads)
        try:
            for _ in range(len(self)):
                yield next(iterator)
        finally:
            iterator.close()


class _Padded:
    """Transformed examples with a mask, filled up with zeros to whole global batches."""

    def __init__(self, split: Examples, transform: Transform, batch_size: int):
        self._split = split
        self._transform = transform
        self._length = -(-len(split) // batch_size) * batch_size

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, position: int) -> Example:
        if position < len(self._split):
            return {**self._transform(self._split[position], None), "mask": np.True_}
        # Decoded only for its shapes: a process may hold nothing but padding.
        example = self._transform(self._split[0], None)
        zeros = {key: np.zeros_like(value) for key, value in example.items()}
        return {**zeros, "index": np.int64(-1), "mask": np.False_}


def train_loader(
    split: Examples,
    transform: Transform,
    *,
    batch_size: int,
    seed: int,
    process_index: int = 0,
    process_count: int = 1,
    threads: int | None = None,
    worker_processes: int = 0,
) -> TrainLoader:
    """Endless shuffled and augmented batches, a function of (seed, epoch, index) alone.

    Args:
      split: the examples, e.g. `open_split("imagenet2012", "train", data_dir)`.
      transform: see image_transforms and box_transforms. Whatever arrays it makes of an example,
        the same keys, shapes and dtypes for all, are stacked; "index" must be among them.
      batch_size: global, B; this process gets b = B / process_count of each batch.
      seed: 0 <= seed < 2**32, of the order and the augmentation.
      process_index, process_count: which part of the global batches, of how many.
      threads: that read, decode and transform; 0 does it all in the caller's. None takes one per
        CPU, 16 at most. The batches do not depend on it.
      worker_processes: 0 reads in this process. More, each with `threads` threads, are for hosts
        where Python's lock limits the threads. They start in seconds, and need parsed absl flags
        (`absl.app.run` does it) and a main module guarded by `if __name__ == "__main__"`. The
        batches do not depend on it either.

    Returns:
      An iterator over dicts of what the transform makes, with a first axis of b: for
      classification {"image": uint8 [b, H, W, 3], "label": int32 [b], "index": int64 [b]}. It has
      get_state, set_state and close.

    Raises:
      ValueError: a number out of range, a batch that the processes cannot share, an empty split.
    """
    threads = _check_threads(threads)
    shard = _check_shard(split, batch_size, process_index, process_count)
    if not 0 <= seed < 2**32:
        raise ValueError(f"seed is {seed}; expected 0 <= seed < 2**32.")
    if worker_processes < 0:
        raise ValueError(f"worker_processes is {worker_processes}; expected 0 or more.")
    return TrainLoader(split, transform, batch_size, seed, shard, threads, worker_processes)


def eval_loader(
    split: Examples,
    transform: Transform,
    *,
    batch_size: int,
    process_index: int = 0,
    process_count: int = 1,
    threads: int | None = None,
) -> EvalLoader:
    """Every example exactly once over all processes, in order, in batches of one shape.

    Arguments and errors as `train_loader`. Batches additionally hold "mask": bool [b], False for
    the padding (zeros, index -1) that fills the last global batch. All processes yield
    the same number of batches, ceil(len(split) / batch_size), and each iteration starts anew.
    """
    threads = _check_threads(threads)
    shard = _check_shard(split, batch_size, process_index, process_count)
    return EvalLoader(split, transform, batch_size, shard, threads)


def _check_shard(split: Examples, batch_size: int, process_index: int, process_count: int) -> slice:
    """Rows of the global batch that belong to this process."""
    if process_count < 1 or not 0 <= process_index < process_count:
        raise ValueError(
            f"process_index is {process_index} and process_count {process_count}; expected "
            "0 <= process_index < process_count."
        )
    if batch_size < 1 or batch_size % process_count:
        raise ValueError(
            f"batch_size is {batch_size}; expected a positive multiple of process_count, "
            f"{process_count}."
        )
    if not len(split):
        raise ValueError(f"split is empty: {split!r}.")
    local_batch = batch_size // process_count
    return slice(process_index * local_batch, (process_index + 1) * local_batch)


def _check_threads(threads: int | None) -> int:
    if threads is None:
        return min(16, os.cpu_count() or 1)
    if threads < 0:
        raise ValueError(f"threads is {threads}; expected 0 or more, or None.")
    return threads


def _iterate(
    source: _Shard, shard: slice, threads: int, worker_processes: int = 0
) -> grain.DatasetIterator:
    """Batches of a process's examples, read ahead by about two batches."""
    local_batch = shard.stop - shard.start
    ahead = max(2 * local_batch, 2 * threads)
    if worker_processes:
        ahead = -(-ahead // worker_processes)
    # Read ahead by examples and not by batches: all threads then work on the same batch, and a
    # batch of thousands is not held once per thread.
    examples = grain.MapDataset.source(source).to_iter_dataset(
        grain.ReadOptions(num_threads=threads, prefetch_buffer_size=max(ahead, threads))
    )
    if worker_processes:
        options = grain.MultiprocessingOptions(
            num_workers=worker_processes, per_worker_buffer_size=ahead
        )
        examples = examples.mp_prefetch(options)
    return iter(examples.batch(local_batch))
