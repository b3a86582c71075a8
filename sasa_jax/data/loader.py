"""Batches for training and evaluation, run by Grain.

Training is one endless stream of examples whose positions 0, 1, 2, ... are the same for any number
of processes: position p is example `permutation(seed, epoch)[p mod n]` of epoch `p // n`, augmented
with a random generator that depends on (seed, p) alone. Global batch k is the positions
[k B, (k + 1) B), of which process r of P reads the r-th of P equal parts, so laying the parts end
to end gives the same global array for every P. Batches run across the ends of epochs: nothing is
dropped, but for corrupt records (see streams and corrupt). The only state is the next position.
"""

import os
from collections.abc import Iterator

import grain
import numpy as np

from sasa_jax.data.corrupt import MAX_CORRUPT_SHARE, CorruptRecord, CorruptRecords
from sasa_jax.data.image_transforms import Transform
from sasa_jax.data.streams import EvalStream, Examples, Shard, TrainStream

Batch = dict[str, np.ndarray]


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
        corrupt: CorruptRecords,
    ):
        self._stream = TrainStream(split, transform, seed, corrupt)
        self._batch_size = batch_size
        self._shard = shard
        self._threads = threads
        self._worker_processes = worker_processes
        self._corrupt = corrupt
        self._identity = {"seed": seed, "num_examples": len(split)}
        self._start(0)

    def _start(self, position: int) -> None:
        self._position = position
        source = Shard(self._stream, position, self._batch_size, self._shard)
        self._iterator = _iterate(source, self._shard, self._threads, self._worker_processes)

    def __iter__(self) -> "TrainLoader":
        return self

    def __next__(self) -> Batch:
        batch = next(self._iterator)
        for position, index in enumerate(batch["index"], self._position + self._shard.start):
            if index != self._stream.index(position):
                # Read again, here: the example may come from another process.
                for corrupt, error in self._stream.read(position)[1].items():
                    self._corrupt.add(corrupt, error)
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
        self,
        split: Examples,
        transform: Transform,
        batch_size: int,
        shard: slice,
        threads: int,
        corrupt: CorruptRecords,
    ):
        self._examples = EvalStream(split, transform, batch_size, corrupt)
        self._batch_size = batch_size
        self._shard = shard
        self._threads = threads
        self._corrupt = corrupt

    def __len__(self) -> int:
        """Number of batches, the same on every process."""
        return len(self._examples) // self._batch_size

    def __iter__(self) -> Iterator[Batch]:
        source = Shard(self._examples, 0, self._batch_size, self._shard)
        iterator = _iterate(source, self._shard, self._threads)
        try:
            for _ in range(len(self)):
                batch = next(iterator)
                unreadable = batch["index"][~batch["mask"] & (batch["index"] >= 0)]
                for index in unreadable.tolist():
                    self._tell(index)
                yield batch
        finally:
            iterator.close()

    def _tell(self, index: int) -> None:
        if index not in self._corrupt:
            try:
                self._examples.read(index)
            except CorruptRecord as error:
                self._corrupt.add(index, error)


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
    max_corrupt_share: float = MAX_CORRUPT_SHARE,
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
      max_corrupt_share: of the split's examples that may be corrupt, see CorruptRecords. In place
        of a corrupt one stands the next of its epoch's order.

    Returns:
      An iterator over dicts of what the transform makes, with a first axis of b: for
      classification {"image": uint8 [b, H, W, 3], "label": int32 [b], "index": int64 [b]}. It has
      get_state, set_state and close.

    Raises:
      ValueError: a number out of range, a batch that the processes cannot share, an empty split.
      CorruptDataError: while iterating, too many examples are corrupt.
    """
    threads = _check_threads(threads)
    shard = _check_shard(split, batch_size, process_index, process_count)
    if not 0 <= seed < 2**32:
        raise ValueError(f"seed is {seed}; expected 0 <= seed < 2**32.")
    if worker_processes < 0:
        raise ValueError(f"worker_processes is {worker_processes}; expected 0 or more.")
    corrupt = CorruptRecords(f"{split.name} {split.split}", len(split), max_corrupt_share)
    return TrainLoader(
        split, transform, batch_size, seed, shard, threads, worker_processes, corrupt
    )


def eval_loader(
    split: Examples,
    transform: Transform,
    *,
    batch_size: int,
    process_index: int = 0,
    process_count: int = 1,
    threads: int | None = None,
    max_corrupt_share: float = MAX_CORRUPT_SHARE,
) -> EvalLoader:
    """Every example exactly once over all processes, in order, in batches of one shape.

    Arguments and errors as `train_loader`. Batches additionally hold "mask": bool [b], False for
    the padding (zeros, index -1) that fills the last global batch and for corrupt examples (zeros,
    their own index). All processes yield the same number of batches, ceil(len(split) / batch_size),
    and each iteration starts anew; a corrupt example is told of in the first.
    """
    threads = _check_threads(threads)
    shard = _check_shard(split, batch_size, process_index, process_count)
    corrupt = CorruptRecords(f"{split.name} {split.split}", len(split), max_corrupt_share)
    return EvalLoader(split, transform, batch_size, shard, threads, corrupt)


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
    source: Shard, shard: slice, threads: int, worker_processes: int = 0
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
