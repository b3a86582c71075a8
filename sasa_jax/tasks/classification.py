"""Image classification: softmax cross-entropy, top-1 and top-5 accuracy."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
from clu import metrics
from flax import nnx

from sasa_jax.analysis import attention_figure, figure_pixels
from sasa_jax.data import TrainLoader, eval_loader, make_transform, open_split, train_loader
from sasa_jax.data.image_transforms import KINDS, Transform
from sasa_jax.models import ResNet, apply, create_model, split
from sasa_jax.tasks.common import (
    check_bn_groups,
    describe_parameters,
    eval_batch_size,
    given,
    normalise,
    processes,
)
from sasa_jax.tasks.splits import TaskData, open_data
from sasa_jax.training import Evaluation

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
        image_size: side of the square that the network sees, in pixels.
        name: of the network.
        free_keys: config keys that may differ when a run is taken up again.

    Raises:
        ValueError, TypeError: an option of the model or the data that is not allowed.
    """

    free_keys = (
        "checkpoint_every",
        "eval_batch_size",
        "eval_every",
        "hang_seconds",
        "keep_checkpoints",
        "log_every",
        "data.dir",
        "data.eval_split",
        "data.threads",
    )

    def __init__(self, config: Mapping[str, Any], data: TaskData):
        self.data = data
        self.train_size = len(data.train)
        self.image_size = config["data"]["image_size"]
        self.name = config["model"]["name"]
        self._config = config
        self._train_transform = transform(config, train=True)
        self._eval_transform = transform(config, train=False)
        check_bn_groups(config)
        self._eval_step = jax.jit(self._add_scores)
        self._explain = jax.jit(self._logits, static_argnames="return_attention")
        model = nnx.eval_shape(self.build_model)
        self._attends = model.has_attention
        self.graphdef, self.shapes = split(model)
        # Finds an image size that the network cannot take before anything is compiled.
        image = jax.ShapeDtypeStruct((1, self.image_size, self.image_size, 3), jnp.uint8)
        jax.eval_shape(self._logits, self.shapes, image)

    @classmethod
    def open(cls, config: Mapping[str, Any], *, allow_absent: bool = False) -> "Classification":
        """The task with its data; see `open_data`."""
        return cls(config, open_data(config, open_split, allow_absent=allow_absent))

    def description(self) -> dict[str, str]:
        """Lines for the first screen of a run."""
        return {"augmentation": self._config["data"]["augmentation"]["kind"]}

    def build_model(self, key: jax.Array | int = 0) -> ResNet:
        """The network that the config names, with random parameters."""
        options = {"num_classes": self.data.train.num_classes} | given(self._config["model"])
        return create_model(**options, rngs=nnx.Rngs(key))

    def batch_shapes(self) -> dict[str, jax.ShapeDtypeStruct]:
        """image: uint8 [B, H, W, 3]; label: int32 [B]."""
        batch, size = self._config["batch_size"], self.image_size
        return {
            "image": jax.ShapeDtypeStruct((batch, size, size, 3), jnp.uint8),
            "label": jax.ShapeDtypeStruct((batch,), jnp.int32),
        }

    def init(self, key: jax.Array) -> Variables:
        """Random variables of the network."""
        return split(self.build_model(key))[1]

    def pretrained(self) -> Variables:
        """Nothing: a network for classification begins at random."""
        return {}

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

    def train_batches(self) -> TrainLoader:
        """Shuffled and augmented batches, this process's part."""
        return train_loader(
            self.data.train,
            self._train_transform,
            batch_size=self._config["batch_size"],
            seed=self._config["seed"],
            threads=self._config["data"]["threads"],
            **processes(),
        )

    def evaluate(self, variables: Mapping[str, Variables], put: Any) -> Callable[[], Evaluation]:
        """Scores every image of the evaluation split once, for each of the named variables.

        Returns:
            A function that gives for each: accuracy, top5_accuracy and loss (cross-entropy without
            smoothing), with the numbers of correct and of all images.

        Raises:
            RuntimeError: an image was left out or seen twice.
        """
        loader = eval_loader(
            self.data.evaluation,
            self._eval_transform,
            batch_size=eval_batch_size(self._config),
            threads=self._config["data"]["threads"],
            **processes(),
        )
        sums = {which: Scores.empty() for which in variables}
        for batch in loader:
            batch = put({name: batch[name] for name in ("image", "label", "mask")})
            previous, sums = sums, self._eval_step(sums, dict(variables), batch)
            jax.block_until_ready(previous)  # or the batches would pile up on the devices
        host = jax.device_get(sums)
        return lambda: Evaluation({which: self._divide(x) for which, x in host.items()})

    def headline(self, results: dict[str, dict[str, float | int]]) -> str:
        """`test accuracy 0.9806 (353/360)`, of the averaged weights."""
        name = "test" if self.data.evaluation.split.startswith("test") else "validation"
        average = results["average"]
        counts = f"{average['correct']}/{average['images']}"
        return f"{name} accuracy {average['accuracy']:.4f} ({counts})"

    def pictures(self, variables: Variables) -> dict[str, np.ndarray]:
        """attention: the weights of every layer on the first image of the evaluation split."""
        if not self._attends:
            return {}
        example = self._eval_transform(self.data.evaluation[0], None)
        logits, weights = jax.device_get(
            self._explain(variables, example["image"][None], return_attention=True)
        )
        weights = {path: np.asarray(w[0], np.float32) for path, w in weights.items()}
        names = self.data.evaluation.class_names
        title = f"label {names[example['label']]}, network says {names[logits[0].argmax()]}"
        figure = attention_figure(example["image"], weights, title=title)
        return {"attention": figure_pixels(figure)}

    def describe_parameters(self) -> str:
        """Their number; see `tasks.common`."""
        params = self.shapes["params"]
        return describe_parameters(sum(x.size for x in jax.tree.leaves(params)), params["stem"])

    def _logits(self, variables: Variables, images: jax.Array, **options: Any) -> Any:
        return apply(self.graphdef, variables, normalise(images), train=False, **options)[0]

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


def transform(config: Mapping[str, Any], *, train: bool) -> Transform:
    """The transform of `config["data"]`; options that belong to another kind are left out."""
    data = config["data"]
    options = dict(data["augmentation"])
    kind = options.pop("kind")
    if kind in KINDS:
        known = {field.name for field in dataclasses.fields(KINDS[kind])}
        options = {key: value for key, value in given(options).items() if key in known}
    return make_transform(kind, data["image_size"], train=train, **options)
