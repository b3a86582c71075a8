"""What classification and detection share: a network on images, its data and its batches."""

import abc
import functools
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx

from sasa_jax.data import MEAN_RGB, STD_RGB, EvalLoader, TrainLoader, eval_loader, train_loader
from sasa_jax.data.corrupt import MAX_CORRUPT_SHARE, check_share
from sasa_jax.data.image_transforms import Transform
from sasa_jax.models import apply, split
from sasa_jax.tasks.splits import TaskData, open_data

Variables = dict[str, Any]


class ImageTask(abc.ABC):
    """The part of `sasa_jax.training.Task` that does not depend on what is looked for.

    Args:
        config: plain nested dicts, see configs/common.py.
        data: the opened splits.
        train_transform, eval_transform: from an example of the data to one of a batch.
        class_names: see there.

    Attributes:
        data: as given.
        train_size: images in one epoch.
        image_size: side of the square that the network sees, in pixels.
        class_names: one for each logit of the network; "" for a logit that no class uses.
        eval_transform: as given.
        model: the network without memory: shapes and options.
        graphdef, shapes: its two sides, see `models.split`.
        free_keys: config keys that may differ when a run is taken up again.

    Raises:
        ValueError, TypeError: an option of the model or the data that is not allowed.
    """

    free_keys: ClassVar[tuple[str, ...]] = (
        "checkpoint_every",
        "eval_batch_size",
        "eval_every",
        "hang_seconds",
        "keep_checkpoints",
        "log_every",
        "profile",
        "data.dir",
        "data.eval_split",
        "data.max_corrupt_share",
        "data.threads",
        "wandb",
    )

    def __init__(
        self,
        config: Mapping[str, Any],
        data: TaskData,
        train_transform: Transform,
        eval_transform: Transform,
        class_names: tuple[str, ...],
    ):
        self.data = data
        self.train_size = len(data.train)
        self.image_size = config["data"]["image_size"]
        self._config = config
        self._train_transform = train_transform
        self.eval_transform = eval_transform
        self.class_names = class_names
        _check_bn_groups(config)
        # Older checkpoints' configs lack it.
        self._max_corrupt_share = config["data"].get("max_corrupt_share", MAX_CORRUPT_SHARE)
        check_share(self._max_corrupt_share)
        self.model = nnx.eval_shape(self.build_model)
        self.graphdef, self.shapes = split(self.model)
        # Finds an image size that the network cannot take before anything is compiled.
        image = jax.ShapeDtypeStruct((1, self.image_size, self.image_size, 3), jnp.uint8)
        jax.eval_shape(self.predict, self.shapes, image)

    @staticmethod
    @abc.abstractmethod
    def open_split(name: str, split: str, data_dir: str | None) -> Any:
        """One split of a data set."""

    @classmethod
    def open(cls, config: Mapping[str, Any], *, allow_absent: bool = False) -> "ImageTask":
        """The task with its data; see `open_data`."""
        return cls(config, open_data(config, cls.open_split, allow_absent=allow_absent))

    @abc.abstractmethod
    def build_model(self, key: jax.Array | int = 0) -> nnx.Module:
        """The network that the config names, with random parameters."""

    def init(self, key: jax.Array) -> Variables:
        """Random variables of the network."""
        return split(self.build_model(key))[1]

    def pretrained(self) -> Variables:
        """Nothing: the network begins at random."""
        return {}

    def train_batches(self) -> TrainLoader:
        """Shuffled and augmented batches, this process's part."""
        return self._loader(
            train_loader,
            self.data.train,
            self._train_transform,
            batch_size=self._config["batch_size"],
            seed=self._config["seed"],
        )

    @functools.cached_property
    def eval_batches(self) -> EvalLoader:
        """Every image of the evaluation split once, this process's part; each iteration anew.

        A batch is the config's or a micro-batch, rounded up so that the devices share it.
        """
        config, devices = self._config, jax.device_count()
        wanted = config["eval_batch_size"] or config["batch_size"] // config["accumulation_steps"]
        return self._loader(
            eval_loader,
            self.data.evaluation,
            self.eval_transform,
            batch_size=-(-wanted // devices) * devices,
        )

    def describe_parameters(self) -> str:
        """Their number, and how many of them the paper's own number lacks."""
        params = self.shapes["params"]
        total = sum(x.size for x in jax.tree.leaves(params))
        stem = params.get("backbone", params)["stem"]
        tables = [stem[key] for key in ("row_embedding", "column_embedding") if key in stem]
        if not tables:
            return f"{total:,} parameters"
        relative = sum(table.size for table in tables)
        return (
            f"{total:,} parameters = {total - relative:,} + {relative} of the relative term in the "
            "stem's logits, which the paper's appendix does not write but its FLOPS need; without "
            "it: --config.model.stem_relative=False"
        )

    def predict(self, variables: Variables, images: jax.Array, **options: Any) -> Any:
        """What the network says of uint8 images [B, H, W, 3] in evaluation; traceable."""
        return apply(self.graphdef, variables, normalise(images), train=False, **options)[0]

    def _loader(self, make: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        return make(
            *arguments,
            **options,
            threads=self._config["data"]["threads"],
            max_corrupt_share=self._max_corrupt_share,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
        )


def normalise(images: jax.Array) -> jax.Array:
    """uint8 [B, H, W, 3] to float32 with mean 0 and deviation 1 over ImageNet, on the device."""
    mean, std = (jnp.asarray(x, jnp.float32).reshape(1, 1, 1, 3) for x in (MEAN_RGB, STD_RGB))
    return (images.astype(jnp.float32) - mean) / std


def given(options: Mapping[str, Any]) -> dict[str, Any]:
    """The options that a config sets; None is as the default has it."""
    return {key: value for key, value in options.items() if value is not None}


def unreadable_note(metrics: Mapping[str, float | int]) -> str:
    """For a run's last line: nothing, or how many images of the evaluation split were corrupt."""
    return f", {metrics['unreadable']} unreadable" if "unreadable" in metrics else ""


def _check_bn_groups(config: Mapping[str, Any]) -> None:
    """Raises ValueError unless BN's groups divide what is normalised at a time."""
    group = config["model"]["bn_group_size"]
    micro_batch = config["batch_size"] // config["accumulation_steps"]
    if group and micro_batch % group:
        raise ValueError(
            f"bn_group_size {group} does not divide the {micro_batch} images that are normalised "
            "at a time (batch_size / accumulation_steps)"
        )
