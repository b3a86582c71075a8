"""The kernels' grids, blocks and buffers.

The grid is (128 images, 8 heads, tiles of columns, steps down the map): see `pixels`.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from sasa_jax.ops.local_attention.tpu_common import result
from sasa_jax.ops.local_attention.tpu_lanes.backward import (
    BackwardRefs,
    BackwardScratch,
    Gradients,
    backward_kernel,
)
from sasa_jax.ops.local_attention.tpu_lanes.forward import (
    ForwardRefs,
    ForwardScratch,
    forward_kernel,
)
from sasa_jax.ops.local_attention.tpu_lanes.pixels import LANES, SUBLANES, Plan


def buffer(*shape: int) -> Any:
    return pltpu.VMEM((*shape, LANES), jnp.float32)


def forward_pass(
    plan: Plan, inputs: ForwardRefs, *, memory: int, interpret: bool
) -> tuple[jax.Array, jax.Array]:
    """[H, W, N D, B] each to the output, the same, and the log-sum-exp [H, W, N, B], float32."""
    table, query, key, _ = inputs
    height, width, channels, batch = query.shape
    pixel = SUBLANES * plan.dim
    groups = channels // pixel

    def query_row(b, n, t, step):
        return jnp.maximum(step - plan.reach - 1, 0), t, n, b

    def key_row(b, n, t, step):
        return jnp.minimum(step, height - 1), 0, n, b

    query_spec = pl.BlockSpec((1, plan.tile, pixel, LANES), query_row)
    key_spec = pl.BlockSpec((1, width, pixel, LANES), key_row)
    specs = ForwardRefs(
        None
        if table is None
        else pl.BlockSpec((1, *table.shape[1:]), lambda b, n, t, step: (n, 0, 0)),
        query_spec,
        None if key is None else key_spec,
        key_spec,
    )

    k, g = plan.window, plan.group
    return pl.pallas_call(
        partial(forward_kernel, plan),
        grid=(batch // LANES, groups, width // plan.tile, height + plan.reach + 1),
        in_specs=[specs],
        out_specs=[query_spec, pl.BlockSpec((1, plan.tile, SUBLANES, LANES), query_row)],
        out_shape=[
            result(query, query.shape, query.dtype),
            result(query, (height, width, groups * SUBLANES, batch), jnp.float32),
        ],
        scratch_shapes=[
            ForwardScratch(
                key=buffer(*plan.ring, pixel) if plan.content else None,
                value=buffer(*plan.ring, pixel),
                query=buffer(g, pixel) if plan.content else None,
                bias=buffer(g, 2 * k, SUBLANES) if plan.biased else None,
                logits=buffer(g, k * k, SUBLANES),
                shift=buffer(g, k, SUBLANES),
                output=buffer(g, pixel),
            )
        ],
        compiler_params=_compiler_params(memory),
        interpret=interpret,
        name="local_attention_lanes",
    )(inputs)


def backward_pass(plan: Plan, inputs: BackwardRefs, *, memory: int, interpret: bool) -> Gradients:
    """Gradients from arrays [H, W, N D, B]: the same; of tables [B / 128, N / 8, 2 K, D/2 * 8,
    128]; the rims, where there is more than one tile, [tiles, H, K - 1, N D, B], float32."""
    height, width, channels, batch = inputs.query.shape
    pixel = SUBLANES * plan.dim
    groups, tiles = channels // pixel, width // plan.tile
    k, g = plan.window, plan.group

    def query_row(b, n, t, step):
        return jnp.clip(step - plan.reach - 1, 0, height - 1), t, n, b

    def key_row(b, n, t, step):
        return jnp.minimum(step, height - 1), 0, n, b

    def done_row(b, n, t, step):
        return jnp.maximum(step - k, 0), t, n, b

    def done_rim(b, n, t, step):
        return t, jnp.maximum(step - k, 0), 0, n, b

    query_spec = pl.BlockSpec((1, plan.tile, pixel, LANES), query_row)
    key_spec = pl.BlockSpec((1, width, pixel, LANES), key_row)
    done_spec = pl.BlockSpec((1, plan.tile, pixel, LANES), done_row)
    rim_spec = pl.BlockSpec((1, 1, k - 1, pixel, LANES), done_rim)
    table = 2 * k, pixel // 2, LANES
    table_spec = pl.BlockSpec((1, 1, *table), lambda b, n, t, step: (b, n, 0, 0, 0))
    specs = BackwardRefs(
        table=pl.BlockSpec((1, *inputs.table.shape[1:]), lambda b, n, t, step: (n, 0, 0))
        if plan.position
        else None,
        spread_table=pl.BlockSpec((1, *table), lambda b, n, t, step: (n, 0, 0, 0))
        if plan.position
        else None,
        query=query_spec,
        key=key_spec if plan.content else None,
        value=key_spec,
        output=query_spec,
        log_sum_exp=pl.BlockSpec((1, plan.tile, SUBLANES, LANES), query_row),
        cotangent=query_spec,
    )
    rims = tiles > 1 and k > 1
    own = result(inputs.query, inputs.query.shape, inputs.query.dtype)
    rim = result(inputs.query, (tiles, height, k - 1, channels, batch), jnp.float32)
    sums = result(inputs.query, (batch // LANES, groups, *table), jnp.float32)

    def outputs(table, query, done, rim) -> Gradients:
        """Those that there are."""
        return Gradients(
            table=table if plan.position else None,
            query=query,
            key=done if plan.content else None,
            value=done,
            key_rim=rim if rims and plan.content else None,
            value_rim=rim if rims else None,
        )

    gradient_ring = k, plan.ring[1], pixel
    (gradients,) = pl.pallas_call(
        partial(backward_kernel, plan),
        grid=(batch // LANES, groups, tiles, height + k),
        in_specs=[specs],
        out_specs=[outputs(table_spec, query_spec, done_spec, rim_spec)],
        out_shape=[outputs(sums, own, own, rim)],
        scratch_shapes=[
            BackwardScratch(
                key=buffer(*plan.ring, pixel) if plan.content else None,
                value=buffer(*plan.ring, pixel),
                key_gradient=buffer(*gradient_ring) if plan.content else None,
                value_gradient=buffer(*gradient_ring),
                query=buffer(2 * g, pixel),
                bias=buffer(g, 2 * k, SUBLANES) if plan.biased else None,
                cotangent=buffer(2 * g, pixel),
                mean=buffer(2 * g, SUBLANES),
                shift=buffer(g, k, SUBLANES),
                sums=buffer(g, 2 * k, SUBLANES) if plan.position else None,
                query_gradient=buffer(g, pixel),
                weights=buffer(g, k, SUBLANES),
                slots=buffer(g, k, SUBLANES),
                product=buffer(1, pixel),
            )
        ],
        compiler_params=_compiler_params(memory),
        interpret=interpret,
        name="local_attention_lanes_backward",
    )(inputs)
    return gradients


def _compiler_params(memory: int) -> pltpu.CompilerParams:
    """Of the grid over (images, heads, tiles, steps): rings live from step to step of a tile."""
    return pltpu.CompilerParams(
        dimension_semantics=("parallel", "parallel", "arbitrary", "arbitrary"),
        vmem_limit_bytes=memory,
    )
