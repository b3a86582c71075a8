"""What a network saw in one image, and where it looked: all that page and figures show."""

import dataclasses
import os
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from sasa_jax.detection import Anchors
from sasa_jax.explorer.network import Model, attention_layers, queries
from sasa_jax.models import Variables
from sasa_jax.prediction import Predictor
from sasa_jax.prediction.predictor import Image
from sasa_jax.tasks import normalise


@dataclasses.dataclass(frozen=True)
class Guess:
    """A class that the network names, the likelier the earlier.

    Attributes:
        name: of the class.
        score: probability; of a detection the sigmoid of its logit.
        box: of a detection (top, left, bottom, right) in pixels of `Explanation.image`.
        anchor: of a detection the anchor's box, in the same form.
        level: of a detection, of the pyramid.
        place: of a detection (row, column) of the anchor in the level's map.
    """

    name: str
    score: float
    box: tuple[float, ...] | None = None
    anchor: tuple[float, ...] | None = None
    level: int | None = None
    place: tuple[int, int] | None = None


@dataclasses.dataclass(frozen=True, eq=False)
class Explanation:
    """One image, what the network says of it and all its attention weights.

    In a notebook it shows itself as the page; see `write_page` and `page.build_page`.

    Attributes:
        title: of the image.
        network: name of the network.
        step: of the training.
        model: the network with its parameters.
        image: uint8 [S, S, 3], as the network saw it.
        shown: (height, width) of the part of it that is image; the rest is padding.
        guesses: classes, or boxes.
        attention: weights by layer, in the network's order: float32 [H, W, N, K, K], of the
            attention stem [S/4, S/4, N, 16, 16].
        queries: of the layers with relative embeddings, but not the stem, by layer: float32
            [H, W, N, D].
    """

    title: str
    network: str
    step: int
    model: Model = dataclasses.field(repr=False)
    image: np.ndarray = dataclasses.field(repr=False)
    shown: tuple[int, int]
    guesses: Sequence[Guess] = dataclasses.field(repr=False)
    attention: Mapping[str, np.ndarray] = dataclasses.field(repr=False)
    queries: Mapping[str, np.ndarray] = dataclasses.field(repr=False)

    def _repr_html_(self) -> str:
        # Here, as the page is made of explanations.
        from sasa_jax.explorer.page import notebook_frame

        return notebook_frame(self)


def explain(predictor: Predictor, image: Image, *, title: str = "", top: int = 5) -> Explanation:
    """Runs the network on one image and keeps what it looked at.

    Args:
        predictor: from `sasa_jax.load`.
        image: a file, a file's content, or uint8 pixels [H, W, 3], RGB.
        title: of the image; "" takes the file's name.
        top: classes to name; of a detector all boxes are, the best 100.

    Raises:
        ImageError: the image cannot be read.
        ValueError: the network has no attention.
    """
    variables = predictor.variables
    model = nnx.merge(predictor.graphdef, variables["params"], variables["batch_stats"], copy=True)
    layers = attention_layers(model)
    if not layers:
        raise ValueError(
            f"{predictor.task.name} has no attention layer, so there is nothing to look at: "
            "--mode=predict tells what it sees"
        )
    inputs = predictor.preprocess(image)
    pixels = inputs["image"]

    @jax.jit
    def see(variables: Variables, images: jax.Array) -> tuple[Any, dict[str, jax.Array]]:
        network = nnx.merge(
            predictor.graphdef, variables["params"], variables["batch_stats"], copy=True
        )
        capture = nnx.capture(network, nnx.Intermediate, method_outputs=nnx.Intermediate)
        outputs, captured = capture(normalise(images), train=False, return_attention=True)
        return outputs, queries(network, captured)

    (*outputs, attention), asked = jax.device_get(see(variables, pixels[None]))
    if predictor.task_name == "classification":
        guesses = _classes(outputs[0][0], predictor.class_names, top)
    else:
        guesses = _boxes(predictor, model, outputs, inputs)
    if not title and isinstance(image, str | os.PathLike):
        title = os.path.basename(image)
    return Explanation(
        title=title,
        network=predictor.task.name,
        step=predictor.step,
        model=model,
        image=pixels,
        shown=tuple(int(side) for side in inputs.get("size", pixels.shape[:2])),
        guesses=guesses,
        attention={name: np.asarray(attention[name][0], np.float32) for name in layers},
        queries={name: np.asarray(query, np.float32) for name, query in asked.items()},
    )


def _classes(logits: np.ndarray, names: Sequence[str], top: int) -> list[Guess]:
    probabilities = np.asarray(jax.nn.softmax(jnp.asarray(logits)))
    best = np.argsort(-probabilities)[:top]
    return [Guess(names[index], float(probabilities[index])) for index in best]


def _boxes(
    predictor: Predictor,
    model: Model,
    outputs: Sequence[np.ndarray],
    inputs: Mapping[str, np.ndarray],
) -> list[Guess]:
    size = inputs["image"].shape[:2]
    options = {
        key: tuple(value) if isinstance(value, list) else value
        for key, value in predictor.config["anchors"].items()
    }
    anchors = Anchors(**options | {"levels": model.levels})
    boxes, counts = anchors.boxes(size), anchors.counts(size)
    decode = jax.jit(predictor.task.decode)
    found = jax.device_get(decode(*outputs, inputs["size"][None]))
    first = np.concatenate([[0], np.cumsum(counts)])
    guesses = []
    for index in range(int(found.count[0])):
        name = predictor.class_names[found.classes[0, index]]
        if not name:
            continue
        anchor = int(found.anchors[0, index])
        which = int(np.searchsorted(first, anchor, side="right")) - 1
        level = model.levels[which]
        place = divmod((anchor - int(first[which])) // anchors.per_place, -(-size[1] // 2**level))
        guesses.append(
            Guess(
                name,
                float(found.scores[0, index]),
                tuple(float(x) for x in found.boxes[0, index]),
                tuple(float(x) for x in boxes[anchor]),
                level,
                place,
            )
        )
    return guesses
