"""Parameters and FLOPS of a network, counted from the built modules.

The network is built and called once on abstract arrays, and the shape of every module's output is
recorded. A rule for each type of module turns that shape and the module's own attributes into
FLOPS, so an option that changes the network changes the count, and nothing here knows a network.

The two conventions under which FLOPS are counted stand in `sasa_jax.analysis.flop_rules`.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp
from flax import nnx

from sasa_jax.analysis.flop_rules import (
    Call,
    Flops,
    Path,
    Shape,
    flops_of,
    name_of,
    own_parameters,
    total,
)
from sasa_jax.analysis.text import align
from sasa_jax.nn import AttentionStem, BatchNorm, LocalSelfAttention


@dataclasses.dataclass(frozen=True)
class LayerCount:
    """One layer for one image.

    Attributes:
        path: attribute names from the model down, e.g. "group1/block1/conv1".
        kind: the module's type.
        output: shape of its output (of its last call), without the batch axis.
        parameters: its own, without those of the modules inside it.
        flops: its own, over all its calls.
    """

    path: str
    kind: str
    output: Shape
    parameters: int
    flops: Flops


@dataclasses.dataclass(frozen=True)
class Counts:
    """A network, layer by layer, for one image of `image_size` (H, W) pixels."""

    image_size: tuple[int, int]
    layers: tuple[LayerCount, ...]

    @property
    def parameters(self) -> int:
        """All trainable parameters; running averages are none."""
        return sum(layer.parameters for layer in self.layers)

    @property
    def flops(self) -> Flops:
        """The sum over the layers."""
        return total(layer.flops for layer in self.layers)


def count(
    build: Callable[[], nnx.Module],
    image_size: int | tuple[int, int] = 224,
    *,
    channels: int = 3,
) -> Counts:
    """Counts the module that `build` returns. Nothing is computed and no parameter is allocated.

    Args:
        build: for example `lambda: create_model("sa_resnet50", rngs=nnx.Rngs(0))`.
        image_size: H = W, or (H, W), of the module's input [1, H, W, channels].
        channels: of the input; 3 unless a single layer is counted.

    Raises:
        TypeError: a module has parameters but no counting rule (register one with `flops_of`) or is
            never called.
    """
    height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
    layers: list[LayerCount] = []

    def call(images: jax.Array) -> None:
        model = build()
        for _, module in nnx.iter_modules(model):
            # The form that calls all modules inside it, on any platform.
            if isinstance(module, AttentionStem | LocalSelfAttention):
                module.implementation = "definition"
        capture = nnx.capture(model, nnx.Intermediate, method_outputs=nnx.Intermediate)
        layers.extend(_layers(model, _output_shapes(capture(images)[1])))

    jax.eval_shape(call, jax.ShapeDtypeStruct((1, height, width, channels), jnp.float32))
    return Counts((height, width), tuple(layers))


def _layers(model: nnx.Module, outputs: Mapping[Path, list[Shape]]) -> list[LayerCount]:
    order = list(vars(model))  # as the constructor set them; iter_modules sorts by name
    modules = dict(
        sorted(nnx.iter_modules(model), key=lambda item: [order.index(p) for p in item[0][:1]])
    )
    layers = []
    for path, module in modules.items():
        calls = range(len(outputs.get(path, ())))
        # The attention stem's rule covers its projections; they must not be counted twice.
        covered = isinstance(modules.get(path[:-1]), AttentionStem)
        parameters = sum(math.prod(p.shape) for p in own_parameters(module))
        if covered and not isinstance(module, BatchNorm):
            flops = Flops(0, 0)
        elif parameters and not calls:
            raise TypeError(
                f"{name_of(path)} has parameters but is never called: nothing counts it"
            )
        else:
            flops = total(flops_of(module, Call(path, index, outputs)) for index in calls)
        if parameters or any(flops):
            output = outputs[path][-1][1:] if calls else ()
            layers.append(
                LayerCount(name_of(path), type(module).__name__, output, parameters, flops)
            )
    return layers


def _output_shapes(captured: nnx.State) -> dict[Path, list[Shape]]:
    """The shapes that each module's `__call__` returned, call by call; of a tuple, the first."""
    shapes: dict[Path, list[Shape]] = {}
    for path, variable in nnx.to_flat_state(captured):
        if path[-1] == "__call__":
            shapes[path[:-1]] = [jax.tree.leaves(y)[0].shape for y in variable.get_value()]
    return shapes


def format_table(counts: Counts, *, every_layer: bool = False) -> str:
    """The counts as aligned text, one line for each of the model's parts or for every layer."""
    unit, divisor = ("GFLOPS", 1e9) if counts.flops.plain >= 1e9 else ("MFLOPS", 1e6)

    def line(name: str, output: Shape, layers: Sequence[LayerCount]) -> tuple[str, ...]:
        flops = (f"{value / divisor:.3f}" for value in total(layer.flops for layer in layers))
        parameters = sum(layer.parameters for layer in layers)
        return (name, "x".join(map(str, output)), f"{parameters:,}", *flops)

    rows = [("layer", "output", "parameters", f"{unit} plain", f"{unit} itemised")]
    parts = dict.fromkeys(layer.path.split("/")[0] for layer in counts.layers)
    for part in parts:
        inside = [layer for layer in counts.layers if layer.path.split("/")[0] == part]
        if every_layer:
            rows += [line(layer.path, layer.output, [layer]) for layer in inside]
        else:
            outermost = min(layer.path.count("/") for layer in inside)
            last = [layer for layer in inside if layer.path.count("/") == outermost][-1]
            rows.append(line(part, last.output, inside))
    rows.append(line("total", (), counts.layers))
    return "\n".join(align(rows, left=(0, 1)))
