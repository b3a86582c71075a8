"""FLOPS of each type of module.

FLOPS are counted under two conventions, both with a multiply-add as two. The relative term is paid
in the body and, where it is on, in the stem.

* plain: the multiply-adds of the equation as written, nothing else. q . r is a dot product for each
  slot of the window, like q . k.
* itemised: k + r is one addition per element, so the dot product with q is paid once; without
  content q . r is factored into K row and K column products. Besides, 7 for each softmax logit,
  4 for each element of a BN or of normalised queries and keys, 1 for each element of a ReLU, of a
  residual sum or of the pyramid's sums.

Spatially aware values cost M projections and one product per mixture and element to mix them.
Pools, biases and sums of constants (sinusoids, mixture weights) are free. What the code does may
be cheaper: the counts are the paper's, made to compare with its tables.
"""

import functools
import math
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from flax import nnx

from sasa_jax.models.fpn import FeaturePyramid
from sasa_jax.models.head import Head
from sasa_jax.models.resnet import Bottleneck
from sasa_jax.nn import AttentionStem, BatchNorm, ConvStem, LocalSelfAttention
from sasa_jax.nn.attention import GroupedLinear, HeadNorm

Path = tuple[str | int, ...]
Shape = tuple[int, ...]


class Flops(NamedTuple):
    """FLOPS under the two conventions of this module."""

    plain: int
    itemised: int


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
    if own_parameters(module):
        raise TypeError(
            f"no counting rule for {type(module).__name__} at {name_of(call.path)}: register one "
            f"with @flops_of.register in {__name__}"
        )
    return Flops(0, 0)


@flops_of.register(nnx.Linear)
@flops_of.register(nnx.Conv)
@flops_of.register(GroupedLinear)
def _kernel(module: nnx.Linear | nnx.Conv | GroupedLinear, call: Call) -> Flops:
    positions = math.prod(call.output()[:-1])
    return _both(2 * positions * math.prod(module.kernel.shape))


@flops_of.register(BatchNorm)
@flops_of.register(HeadNorm)
def _norm(module: BatchNorm | HeadNorm, call: Call) -> Flops:
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
    pixel = total([_both(2 * (projections + mixing)), per_query])
    return total([_times(math.prod(positions), pixel), relu])


@flops_of.register
def _conv_stem(module: ConvStem, call: Call) -> Flops:
    return Flops(0, math.prod(call.output("bn")))  # the ReLU


@flops_of.register
def _bottleneck(module: Bottleneck, call: Call) -> Flops:
    result = math.prod(call.output())
    relus = math.prod(call.output("bn1")) + math.prod(call.output("bn2")) + result
    return Flops(0, relus + result)  # the residual sum has the result's elements


@flops_of.register
def _feature_pyramid(module: FeaturePyramid, call: Call) -> Flops:
    sums = [f"lateral{level}" for level in module.lateral_levels[:-1]]
    relus = [f"bn{level}" for level in module.levels[len(module.lateral_levels) : -1]]
    residuals = _residuals(module, [f"p{level}" for level in module.levels])
    return Flops(0, sum(math.prod(call.output(name)) for name in sums + relus + residuals))


@flops_of.register
def _head(module: Head, call: Call) -> Flops:
    # A BN, unlike the layer before its ReLU, is not called for every level.
    relus = [f"layer{index}" for index in range(1, module.depth + 1)]
    residuals = _residuals(module, [*relus, "last"])
    return Flops(0, sum(math.prod(call.output(name)) for name in relus + residuals))


def _residuals(module: FeaturePyramid | Head, layers: Iterable[str]) -> list[str]:
    """The layers to whose output their input is added."""
    attention = [name for name in layers if isinstance(getattr(module, name), LocalSelfAttention)]
    return attention if module.residual else []


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


def own_parameters(module: nnx.Module) -> list[nnx.Param]:
    """Parameters of the module, without those of the modules inside it."""
    return [value for value in vars(module).values() if isinstance(value, nnx.Param)]


def name_of(path: Path) -> str:
    """A path as in messages, "group1/block1/conv1"."""
    return "/".join(map(str, path)) or "(model)"


def _both(flops: int) -> Flops:
    return Flops(flops, flops)


def _times(factor: int, flops: Flops) -> Flops:
    return Flops(factor * flops.plain, factor * flops.itemised)


def total(terms: Iterable[Flops]) -> Flops:
    """The sum under each convention."""
    terms = list(terms)
    return Flops(sum(t.plain for t in terms), sum(t.itemised for t in terms))
