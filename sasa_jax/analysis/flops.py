"""Parameters and FLOPS of a network, counted from the built modules.

The network is built and called once on abstract arrays, and the shape of every module's output is
recorded. A rule for each type of module turns that shape and the module's own attributes into
FLOPS, so an option that changes the network changes the count, and nothing here knows a network.

FLOPS are counted under two conventions, both with a multiply-add as two. The relative term is paid
in the body and, where it is on, in the stem.

* plain: the multiply-adds of the equation as written, nothing else. q . r is a dot product for each
  slot of the window, like q . k.
* itemised: k + r is one addition per element, so the dot product with q is paid once; without
  content q . r is factored into K row and K column products. Besides, 7 for each softmax logit,
  4 for each BN element, 1 for each element of a ReLU or of a residual sum.

Spatially aware values cost M projections and one product per mixture and element to mix them.
Pools, biases and sums of constants (sinusoids, mixture weights) are free. What the code does may
be cheaper: the counts are the paper's, made to compare with its tables.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from sasa_jax.models.resnet import Bottleneck
from sasa_jax.nn import AttentionStem, BatchNorm, ConvStem, LocalSelfAttention
from sasa_jax.nn.attention import GroupedLinear

Path = tuple[str | int, ...]
Shape = tuple[int, ...]


class Flops(NamedTuple):
    """FLOPS under the two conventions of this module."""

    plain: int
    itemised: int


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
        return _sum(layer.flops for layer in self.layers)


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
        capture = nnx.capture(model, nnx.Intermediate, method_outputs=nnx.Intermediate)
        layers.extend(_layers(model, _output_shapes(capture(images)[1])))

    jax.eval_shape(call, jax.ShapeDtypeStruct((1, height, width, channels), jnp.float32))
    return Counts((height, width), tuple(layers))


class Call(NamedTuple):
    """One call of a module: where the module stands, and the shapes that all modules returned."""

    path: Path
    index: int
    outputs: Mapping[Path, list[Shape]]

    def output(self, *child: str) -> Shape:
        """Shape of what the module, or its child of that name, returned in this call."""
        return self.outputs[self.path + child][self.index]


@functools.singledispatch
def flops_of(module: nnx.Module, call: Call) -> Flops:
    """FLOPS of one call of `module`, without those of the modules inside it."""
    if _own_parameters(module):
        raise TypeError(
            f"no counting rule for {type(module).__name__} at {_name(call.path)}: register one "
            f"with @flops_of.register in {__name__}"
        )
    return Flops(0, 0)


@flops_of.register(nnx.Linear)
@flops_of.register(nnx.Conv)
@flops_of.register(GroupedLinear)
def _kernel(module: nnx.Linear | nnx.Conv | GroupedLinear, call: Call) -> Flops:
    positions = math.prod(call.output()[:-1])
    return _both(2 * positions * math.prod(module.kernel.shape))


@flops_of.register
def _batch_norm(module: BatchNorm, call: Call) -> Flops:
    return Flops(0, 4 * math.prod(call.output()))


@flops_of.register
def _attention(module: LocalSelfAttention, call: Call) -> Flops:
    *positions, features = call.output()
    per_query = _window_flops(
        slots=module.window**2,
        features=features,
        num_heads=module.num_heads,
        content=module.key is not None,
        relative=module.position == "relative",
        factored=2 * module.window * features,
    )
    return _times(math.prod(positions), per_query)


@flops_of.register
def _attention_stem(module: AttentionStem, call: Call) -> Flops:
    # Its queries and keys are never formed, so no calls of their layers are there to be counted.
    *positions, features = call.output("bn")
    kernels = [module.query.kernel, module.key.kernel]
    mixing = 0
    if module.values == "spatial":
        kernels.append(module.value["kernel"])
        mixing = module.value["kernel"].shape[0] * features
    else:
        kernels.append((module.value if module.values == "plain" else module.value_conv).kernel)
    projections = sum(math.prod(kernel.shape) for kernel in kernels)
    per_query = _window_flops(
        slots=positions[-1],  # a block's pixels: the bn sees [B, H/4, W/4, 16, C]
        features=features,
        num_heads=module.num_heads,
        content=True,
        relative=module.relative,
    )
    relu = Flops(0, math.prod(call.output()))
    pixel = _sum([_both(2 * (projections + mixing)), per_query])
    return _sum([_times(math.prod(positions), pixel), relu])


@flops_of.register
def _conv_stem(module: ConvStem, call: Call) -> Flops:
    return Flops(0, math.prod(call.output("bn")))  # the ReLU


@flops_of.register
def _bottleneck(module: Bottleneck, call: Call) -> Flops:
    result = math.prod(call.output())
    relus = math.prod(call.output("bn1")) + math.prod(call.output("bn2")) + result
    return Flops(0, relus + result)  # the residual sum has the result's elements


def _window_flops(
    *,
    slots: int,
    features: int,
    num_heads: int,
    content: bool,
    relative: bool,
    factored: int = 0,
) -> Flops:
    """One query's logits, softmax and weighted sum over `slots` keys, all heads together."""
    per_slot = slots * features
    weighted_sum = 2 * per_slot
    plain = 2 * per_slot * (content + relative)
    itemised = per_slot * (2 + relative) if content else factored
    return Flops(plain + weighted_sum, itemised + 7 * slots * num_heads + weighted_sum)


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
        parameters = sum(math.prod(p.shape) for p in _own_parameters(module))
        if covered and not isinstance(module, BatchNorm):
            flops = Flops(0, 0)
        elif parameters and not calls:
            raise TypeError(f"{_name(path)} has parameters but is never called: nothing counts it")
        else:
            flops = _sum(flops_of(module, Call(path, index, outputs)) for index in calls)
        if parameters or any(flops):
            output = outputs[path][-1][1:] if calls else ()
            layers.append(LayerCount(_name(path), type(module).__name__, output, parameters, flops))
    return layers


def _output_shapes(captured: nnx.State) -> dict[Path, list[Shape]]:
    """The shapes that each module's `__call__` returned, call by call; of a tuple, the first."""
    shapes: dict[Path, list[Shape]] = {}
    for path, variable in nnx.to_flat_state(captured):
        if path[-1] == "__call__":
            shapes[path[:-1]] = [jax.tree.leaves(y)[0].shape for y in variable.get_value()]
    return shapes


def _own_parameters(module: nnx.Module) -> list[nnx.Param]:
    return [value for value in vars(module).values() if isinstance(value, nnx.Param)]


def _name(path: Path) -> str:
    return "/".join(map(str, path)) or "(model)"


def _both(flops: int) -> Flops:
    return Flops(flops, flops)


def _times(factor: int, flops: Flops) -> Flops:
    return Flops(factor * flops.plain, factor * flops.itemised)


def _sum(terms: Iterable[Flops]) -> Flops:
    terms = list(terms)
    return Flops(sum(t.plain for t in terms), sum(t.itemised for t in terms))


def format_table(counts: Counts, *, every_layer: bool = False) -> str:
    """The counts as aligned text, one line for each of the model's parts or for every layer."""
    unit, divisor = ("GFLOPS", 1e9) if counts.flops.plain >= 1e9 else ("MFLOPS", 1e6)

    def line(name: str, output: Shape, layers: Sequence[LayerCount]) -> tuple[str, ...]:
        flops = (f"{value / divisor:.3f}" for value in _sum(layer.flops for layer in layers))
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
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if column < 2 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    )
