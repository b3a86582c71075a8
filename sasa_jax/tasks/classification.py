"""Image classification: softmax cross-entropy, top-1 and top-5 accuracy."""

from collections.abc import Mapping
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
from clu import metrics
from flax import nnx

from sasa_jax.data import MEAN_RGB, STD_RGB, TrainLoader, eval_loader, train_loader
from sasa_jax.models import ResNet, apply, create_model, split
from sasa_jax.tasks.classification_data import ClassificationData, transform

Variables = dict[str, Any]


@flax.struct.dataclass
class Scores(metrics.Collection):
    """Sums over the images that the mask lets through."""

    top1: metrics.Average.from_output("top1")
    top5: metrics.Average.from_output("top5")
    loss: metrics.Average.from_output("loss")


class Classification:
    """Fulfils `sasa_jax.training.Task`.

    Args:
        config: plain nested dicts, see configs/common.py.
        data: the opened splits.

    Attributes:
        data: as given.
        train_size: images in one epoch.
        free_keys: config keys that may differ when a run is taken up again.

    Raises:
        ValueError, TypeError: an option of the model or the data that is not allowed.
    """

    free_keys = (
        "checkpoint_every",
        "eval_batch_size",
        "eval_every",
        "keep_checkpoints",
        "log_every",
        "data.dir",
        "data.eval_split",
        "data.threads",
    )

    def __init__(self, config: Mapping[str, Any], data: ClassificationData):
        self.data = data
        self.train_size = len(data.train)
        self._config = config
        self._train_transform = transform(config, train=True)
        self._eval_transform = transform(config, train=False)
        _check_bn_groups(config)
        self._eval_step = jax.jit(self._add_scores)
        self.graphdef, self.shapes = split(nnx.eval_shape(self.build_model))
        # Finds an image size that the network cannot take before anything is compiled.
        size = config["data"]["image_size"]
        image = jax.ShapeDtypeStruct((1, size, size, 3), jnp.uint8)
        jax.eval_shape(self._logits, self.shapes, image)

    def build_model(self, key: jax.Array | int = 0) -> ResNet:
        """The network that the config names, with random parameters."""
        options = dict(self._config["model"])
        name = options.pop("name")
        options = {k: v for k, v in options.items() if v is not None}
        options.setdefault("num_classes", self.data.train.num_classes)
        return create_model(name, rngs=nnx.Rngs(key), **options)

    def batch_shapes(self) -> dict[str, jax.ShapeDtypeStruct]:
        """image: uint8 [B, H, W, 3]; label: int32 [B]."""
        batch, size = self._config["batch_size"], self._config["data"]["image_size"]
        return {
            "image": jax.ShapeDtypeStruct((batch, size, size, 3), jnp.uint8),
            "label": jax.ShapeDtypeStruct((batch,), jnp.int32),
        }

    def init(self, key: jax.Array) -> Variables:
        """Random variables of the network."""
        return split(self.build_model(key))[1]

    def loss(
        self, variables: Variables, batch: dict[str, jax.Array], key: jax.Array
    ) -> tuple[jax.Array, tuple[Any, dict[str, jax.Array]]]:
        """Cross-entropy with smoothed labels, in float32, averaged over the batch.

        Returns:
            The loss, and with it the new batch statistics and {"accuracy"} of the batch.
        """
        images = normalise(batch["image"])
        logits, batch_stats = apply(self.graphdef, variables, images, train=True)
        targets = jax.nn.one_hot(batch["label"], logits.shape[-1], dtype=jnp.float32)
        targets = optax.smooth_labels(targets, self._config["label_smoothing"])
        loss = optax.softmax_cross_entropy(logits, targets).mean()
        accuracy = (logits.argmax(axis=-1) == batch["label"]).astype(jnp.float32).mean()
        return loss, (batch_stats, {"accuracy": accuracy})

    def train_batches(self) -> "_WithoutIndex":
        """Shuffled and augmented batches, this process's part."""
        loader = train_loader(
            self.data.train,
            self._train_transform,
            batch_size=self._config["batch_size"],
            seed=self._config["seed"],
            process_index=jax.process_index(),
            process_count=jax.process_count(),
            threads=self._config["data"]["threads"],
        )
        return _WithoutIndex(loader)

    def evaluate(
        self, variables: Mapping[str, Variables], put: Any
    ) -> dict[str, dict[str, float | int]]:
        """Scores every image of the evaluation split once, for each of the named variables.

        Returns:
            For each: accuracy, top5_accuracy and loss (cross-entropy without smoothing), with the
            numbers of correct and of all images.

        Raises:
            RuntimeError: an image was left out or seen twice.
        """
        config = self._config
        devices = jax.device_count()
        wanted = config["eval_batch_size"] or config["batch_size"] // config["accumulation_steps"]
        loader = eval_loader(
            self.data.evaluation,
            self._eval_transform,
            batch_size=-(-wanted // devices) * devices,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
            threads=config["data"]["threads"],
        )
        sums = {which: Scores.empty() for which in variables}
        for batch in loader:
            batch = put({name: batch[name] for name in ("image", "label", "mask")})
            previous, sums = sums, self._eval_step(sums, dict(variables), batch)
            jax.block_until_ready(previous)  # or the batches would pile up on the devices
        return {which: self._divide(scores) for which, scores in jax.device_get(sums).items()}

    def headline(self, results: dict[str, dict[str, float | int]]) -> str:
        """`test accuracy 0.9806 (353/360)`, of the averaged weights."""
        name = "test" if self.data.evaluation.split.startswith("test") else "validation"
        average = results["average"]
        counts = f"{average['correct']}/{average['images']}"
        return f"{name} accuracy {average['accuracy']:.4f} ({counts})"

    def attention(
        self, variables: Variables, index: int = 0
    ) -> tuple[np.ndarray, int, int, dict[str, np.ndarray]]:
        """The attention weights on one image of the evaluation split.

        Returns:
            The image (uint8 [H, W, 3]), its label, the label given to it, and the weights of every
            attention layer by its path, without a batch axis.
        """
        example = self._eval_transform(self.data.evaluation[index], None)
        (logits, weights), _ = jax.jit(
            lambda v, images: apply(self.graphdef, v, normalise(images), return_attention=True)
        )(variables, example["image"][None])
        weights = {path: np.asarray(w[0], np.float32) for path, w in weights.items()}
        return example["image"], int(example["label"]), int(logits[0].argmax()), weights

    def stem_relative_parameters(self) -> int:
        """Parameters of the relative term in an attention stem; 0 where there is none."""
        stem = self.shapes["params"]["stem"]
        return sum(stem[key].size for key in ("row_embedding", "column_embedding") if key in stem)

    def _logits(self, variables: Variables, images: jax.Array) -> jax.Array:
        return apply(self.graphdef, variables, normalise(images), train=False)[0]

    def _add_scores(
        self, sums: dict[str, Scores], variables: dict[str, Variables], batch: dict[str, jax.Array]
    ) -> dict[str, Scores]:
        labels = batch["label"]
        new = {}
        for which, sum_so_far in sums.items():
            logits = self._logits(variables[which], batch["image"])
            best = jax.lax.top_k(logits, min(5, logits.shape[-1]))[1] == labels[:, None]
            scores = Scores.single_from_model_output(
                top1=best[:, 0].astype(jnp.float32),
                top5=best.any(axis=1).astype(jnp.float32),
                loss=optax.softmax_cross_entropy_with_integer_labels(logits, labels),
                mask=batch["mask"],
            )
            new[which] = sum_so_far.merge(scores)
        return new

    def _divide(self, scores: Scores) -> dict[str, float | int]:
        images, wanted = int(scores.top1.count), len(self.data.evaluation)
        if images != wanted:
            raise RuntimeError(f"the evaluation scored {images} images of {wanted}")
        return {
            "accuracy": float(scores.top1.total) / images,
            "top5_accuracy": float(scores.top5.total) / images,
            "loss": float(scores.loss.total) / images,
            "correct": round(float(scores.top1.total)),
            "images": images,
        }


class _WithoutIndex:
    """Training batches without the indices, which the devices have no use for."""

    def __init__(self, loader: TrainLoader):
        self._loader = loader
        self.get_state = loader.get_state
        self.set_state = loader.set_state
        self.close = loader.close

    def __next__(self) -> dict[str, np.ndarray]:
        batch = next(self._loader)
        return {name: batch[name] for name in ("image", "label")}


def normalise(images: jax.Array) -> jax.Array:
    """uint8 [B, H, W, 3] to float32 with mean 0 and deviation 1 over ImageNet, on the device."""
    mean, std = (jnp.asarray(x, jnp.float32).reshape(1, 1, 1, 3) for x in (MEAN_RGB, STD_RGB))
    return (images.astype(jnp.float32) - mean) / std


def _check_bn_groups(config: Mapping[str, Any]) -> None:
    group = config["model"]["bn_group_size"]
    micro_batch = config["batch_size"] // config["accumulation_steps"]
    if group and micro_batch % group:
        raise ValueError(
            f"bn_group_size {group} does not divide the {micro_batch} images that are normalised "
            "at a time (batch_size / accumulation_steps)"
        )
