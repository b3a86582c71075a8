"""The networks' variables under PyTorch's names and layouts, there and back.

A convolutional ResNet has torchvision's names, which are timm's too: `conv1.weight`,
`layer1.0.bn2.running_mean`, `layer2.0.downsample.0.weight`, `fc.bias`. What they do not know:

* `layer1.0.attention.*` stands where the block's 3x3 convolution, `layer1.0.conv2`, does:
  `query.weight`, `key.weight`, `value.weight` [C out, C in], or with grouped projections [N, D out,
  D in]; `row_embedding`, `column_embedding` [K, D/2], or [K, N, D/2] of each head;
  `query_norm.weight`, `key_norm.weight` [D].
* `stem.*` stands where `conv1` does: `query.weight`, `key.weight` [C, 3]; `row_embedding`,
  `column_embedding` [7, D/2]; `value.weight` [M, C, 3] with `mixture_row`, `mixture_column` [4, D]
  and `mixture` [M, D], or [C, 3] plain, or [C, 3, 4, 4] convolutional. `bn1` follows it too.
* Of a detector: `backbone.*` as above without `fc`; `fpn.lateral3.weight`, `fpn.p3.*`,
  `fpn.bn3.*`; `class_head.layer1.*`, `class_head.bn1.p3.*`, `class_head.last.*`,
  `class_head.output.weight`, and the same of `box_head`. Spatial layers are one `weight`
  [C, C, 3, 3], or attention as above.

Convolutions are [C out, C in, K, K], linear maps [out, in].
"""

import re
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from flax import nnx

from sasa_jax.checks import nearest
from sasa_jax.models.functional import Variables, split
from sasa_jax.models.registry import create_model

_LEAVES = {"kernel": "weight", "scale": "weight", "mean": "running_mean", "var": "running_var"}
_MODULES = {
    "stem.conv": "conv1",
    "stem.bn": "bn1",
    "stem.value_conv": "stem.value",
    "shortcut_conv": "downsample.0",
    "shortcut_bn": "downsample.1",
    "classifier": "fc",
}
_RENAMED = re.compile("|".join(rf"\b{re.escape(module)}\b" for module in _MODULES))


def to_torch(variables: Variables) -> dict[str, np.ndarray]:
    """Float32 arrays by PyTorch's names (see the module) in its layouts.

    Args:
        variables: {"params", "batch_stats"} of a ResNet or RetinaNet.
    """
    return {
        _torch_name(path): np.ascontiguousarray(_out_first(path, np.asarray(leaf, np.float32)))
        for path, leaf in _leaves(variables)
    }


def from_torch(
    state_dict: Mapping[str, Any], model: str = "resnet50", **overrides: Any
) -> Variables:
    """Variables of the named network from a state dict of torchvision, timm or this project.

    Args:
        state_dict: tensors of PyTorch, or arrays, by name.
        model: as in `create_model`.
        overrides: of `create_model`. Without `num_classes` the classifier is as wide as the state
            dict's; None leaves it out, for a backbone.

    Returns:
        {"params", "batch_stats"}, float32 NumPy arrays.

    Raises:
        ValueError: a name is missing or not known to the network, or a shape is another; the
            message names the first.
        TypeError: as in `create_model`.
    """
    if "num_classes" not in overrides and "fc.bias" in state_dict:
        overrides["num_classes"] = len(state_dict["fc.bias"])
    elif overrides.get("num_classes", 0) is None:
        state_dict = {k: v for k, v in state_dict.items() if not k.startswith("fc.")}
    network = nnx.eval_shape(lambda: create_model(model, **overrides, rngs=nnx.Rngs(0)))
    return fill(split(network)[1], state_dict, "the state dict")


def fill(shapes: Variables, tensors: Mapping[str, Any], source: str) -> Variables:
    """Variables of a network from tensors under PyTorch's names; the inverse of `to_torch`.

    Args:
        shapes: {"params", "batch_stats"} as `jax.ShapeDtypeStruct`s.
        tensors: tensors of PyTorch, or arrays. `num_batches_tracked` of BN is not looked at.
        source: what they are, for the message.

    Returns:
        {"params", "batch_stats"}, float32 NumPy arrays.

    Raises:
        ValueError: as `from_torch`.
    """
    left = {k: v for k, v in tensors.items() if not k.endswith(".num_batches_tracked")}
    wrong = []

    def take(path: tuple[Any, ...], wanted: jax.ShapeDtypeStruct) -> np.ndarray | None:
        keys = _keys(path)
        name = _torch_name(keys)
        if name not in left:
            wrong.append(f"{name} is missing{nearest(name, left)}")
            return None
        array = _array(left.pop(name))
        expected = _out_first(keys, np.empty(wanted.shape, bool)).shape
        if array.shape != expected:
            wrong.append(f"{name} is {list(array.shape)} and should be {list(expected)}")
            return None
        return np.ascontiguousarray(_out_last(keys, array), np.float32)

    filled = jax.tree_util.tree_map_with_path(take, shapes)
    wrong += [f"{name} belongs to no part of the network" for name in left]
    if wrong:
        more = f"; and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise ValueError(f"{source} is of another network: {'; '.join(wrong[:3])}{more}")
    return filled


def _leaves(variables: Variables) -> list[tuple[tuple[str, ...], Any]]:
    return [(_keys(path), leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(variables)]


def _keys(path: tuple[Any, ...]) -> tuple[str, ...]:
    """Names along the path, without "params" or "batch_stats"."""
    return tuple(entry.key for entry in path[1:])


def _torch_name(path: tuple[str, ...]) -> str:
    name = ".".join((*path[:-1], _LEAVES.get(path[-1], path[-1])))
    name = re.sub(r"\bgroup(\d+)\.block(\d+)\b", lambda m: f"layer{m[1]}.{int(m[2]) - 1}", name)
    name = name.replace(".spatial.weight", ".conv2.weight").replace(".spatial.", ".attention.")
    return _RENAMED.sub(lambda m: _MODULES[m[0]], name)


def _out_first(path: tuple[str, ...], array: np.ndarray) -> np.ndarray:
    """Our layout to PyTorch's: kernels [K, K, in, out] and [..., in, out]; the rest is alike."""
    if path[-1] != "kernel":
        return array
    return array.transpose(3, 2, 0, 1) if array.ndim == 4 else array.swapaxes(-1, -2)


def _out_last(path: tuple[str, ...], array: np.ndarray) -> np.ndarray:
    """The inverse of `_out_first`."""
    if path[-1] != "kernel":
        return array
    return array.transpose(2, 3, 1, 0) if array.ndim == 4 else array.swapaxes(-1, -2)


def _array(tensor: Any) -> np.ndarray:
    if hasattr(tensor, "detach"):  # of PyTorch, perhaps on another device, in bfloat16 or trained
        tensor = tensor.detach().float().cpu().numpy()
    return np.asarray(tensor)
