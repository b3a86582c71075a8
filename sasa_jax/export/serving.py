"""The function that is exported: uint8 images in, logits or detections out, in float32."""

import contextlib
import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType

from sasa_jax.export.errors import ExportError
from sasa_jax.models import Variables
from sasa_jax.tasks import Classification, Detection, task_without_data

Outputs = dict[str, jax.Array]
Task = Classification | Detection


@dataclass(frozen=True)
class Network:
    """What is exported.

    Attributes:
        config: of the run, plain nested dicts.
        class_names: in the order of the logits.
        step: of the training.
        variables: {"params", "batch_stats"}, float32 NumPy arrays.
    """

    config: Mapping[str, Any]
    class_names: tuple[str, ...]
    step: int
    variables: Variables

    @classmethod
    def of(cls, predictor: Any) -> "Network":
        """From what `sasa_jax.load` gives."""
        host = jax.device_get(predictor.variables)
        variables = jax.tree.map(lambda x: np.asarray(x, np.float32), host)
        return cls(predictor.config, tuple(predictor.class_names), predictor.step, variables)

    @property
    def detects(self) -> bool:
        """Whether it finds boxes; else it classifies."""
        return self.config["task"] == "detection"

    def task(self) -> Task:
        """The task in float32, whatever the run computed in."""
        return float32_task(self.config, self.class_names)

    def input_shapes(self, batch: Any, *, decode: bool = True) -> dict[str, jax.ShapeDtypeStruct]:
        """Of the arguments of `serving_function`; batch: a number, or a symbol of jax.export."""
        size = self.config["data"]["image_size"]
        shapes = {"images": jax.ShapeDtypeStruct((batch, size, size, 3), jnp.uint8)}
        if self.detects and decode:
            shapes["sizes"] = jax.ShapeDtypeStruct((batch, 2), jnp.int32)
        return shapes


def float32_task(config: Mapping[str, Any], class_names: Sequence[str]) -> Task:
    """A run's task without its data, computing in float32 with float32 parameters."""
    config = copy.deepcopy(dict(config))
    config["model"] |= {"dtype": "float32", "param_dtype": "float32", "implementation": None}
    if "detector" in config:
        config["detector"]["implementation"] = None
    return task_without_data(config, class_names)


def plain_xla() -> contextlib.AbstractContextManager[Any]:
    """While a network is traced, the operators choose as for a CPU: forms that any platform lowers.

    Raises:
        ExportError: JAX was told to leave the CPU out.
    """
    try:
        cpu = jax.devices("cpu")[:1]
    except RuntimeError as error:
        raise ExportError("JAX_PLATFORMS leaves the CPU out: append ',cpu' to it") from error
    return jax.set_mesh(jax.make_mesh((1,), ("data",), (AxisType.Auto,), devices=cpu))


def serving_function(network: Network, *, decode: bool = True) -> Callable[..., Outputs]:
    """What every image gives, for formats that hold the whole computation.

    To be traced under `plain_xla`. The batch may be symbolic: each image is computed by itself,
    under `jax.vmap`. Products are in full float32 precision on every platform.

    Args:
        network: that is exported.
        decode: of a detector, find the boxes; else it takes no sizes and gives raw outputs alone.

    Returns:
        (variables, images uint8 [B, S, S, 3]) -> {"logits": float32 [B, classes]}. For detection
        (variables, images, sizes int32 [B, 2], height and width of the part of each image that is
        not padding) -> {"boxes": float32 [B, D, 4] in pixels of the S x S image as top, left,
        bottom, right; "scores": float32 [B, D]; "classes": int32 [B, D], of the class names, -1 in
        an empty slot; "count": int32 [B]; and the raw outputs "logits": float32 [B, A, classes],
        "box_codes": float32 [B, A, 4]}.
    """
    task = network.task()

    def raw(variables: Variables, image: jax.Array) -> Outputs:
        return raw_outputs(task.predict(variables, image))

    def detect(variables: Variables, image: jax.Array, size: jax.Array) -> Outputs:
        outputs = raw(variables, image)
        return outputs | detections(task, outputs, size)

    of_one = detect if network.detects and decode else raw

    def serve(variables: Variables, *inputs: jax.Array) -> Outputs:
        def of_image(*image: jax.Array) -> Outputs:
            outputs = of_one(variables, *(x[None] for x in image))
            return {name: x[0] for name, x in outputs.items()}

        with jax.default_matmul_precision("highest"):
            return jax.vmap(of_image)(*inputs)

    return serve


def raw_outputs(outputs: Any) -> dict[str, Any]:
    """The network's result by name: "logits", and of a detector "box_codes"."""
    if isinstance(outputs, tuple):
        return dict(zip(("logits", "box_codes"), outputs, strict=True))
    return {"logits": outputs}


def detections(task: Detection, raw: Mapping[str, Any], sizes: Any) -> Outputs:
    """What a detector's raw outputs decode to, by name."""
    found = task.decode(raw["logits"], raw["box_codes"], sizes)
    return {
        "boxes": found.boxes,
        "scores": found.scores,
        "classes": found.classes,
        "count": found.count,
    }
