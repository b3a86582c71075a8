"""Networks as pure functions of plain nested dicts.

State crosses every boundary (jit, checkpoints, sharding, averages, export) as
{"params": ..., "batch_stats": ...}; modules exist only inside the functions that use them.
"""

from typing import Any

import jax
from flax import nnx

Variables = dict[str, Any]


def split(model: nnx.Module) -> tuple[nnx.GraphDef, Variables]:
    """The static part of a model, and its arrays as {"params", "batch_stats"}.

    Works on abstract models too: `split(nnx.eval_shape(build))` gives shapes without memory.
    """
    graphdef, params, batch_stats = nnx.split(model, nnx.Param, nnx.BatchStat)
    return graphdef, {
        "params": nnx.to_pure_dict(params),
        "batch_stats": nnx.to_pure_dict(batch_stats),
    }


def apply(
    graphdef: nnx.GraphDef, variables: Variables, images: jax.Array, **options: Any
) -> tuple[Any, dict[str, Any]]:
    """Calls the model on `variables`; returns its result and the batch statistics after the call.

    Args:
        graphdef: from `split`.
        variables: {"params", "batch_stats"}, left unchanged.
        images: float [B, H, W, 3].
        options: of the model's call, e.g. `train=True` or `return_attention=True`.
    """
    # copy=True: the variables belong to the trace of the caller, e.g. of jax.value_and_grad.
    model = nnx.merge(graphdef, variables["params"], variables["batch_stats"], copy=True)
    outputs = model(images, **options)
    return outputs, nnx.to_pure_dict(nnx.state(model, nnx.BatchStat))


def shape_differences(wanted: Variables, found: Variables, here: str) -> list[str]:
    """Lines for people: "PATH is SHAPE there and SHAPE `here`", for each array that differs.

    Args:
        wanted, found: nested dicts of anything that has a shape.
        here: where the wanted ones are from, e.g. "in the config".
    """
    ours, theirs = (
        {
            jax.tree_util.keystr(path, simple=True, separator="/"): list(leaf.shape)
            for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
        }
        for tree in (wanted, found)
    )
    return [
        f"{path} is {theirs.get(path, 'absent')} there and {ours.get(path, 'absent')} {here}"
        for path in sorted(ours.keys() | theirs.keys())
        if ours.get(path) != theirs.get(path)
    ]
