"""Object detection: RetinaNet, focal and box loss, COCO's twelve metrics."""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import PartitionSpec
from matplotlib.figure import Figure

from sasa_jax.analysis import (
    DetectedImage,
    attention_figure,
    detections_figure,
    figure_pixels,
)
from sasa_jax.checks import check_choice
from sasa_jax.data import DatasetError, DetectionSplit, open_detection_split
from sasa_jax.data.box_transforms import DetectionEval, DetectionTrain
from sasa_jax.data.streams import readable
from sasa_jax.detection import Anchors, Detections, coco, detect, detection_loss
from sasa_jax.models import RetinaNet, apply, create_retinanet
from sasa_jax.tasks.category_logits import CategoryLogits
from sasa_jax.tasks.coco_scores import Found, score, unreadable
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

PICTURES = 8  # images of the evaluation split that are drawn


class Detection(ImageTask):
    """Fulfils `sasa_jax.training.Task`; arguments, attributes and errors as `ImageTask`.

    Raises:
        ValueError: besides, a backbone of another network, or splits of other categories.
    """

    free_keys = (*ImageTask.free_keys, "backbone_from", "metric")

    def __init__(self, config: Mapping[str, Any], data: TaskData):
        check_choice("metric", config["metric"], coco.BACKENDS)
        if data.train.categories != data.evaluation.categories:
            raise DatasetError(
                f"the categories of data.train_split {data.train.split!r} and data.eval_split "
                f"{data.evaluation.split!r} differ: {_names(data.train)} and "
                f"{_names(data.evaluation)}; both need the same ids and names in the same order"
            )
        self._logits = CategoryLogits(data.train.categories, config["category_ids"])
        self._anchors = Anchors(**_tuples(config["anchors"]))
        self._max_boxes, size = config["data"]["max_boxes"], config["data"]["image_size"]
        augmentation = _tuples(given(config["data"]["augmentation"]))
        train_transform = DetectionTrain(size, self._max_boxes, **augmentation)
        super().__init__(config, data, train_transform, DetectionEval(size), self._logits.names)

        self.name = f"RetinaNet on {config['model']['name']}"
        self._anchors = dataclasses.replace(self._anchors, levels=self.model.levels)
        self._anchor_boxes = self._anchors.boxes((size, size))
        self._detect_step = jax.jit(self._detect_everywhere)
        self._explain = jax.jit(functools.partial(self.predict, return_attention=True))
        # Of COCO it takes seconds, and always the same images are left out.
        self._ground_truth = functools.cache(lambda without: data.evaluation.ground_truth(without))
        self._backbone: Variables = {}
        if source := config["backbone_from"]:
            wanted = {kind: tree["backbone"] for kind, tree in self.shapes.items()}
            self._backbone = load_pretrained("backbone_from", source, config["model"], wanted)

    @staticmethod
    def open_split(name: str, split: str, data_dir: str | None) -> DetectionSplit:
        """See `data.open_detection_split`."""
        return open_detection_split(name, split, data_dir)

    def description(self) -> dict[str, str]:
        """Lines for the first screen of a run."""
        source = self._config["backbone_from"]
        return {
            "augmentation": f"{self._train_transform}",
            "backbone": f"from {source}" if source else "random",
            "anchors": f"{len(self._anchor_boxes):,} an image, {self._anchors.per_place} a place",
        }

    def build_model(self, key: jax.Array | int = 0) -> RetinaNet:
        """The network that the config names, with random parameters."""
        return create_retinanet(
            given(self._config["model"]),
            num_classes=self._logits.number,
            anchors_per_place=self._anchors.per_place,
            rngs=nnx.Rngs(key),
            **given(self._config["detector"]),
        )

    def batch_shapes(self) -> dict[str, jax.ShapeDtypeStruct]:
        """image: uint8 [B, H, W, 3]; boxes: float32 [B, G, 4]; classes: int32 [B, G]; valid: bool.

        [B, G], which of the boxes are there.
        """
        batch, size, boxes = self._config["batch_size"], self.image_size, self._max_boxes
        return {
            "image": jax.ShapeDtypeStruct((batch, size, size, 3), jnp.uint8),
            "boxes": jax.ShapeDtypeStruct((batch, boxes, 4), jnp.float32),
            "classes": jax.ShapeDtypeStruct((batch, boxes), jnp.int32),
            "valid": jax.ShapeDtypeStruct((batch, boxes), jnp.bool_),
        }

    def pretrained(self) -> Variables:
        """The backbone of a classification run, where the config names one."""
        return {kind: {"backbone": tree} for kind, tree in self._backbone.items()}

    def loss(
        self, variables: Variables, batch: dict[str, jax.Array], key: jax.Array
    ) -> tuple[jax.Array, tuple[Any, dict[str, jax.Array]]]:
        """Focal and box loss over the batch, in float32; see `detection.detection_loss`.

        Returns:
            The loss, and with it the new batch statistics and the parts of the loss.
        """
        (logits, codes), batch_stats = apply(
            self.graphdef, variables, normalise(batch["image"]), train=True
        )
        loss, scalars = detection_loss(
            logits,
            codes,
            jnp.asarray(self._anchor_boxes),
            batch["boxes"],
            jnp.asarray(self._logits.of_class)[batch["classes"]],
            batch["valid"],
            **self._config["detection_loss"],
        )
        return loss, (batch_stats, scalars)

    def evaluate(self, variables: Mapping[str, Variables], put: Any) -> Callable[[], Evaluation]:
        """Detects in every image of the evaluation split once, with each of the named variables.

        Returns:
            A function that gives for each COCO's twelve metrics and the number of scored images,
            and of unreadable ones if there are any; files: detections.json, COCO's results of the
            averaged weights, and annotations.json, the ground truth of the scored images in COCO's
            form.

        Raises:
            RuntimeError: an image was left out or seen twice.
            CorruptDataError: too many images are unreadable.
        """
        found: list[Found] = []
        for batch in self.eval_batches:
            found.append(self._detect_step(dict(variables), put(batch)))
            # One batch late, so that the devices have the next while the host reads this one.
            found[-2:-1] = jax.device_get(found[-2:-1])
        found[-1:] = jax.device_get(found[-1:])
        return lambda: score(
            found,
            self._ground_truth(unreadable(found)),
            self._logits.ids,
            backend=self._config["metric"],
        )

    def headline(self, results: dict[str, dict[str, float | int]]) -> str:
        """`COCO AP 0.612 AP50 0.783 (200 images)`, of the averaged weights."""
        average = results["average"]
        return (
            f"COCO AP {average['AP']:.3f} AP50 {average['AP50']:.3f} "
            f"({average['images']} images{unreadable_note(average)})"
        )

    def pictures(self, variables: Variables) -> dict[str, np.ndarray]:
        """Of the first images of the evaluation split.

        detections: found and true boxes. attention, where the network has it: weights at the
        surest boxes of the first image, in the last layer of each part.
        """
        split, names = self.data.evaluation, [c.name for c in self.data.evaluation.categories]
        first = itertools.islice(readable(split, self.eval_transform), PICTURES)
        originals, examples = zip(*first, strict=True)
        batch = {k: np.stack([e[k] for e in examples]) for k in ("image", "scale", "size")}
        batch |= {"index": np.arange(len(examples)), "mask": np.ones(len(examples), bool)}
        found = jax.device_get(self._detect_step({"average": variables}, batch))
        detections = found.detections["average"]
        shown = []
        for row, (example, original) in enumerate(zip(examples, originals, strict=True)):
            height, width = example["size"]
            classes = self._logits.classes[detections.classes[row]]
            known = np.flatnonzero(classes[: detections.count[row]] >= 0)
            shown.append(
                DetectedImage(
                    image=example["image"][:height, :width],
                    true_boxes=original["boxes"] * example["scale"],
                    true_names=[names[c] for c in original["classes"]],
                    boxes=detections.boxes[row][known],
                    names=[names[c] for c in classes[known]],
                    scores=detections.scores[row][known],
                )
            )
        pictures = {"detections": figure_pixels(detections_figure(shown))}
        figure = self._attention_figure(variables, examples[0]["image"], shown[0])
        return pictures if figure is None else pictures | {"attention": figure_pixels(figure)}

    def _attention_figure(
        self, variables: Variables, image: np.ndarray, found: DetectedImage
    ) -> Figure | None:
        *_, shapes = jax.eval_shape(self._explain, self.shapes, image[None])
        # The backbone's coarsest map, the pyramid's finest.
        parts = {"backbone/": -1, "fpn/": 0, "class_head/last/": 0, "box_head/last/": 0}
        layers = []
        for part, which in parts.items():
            names = sorted(name for name in shapes if name.startswith(part))
            layers += [names[which]] if names else []
        if not layers:
            return None
        *_, attention = jax.device_get(self._explain(variables, image[None]))
        centres = (found.boxes[:3, :2] + found.boxes[:3, 2:]) / 2
        return attention_figure(
            image,
            {name: np.asarray(attention[name][0], np.float32) for name in layers},
            queries=[(int(row), int(column)) for row, column in centres] or None,
            layers=layers,
            title="at the surest boxes" if len(centres) else "",
        )

    def detect(self, variables: Variables, images: jax.Array, size: jax.Array) -> Detections:
        """What evaluation finds in uint8 images [B, S, S, 3]; traceable.

        Args:
            variables: of the network.
            images: as `eval_transform` makes them.
            size: int32 [B, 2], height and width of the part that is image; boxes are cut to it.
        """
        return self.decode(*self.predict(variables, images), size)

    def decode(self, class_logits: jax.Array, box_codes: jax.Array, size: jax.Array) -> Detections:
        """The detections in the network's outputs, [B, A, classes] and [B, A, 4]; see `detect`."""
        return detect(
            class_logits,
            box_codes,
            jnp.asarray(self._anchor_boxes),
            self._anchors.counts((self.image_size, self.image_size)),
            size,
            **self._config["decoding"],
        )

    def _detect_everywhere(
        self, variables: dict[str, Variables], batch: dict[str, jax.Array]
    ) -> Found:
        """The detections of a batch with each of the variables, whole on every device."""
        detections = {
            which: self.detect(values, batch["image"], batch["size"])
            for which, values in variables.items()
        }
        found = Found(detections, batch["index"], batch["scale"], batch["mask"])
        return jax.lax.with_sharding_constraint(found, PartitionSpec())


def _names(split: DetectionSplit) -> str:
    names = [f"{category.id} {category.name}" for category in split.categories]
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def _tuples(options: Mapping[str, Any]) -> dict[str, Any]:
    """A config that was JSON has lists for tuples."""
    return {key: tuple(v) if isinstance(v, list) else v for key, v in options.items()}
