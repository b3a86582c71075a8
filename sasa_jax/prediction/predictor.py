"""What predictors of all tasks share: images come in, are prepared, batched and read back.

Preparation and network are those of the task's evaluation, so a prediction is what the evaluation
scored.
"""

import abc
import collections
import contextlib
import dataclasses
import functools
import itertools
import os
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence, Sized
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import cv2
import jax
import numpy as np
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec

from sasa_jax.data.image_transforms import decode
from sasa_jax.models import Variables, apply
from sasa_jax.tasks import Classification, Detection
from sasa_jax.training import data_mesh, put_batch

Image = str | os.PathLike[str] | bytes | np.ndarray
"""A file, a file's content, or uint8 pixels [H, W, 1 or 3], RGB."""


class ImageError(ValueError):
    """An image that cannot be read; says which and why."""


class Prediction(NamedTuple):
    """What `Predictor.stream` yields: an image as it came, and its result, or why there is none."""

    image: Any
    result: Any
    error: ImageError | None


@dataclasses.dataclass(frozen=True, eq=False)
class Predictor(abc.ABC):
    """A trained network with its preprocessing and the names of its classes; see `load`.

    Called with images it gives their results. All devices of this process share each batch.

    Attributes:
        task: that it was trained for, without data.
        config: of the run, nested dicts as stored with the checkpoint.
        variables: {"params", "batch_stats"}, on the first device.
        step: of the training.
    """

    task: Classification | Detection = dataclasses.field(repr=False)
    config: Mapping[str, Any] = dataclasses.field(repr=False)
    variables: Variables = dataclasses.field(repr=False)
    step: int

    # Of what `task.eval_transform` makes, the arrays that the network needs.
    inputs: ClassVar[tuple[str, ...]] = ("image",)
    # Of the options, those that the compiled program depends on.
    static_options: ClassVar[tuple[str, ...]] = ()

    @abc.abstractmethod
    def __call__(self, images: Image | Iterable[Image], **options: Any) -> list[Any]:
        """The results of one image or several, in order; the options are those of the task."""

    @property
    def task_name(self) -> str:
        """Of the config: "classification" or "detection"."""
        return self.config["task"]

    @property
    def class_names(self) -> tuple[str, ...]:
        """In the order of the logits; "" for a logit that no class uses."""
        return self.task.class_names

    @property
    def image_size(self) -> int:
        """S, side of the square that the network sees, in pixels."""
        return self.task.image_size

    @property
    def graphdef(self) -> nnx.GraphDef:
        """With `variables` for `sasa_jax.models.apply`."""
        return self.task.graphdef

    def preprocess(self, image: Image) -> dict[str, np.ndarray]:
        """One image as the evaluation prepares it, without a batch axis.

        The EXIF rotation of a photo is ignored, as in training and evaluation.

        Returns:
            "image": uint8 [S, S, 3]. For detection also "scale": float32, pixels of it for one of
            the original, and "size": int32 [2], height and width of the part that is image.

        Raises:
            ImageError: no such file, no image, or an array of another shape or type.
        """
        name = str(image) if isinstance(image, str | os.PathLike) else "the image"
        try:
            if isinstance(image, str | os.PathLike):
                image = Path(image).read_bytes()
            # Neither a label nor a place in a data set is known; no input depends on them.
            example = {"image": decode(image), "label": -1, "index": -1}
            prepared = self.task.eval_transform(example, None)
        except (ValueError, OSError, cv2.error) as error:
            reason = error.strerror if isinstance(error, OSError) else None
            text = " ".join(str(reason or error).split())
            raise ImageError(f"{name} cannot be read: {text}") from error
        return {key: prepared[key] for key in self.inputs}

    @functools.cached_property
    def network(self) -> Any:
        """The network alone, jitted, on one device: normalised float32 [B, S, S, 3] to raw outputs.

        Logits [B, classes]; of a detector class logits [B, A, classes] and box codes [B, A, 4].
        """

        @jax.jit
        def outputs(variables: Variables, images: jax.Array) -> Any:
            return apply(self.graphdef, variables, images, train=False)[0]

        return functools.partial(outputs, self.variables)

    def stream(
        self,
        images: Iterable[Image],
        *,
        batch_size: int = 32,
        threads: int | None = None,
        **options: Any,
    ) -> Generator[Prediction]:
        """Predicts image by image, in order, however many there are: a few batches are held.

        Images are read and prepared in threads while the devices work.

        Args:
            images: files, contents or pixels; any iterable.
            batch_size: images at a time, rounded up so that the devices share them. The last batch
                is filled up, so that one program is compiled. Of fewer images, whose number can be
                told, as many as the next power of two are taken.
            threads: that read and prepare; None takes one per CPU, 16 at most.
            options: as the predictor is called with.

        Raises:
            ValueError: a number that is not allowed; at once.
        """
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        if isinstance(images, Sized):
            batch_size = min(batch_size, 1 << max(len(images) - 1, 0).bit_length())
        devices = data_mesh().size
        rows = -(-batch_size // devices) * devices
        return self._stream(images, rows, threads, self._check_options(**options))

    def _stream(
        self, images: Iterable[Image], rows: int, threads: int | None, options: dict[str, Any]
    ) -> Generator[Prediction]:
        static = {name: options[name] for name in self.static_options}
        begun: collections.deque[tuple[list[_Item], Any]] = collections.deque()
        with contextlib.closing(self._prepared(images, rows, threads)) as prepared:
            try:
                while items := list(itertools.islice(prepared, rows)):
                    begun.append((items, self._begin(items, rows, static)))
                    # One batch late: the devices have the next while the host reads this one.
                    if len(begun) > 1:
                        yield from self._read(*begun.popleft(), options)
                if begun:
                    yield from self._read(*begun.popleft(), options)
            finally:
                # Left early: the process must not end while the devices work.
                jax.block_until_ready([outputs for _, outputs in begun])

    def _begin(self, items: Sequence["_Item"], rows: int, static: dict[str, Any]) -> Any:
        """Sends what could be prepared to the devices; None if there is nothing."""
        examples = [item.example for item in items if item.example is not None]
        if not examples:
            return None
        mesh = data_mesh()
        batch = {name: _stack([e[name] for e in examples], rows) for name in self.inputs}
        with jax.set_mesh(mesh):
            return self._compiled(self._replicated, put_batch(batch, mesh), **static)

    @abc.abstractmethod
    def _check_options(self, **options: Any) -> dict[str, Any]:
        """The options of a call with their defaults; raises ValueError."""

    @abc.abstractmethod
    def _outputs(self, variables: Variables, batch: dict[str, jax.Array], **static: Any) -> Any:
        """From a batch of `inputs` to what the host needs; traced."""

    @abc.abstractmethod
    def _result(self, outputs: Any, example: Mapping[str, np.ndarray], **options: Any) -> Any:
        """The result of one image from its row of the outputs, on the host."""

    @functools.cached_property
    def _replicated(self) -> Variables:
        """The variables on all devices; where there is one, no second copy."""
        return jax.device_put(self.variables, NamedSharding(data_mesh(), PartitionSpec()))

    @functools.cached_property
    def _compiled(self) -> Any:
        return jax.jit(self._outputs, static_argnames=self.static_options)

    def _read(
        self, items: Sequence["_Item"], outputs: Any, options: dict[str, Any]
    ) -> Iterator[Prediction]:
        outputs, row = jax.device_get(outputs), 0
        for image, example, error in items:
            result = None
            if example is not None:
                of_image = jax.tree.map(lambda x, row=row: x[row], outputs)
                result = self._result(of_image, example, **options)
                row += 1
            yield Prediction(image, result, error)

    def _prepared(
        self, images: Iterable[Image], rows: int, threads: int | None
    ) -> Generator["_Item"]:
        """The images in order, prepared about two batches ahead."""

        def prepare(image: Image) -> _Item:
            try:
                return _Item(image, self.preprocess(image), None)
            except ImageError as error:
                return _Item(image, None, error)

        pool = ThreadPoolExecutor(threads or min(16, os.cpu_count() or 1))
        pending: collections.deque[Future[_Item]] = collections.deque()
        try:
            for image in images:
                pending.append(pool.submit(prepare, image))
                if len(pending) > 2 * rows:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)

    def _call(self, images: Image | Iterable[Image], batch_size: int, **options: Any) -> list[Any]:
        if isinstance(images, str | os.PathLike | bytes) or getattr(images, "ndim", 4) == 3:
            images = [images]
        results = []
        for prediction in self.stream(images, batch_size=batch_size, **options):
            if prediction.error:
                raise prediction.error
            results.append(prediction.result)
        return results


class _Item(NamedTuple):
    """An image on its way to the devices."""

    image: Any
    example: dict[str, np.ndarray] | None
    error: ImageError | None


def _stack(arrays: Sequence[np.ndarray], rows: int) -> np.ndarray:
    """[rows, ...], zeros after the arrays."""
    stacked = np.zeros((rows, *np.shape(arrays[0])), arrays[0].dtype)
    stacked[: len(arrays)] = arrays
    return stacked
