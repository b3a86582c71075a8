"""Image classification: softmax cross-entropy, top-1 and top-5 accuracy."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
from clu import metrics
from flax import nnx

from sasa_jax.analysis import attention_figure, figure_pixels
from sasa_jax.data import DatasetError, ImageFolder, Split, make_transform, open_split
from sasa_jax.data.image_transforms import KINDS, Transform
from sasa_jax.data.streams import readable
from sasa_jax.models import ResNet, apply, create_model
from sasa_jax.tasks.image_task import (
    ImageTask,
    Variables,
    given,
    normalise,
    unreadable_note,
)
from sasa_jax.tasks.pretrained import load_pretrained
from sasa_jax.tasks.splits import TaskData
from sasa_jax.training import Evaluation


@flax.struct.dataclass
class Scores(metrics.Collection):
    """Sums over the images that can be read."""

    top1: metrics.Average.from_output("top1")
    top5: metrics.Average.from_output("top5")
    loss: metrics.Average.from_output("loss")


# The number of images that cannot be read, and the scores of each of the evaluated variables.
Sums = tuple[jax.Array, dict[str, Scores]]


class Classification(ImageTask):
    """Fulfils `sasa_jax.training.Task`; arguments, attributes and errors as `ImageTask`.

    Raises:
        ValueError: besides, `init_from` names weights of another network.
    """

    free_keys = (*ImageTask.free_keys, "init_from")

    def __init__(self, config: Mapping[str, Any], data: TaskData):
        names = data.train.class_names, data.evaluation.class_names
        if names[0] != names[1]:
            raise DatasetError(
                f"the classes of data.train_split {data.train.split!r} and data.eval_split "
                f"{data.evaluation.split!r} differ in {_difference(*names)}; both need the same"
            )
        transforms = (transform(config, train=train) for train in (True, False))
        super().__init__(config, data, *transforms, data.train.class_names)
        self.name = config["model"]["name"]
        self._eval_step = jax.jit(self._add_scores)
        self._explain = jax.jit(self.predict, static_argnames="return_attention")
        self._source = config.get("init_from")  # older checkpoints' configs lack it
        self._pretrained: Variables = {}
        if self._source:
            self._pretrained = load_pretrained(
                "init_from", self._source, config["model"], self.shapes
            )

    @staticmethod
    def open_split(name: str, split: str, data_dir: str | None) -> Split | ImageFolder:
        """See `data.open_split`."""
        return open_split(name, split, data_dir)

    def description(self) -> dict[str, str]:
        """Lines for the first screen of a run."""
        lines = {"augmentation": self._config["data"]["augmentation"]["kind"]}
        if self._source:
            lines["weights"] = f"from {self._source}"
            if "classifier" not in self._pretrained["params"]:
                classes = self.shapes["params"]["classifier"]["bias"].size
                lines["weights"] += f"; a new classifier for {classes} classes"
        return lines

    def build_model(self, key: jax.Array | int = 0) -> ResNet:
        """The network that the config names, with random parameters."""
        options = {"num_classes": self.data.train.num_classes} | given(self._config["model"])
        return create_model(**options, rngs=nnx.Rngs(key))

    def pretrained(self) -> Variables:
        """The weights that `init_from` names, without a classifier of other classes."""
        return self._pretrained

    def batch_shapes(self) -> dict[str, jax.ShapeDtypeStruct]:
        """image: uint8 [B, H, W, 3]; label: int32 [B]."""
        batch, size = self._config["batch_size"], self.image_size
        return {
            "image": jax.ShapeDtypeStruct((batch, size, size, 3), jnp.uint8),
            "label": jax.ShapeDtypeStruct((batch,), jnp.int32),
        }

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

    def evaluate(self, variables: Mapping[str, Variables], put: Any) -> Callable[[], Evaluation]:
        """Scores every image of the evaluation split once, for each of the named variables.

        Returns:
            A function that gives for each: accuracy, top5_accuracy and loss (cross-entropy without
            smoothing), with the numbers of correct and of scored images, and of unreadable ones if
            there are any.

        Raises:
            RuntimeError: an image was left out or seen twice.
            CorruptDataError: too many images are unreadable.
        """
        sums = jnp.zeros((), jnp.int32), {which: Scores.empty() for which in variables}
        for batch in self.eval_batches:
            batch = put({name: batch[name] for name in ("image", "label", "mask", "index")})
            previous, sums = sums, self._eval_step(sums, dict(variables), batch)
            jax.block_until_ready(previous)  # or the batches would pile up on the devices
        unreadable, host = jax.device_get(sums)
        return lambda: Evaluation(
            {which: self._divide(x, int(unreadable)) for which, x in host.items()}
        )

    def headline(self, results: dict[str, dict[str, float | int]]) -> str:
        """`test accuracy 0.9806 (353/360)`, of the averaged weights."""
        name = "test" if self.data.evaluation.split.startswith("test") else "validation"
        average = results["average"]
        counts = f"{average['correct']}/{average['images']}{unreadable_note(average)}"
        return f"{name} accuracy {average['accuracy']:.4f} ({counts})"

    def pictures(self, variables: Variables) -> dict[str, np.ndarray]:
        """attention: the weights of every layer on the first image that can be evaluated."""
        if not self.model.has_attention:
            return {}
        _, example = next(readable(self.data.evaluation, self.eval_transform))
        logits, weights = jax.device_get(
            self._explain(variables, example["image"][None], return_attention=True)
        )
        weights = {path: np.asarray(w[0], np.float32) for path, w in weights.items()}
        names = self.data.evaluation.class_names
        title = f"label {names[example['label']]}, network says {names[logits[0].argmax()]}"
        figure = attention_figure(example["image"], weights, title=title)
        return {"attention": figure_pixels(figure)}

    def _add_scores(
        self, sums: Sums, variables: dict[str, Variables], batch: dict[str, jax.Array]
    ) -> Sums:
        unreadable, scores_so_far = sums
        unreadable += (~batch["mask"] & (batch["index"] >= 0)).sum(dtype=jnp.int32)
        labels = batch["label"]
        new = {}
        for which, sum_so_far in scores_so_far.items():
            logits = self.predict(variables[which], batch["image"])
            best = jax.lax.top_k(logits, min(5, logits.shape[-1]))[1] == labels[:, None]
            scores = Scores.single_from_model_output(
                top1=best[:, 0].astype(jnp.float32),
                top5=best.any(axis=1).astype(jnp.float32),
                loss=optax.softmax_cross_entropy_with_integer_labels(logits, labels),
                mask=batch["mask"],
            )
            new[which] = sum_so_far.merge(scores)
        return unreadable, new

    def _divide(self, scores: Scores, unreadable: int) -> dict[str, float | int]:
        images, wanted = int(scores.top1.count), len(self.data.evaluation)
        if images + unreadable != wanted:
            raise RuntimeError(
                f"the evaluation scored {images} images of {wanted}"
                + f", and {unreadable} are unreadable" * (unreadable > 0)
            )
        return {
            "accuracy": float(scores.top1.total) / images,
            "top5_accuracy": float(scores.top5.total) / images,
            "loss": float(scores.loss.total) / images,
            "correct": round(float(scores.top1.total)),
            "images": images,
            **({"unreadable": unreadable} if unreadable else {}),
        }


def _difference(ours: Sequence[str], theirs: Sequence[str]) -> str:
    """Some classes that only one of the two has."""
    names = sorted(set(ours) ^ set(theirs)) or ["their order"]
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def transform(config: Mapping[str, Any], *, train: bool) -> Transform:
    """The transform of `config["data"]`; options that belong to another kind are left out."""
    data = config["data"]
    options = dict(data["augmentation"])
    kind = options.pop("kind")
    if kind in KINDS:
        known = {field.name for field in dataclasses.fields(KINDS[kind])}
        options = {key: value for key, value in given(options).items() if key in known}
    return make_transform(kind, data["image_size"], train=train, **options)
