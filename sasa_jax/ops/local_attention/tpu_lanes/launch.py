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
    """[H, W, N D, B] each, or one of thrice the channels, to the output [H, W, N D, B], and the
    log-sum-exp [H, W, N, B], float32."""
    table, query, _, _ = inputs
    height, width, _, batch = query.shape
    pixel = SUBLANES * plan.dim
    groups = _groups(plan, query)

    def query_row(b, n, t, step):
        return jnp.maximum(step - plan.reach - 1, 0), t, n, b

    query_spec = pl.BlockSpec((1, plan.tile, pixel, LANES), query_row)
    specs = ForwardRefs(
        None
        if table is None
        else pl.BlockSpec((1, *table.shape[1:]), lambda b, n, t, step: (n, 0, 0)),
        query_spec,
        *_key_and_value(plan, query),
    )

    k, g = plan.window, plan.group
    return pl.pallas_call(
        partial(forward_kernel, plan),
        grid=(batch // LANES, groups, width // plan.tile, height + plan.reach + 1),
        in_specs=[specs],
        out_specs=[query_spec, pl.BlockSpec((1, plan.tile, SUBLANES, LANES), query_row)],
        out_shape=[
            result(query, (height, width, groups * pixel, batch), query.dtype),
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
    """Gradients of arrays as in `forward_pass`: [H, W, places, N D, B] of all; of tables [B / 128,
    N / 8, 2 K, D/2 * 8, 128]; the rims, where there is more than one tile, [tiles, H, K - 1,
    places - 1, N D, B], float32."""
    height, width, _, batch = inputs.query.shape
    pixel = SUBLANES * plan.dim
    groups, tiles = _groups(plan, inputs.query), width // plan.tile
    k, g = plan.window, plan.group

    def query_row(b, n, t, step):
        return jnp.clip(step - plan.reach - 1, 0, height - 1), t, n, b

    def done_row(b, n, t, step):
        return jnp.maximum(step - k, 0), t, 0, n, b

    def done_rim(b, n, t, step):
        return t, jnp.maximum(step - k, 0), 0, 0, n, b

    query_spec = pl.BlockSpec((1, plan.tile, pixel, LANES), query_row)
    key_spec, value_spec = _key_and_value(plan, inputs.query)
    done_spec = pl.BlockSpec((1, plan.tile, plan.places, pixel, LANES), done_row)
    rim_spec = pl.BlockSpec((1, 1, k - 1, plan.places - 1, pixel, LANES), done_rim)
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
        key=key_spec,
        value=value_spec,
        output=query_spec,
        log_sum_exp=pl.BlockSpec((1, plan.tile, SUBLANES, LANES), query_row),
        cotangent=query_spec,
    )
    channels = groups * pixel
    images = height, width, plan.places, channels, batch
    images = result(inputs.query, images, inputs.query.dtype)
    rims = tiles, height, k - 1, plan.places - 1, channels, batch
    rims = result(inputs.query, rims, jnp.float32)
    sums = result(inputs.query, (batch // LANES, groups, *table), jnp.float32)

    def outputs(table, images, rims) -> Gradients:
        """Those that there are."""
        return Gradients(
            table=table if plan.position else None,
            images=images,
            rims=rims if tiles > 1 and k > 1 else None,
        )

    gradient_ring = k, plan.ring[1], pixel
    (gradients,) = pl.pallas_call(
        partial(backward_kernel, plan),
        grid=(batch // LANES, groups, tiles, height + k),
        in_specs=[specs],
        out_specs=[outputs(table_spec, done_spec, rim_spec)],
        out_shape=[outputs(sums, images, rims)],
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
                done=pltpu.VMEM((plan.reach + 1, plan.tile, pixel, LANES), inputs.query.dtype),
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


def _groups(plan: Plan, query: jax.Array) -> int:
    """Of 8 heads."""
    return query.shape[2] // (SUBLANES * plan.dim * (plan.places if plan.packed else 1))


def _key_and_value(plan: Plan, query: jax.Array) -> tuple[pl.BlockSpec | None, pl.BlockSpec]:
    """A row of the map at a time; of packed inputs, behind the queries' channels."""
    height, width = query.shape[:2]
    before = _groups(plan, query) if plan.packed else 0

    def spec(place: int) -> pl.BlockSpec:
        def row(b, n, t, step):
            return jnp.minimum(step, height - 1), 0, place * before + n, b

        return pl.BlockSpec((1, width, SUBLANES * plan.dim, LANES), row)

    return spec(1) if plan.content else None, spec(2)


def _compiler_params(memory: int) -> pltpu.CompilerParams:
    """Of the grid over (images, heads, tiles, steps): rings live from step to step of a tile."""
    return pltpu.CompilerParams(
        dimension_semantics=("parallel", "parallel", "arbitrary", "arbitrary"),
        vmem_limit_bytes=memory,
    )
