"""Block attention, its best pixel and its moments on a TPU: operands, grids, and the gradient."""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from sasa_jax.ops.block_attention.kernels import (
    CHANNELS,
    COLUMN,
    LANES,
    PIXELS,
    BackwardRefs,
    BackwardScratch,
    ForwardRefs,
    Found,
    Gradients,
    Plan,
    Scratch,
    backward_kernel,
    forward_kernel,
)
from sasa_jax.ops.local_attention.tpu_common import fast_memory, result

TILES = 32  # in a grid step, at most
UNROLLED = 64  # queries times heads: more is compiled for minutes
SUBLANES = 8


def best_and_sums(
    blocks: jax.Array,
    content: jax.Array,
    relative: jax.Array | None,
    values: jax.Array,
    centre: jax.Array,
    *,
    interpret: bool,
) -> tuple[jax.Array, jax.Array]:
    """For every block and channel the maximum over pixels; sums over an image's pixels.

    Args:
      blocks: [B, 48, S], a block's pixels channel by channel.
      content: [N, 3, 3]; relative: [N, 3, 16, 16] or None; values: [16, 3, N, D]; in their dtype.
      centre: [N, D], float32.

    Returns:
      best [B, S, N D], in the blocks' dtype; sums [B, 2, N D] of y - centre and of its square.
    """
    number = blocks.shape[-1]
    *_, heads, dim = values.shape
    tiles = pl.cdiv(number, LANES)
    steps = pl.cdiv(tiles, TILES)
    plan = Plan(
        blocks=number,
        tiles=pl.cdiv(tiles, steps),
        heads=heads + heads % 2,
        dim=dim + -dim % SUBLANES,
        relative=relative is not None,
        unroll=1 if interpret else max(1, min(PIXELS, UNROLLED // heads)),
    )
    more_heads, more_dims = plan.heads - heads, plan.dim - dim
    content = jnp.pad(content, ((0, more_heads), (0, 0), (0, 0)))
    if relative is not None:
        relative = jnp.pad(relative, ((0, more_heads), (0, 0), (0, 0), (0, 0)))
    values = jnp.pad(values, ((0, 0), (0, 0), (0, more_heads), (0, more_dims)))
    centre = jnp.pad(centre, ((0, more_heads), (0, more_dims)))
    best, sums = _best_and_sums(
        plan, interpret, blocks, _linear(content, relative), _values(values), centre.reshape(-1)
    )

    def features(x: jax.Array) -> jax.Array:
        x = x.reshape(*x.shape[:-1], plan.heads, plan.dim)[..., :heads, :dim]
        return x.reshape(*x.shape[:-2], heads * dim)

    return features(best.swapaxes(1, 2)), features(sums)


def _linear(content: jax.Array, relative: jax.Array | None) -> jax.Array:
    """[rows, 48], see `Plan.rows`: each query reads its own pixel.

    Written as products and not as an einsum, which the matrix unit might round.
    """
    own = jnp.eye(PIXELS, dtype=content.dtype)[:, None, None, None, :]
    rows = content.transpose(0, 2, 1)[None, :, :, :, None] * own
    if relative is None:
        return rows.reshape(-1, COLUMN)
    biases = relative.transpose(2, 0, 3, 1)[..., None] * own
    return jnp.concatenate([biases.reshape(-1, COLUMN), rows.reshape(-1, COLUMN)])


def _values(values: jax.Array) -> jax.Array:
    """[16, 3, N, D] -> [N / 2, 2 D, 96], a head's dims from its own weighted pixels."""
    _, _, heads, dim = values.shape
    values = values.reshape(PIXELS, CHANNELS, heads // 2, 2, dim).transpose(2, 3, 4, 1, 0)
    own = jnp.eye(2, dtype=values.dtype)[None, :, None, :, None, None]
    return (values[:, :, :, None] * own).reshape(heads // 2, 2 * dim, 2 * COLUMN)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _best_and_sums(
    plan: Plan,
    interpret: bool,
    image: jax.Array,
    linear: jax.Array,
    values: jax.Array,
    centre: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """The kernels' own operands: image [B, 48, S], linear [rows, 48], values [N / 2, 2 D, 96].

    centre is [C]. Gives best [B, C, S] and sums [B, 2, C].
    """
    return _forward(plan, interpret, image, linear, values, centre)[0]


def _forward(
    plan: Plan,
    interpret: bool,
    image: jax.Array,
    linear: jax.Array,
    values: jax.Array,
    centre: jax.Array,
) -> tuple[tuple[jax.Array, jax.Array], tuple[jax.Array, ...]]:
    """Saves the operands, the winners and the sums."""
    batch, _, number = image.shape
    steps = pl.cdiv(number, plan.tiles * LANES)
    operands = ForwardRefs(image, linear, values, _on_lanes(centre))
    blocks, whole = _specs(plan)
    found = pl.pallas_call(
        lambda refs, found, *scratch: forward_kernel(plan, refs, Found(*found), Scratch(*scratch)),
        grid=(batch, steps),
        in_specs=[ForwardRefs(blocks(COLUMN), *(whole(x) for x in operands[1:]))],
        out_specs=[
            Found(blocks(plan.features), blocks(plan.features), _of_step(2, plan.features, LANES))
        ],
        out_shape=[
            Found(
                result(image, (batch, plan.features, number), image.dtype),
                result(image, (batch, plan.features, number), jnp.int8),
                result(image, (batch, steps, 2, plan.features, LANES), jnp.float32),
            )
        ],
        scratch_shapes=_scratch(plan, image.dtype),
        compiler_params=_compiler_params(),
        interpret=interpret,
        name="block_attention_forward",
    )(operands)
    (found,) = found
    sums = found.sums.sum(axis=(1, 4))
    return (found.best, sums), (image, linear, values, centre, found.winner, sums)


def _backward(
    plan: Plan,
    interpret: bool,
    saved: tuple[jax.Array, ...],
    cotangents: tuple[jax.Array, jax.Array],
) -> tuple[jax.Array, ...]:
    image, linear, values, centre, winner, sums = saved
    best, of_sums = cotangents
    # d(y - c)^2 = 2 (y - c) dy
    slope = 2 * of_sums[:, 1]
    share = jnp.stack([of_sums[:, 0] - slope * centre[None], slope], axis=1)
    operands = BackwardRefs(
        image=image,
        linear=linear,
        linear_turned=linear.T,
        values=values,
        values_turned=values.swapaxes(1, 2),
        winner=winner,
        best=best,
        share=_on_lanes(share),
    )
    # In two calls: XLA drops the one that no one asked for, as a rule that of the image.
    of_image = _backward_pass(plan, interpret, operands, image=True).image
    found = _backward_pass(plan, interpret, operands, image=False)
    of_linear = found.linear.sum(axis=(0, 1)).T.astype(linear.dtype)
    of_values = found.values.sum(axis=(0, 1)).astype(values.dtype)
    pixels = PIXELS * plan.blocks
    of_centre = -(pixels * of_sums[:, 0] + slope * sums[:, 0]).sum(axis=0)
    return of_image, of_linear, of_values, of_centre


_best_and_sums.defvjp(_forward, _backward)


def _backward_pass(plan: Plan, interpret: bool, operands: BackwardRefs, image: bool) -> Gradients:
    """The image's gradient, or those of the parameters, one for each grid step."""
    like = operands.image
    batch, _, number = like.shape
    steps = pl.cdiv(number, plan.tiles * LANES)
    blocks, whole = _specs(plan)
    values = operands.values.shape
    if image:
        specs = Gradients(image=blocks(COLUMN), linear=None, values=None)
        shapes = Gradients(image=result(like, like.shape, like.dtype), linear=None, values=None)
    else:
        linear = COLUMN, plan.rows
        specs = Gradients(image=None, linear=_of_step(*linear), values=_of_step(*values))
        shapes = Gradients(
            image=None,
            linear=result(like, (batch, steps, *linear), jnp.float32),
            values=result(like, (batch, steps, *values), jnp.float32),
        )
    (gradients,) = pl.pallas_call(
        lambda refs, found, *scratch: backward_kernel(plan, refs, found, BackwardScratch(*scratch)),
        grid=(batch, steps),
        in_specs=[
            BackwardRefs(
                image=blocks(COLUMN),
                linear=whole(operands.linear),
                linear_turned=whole(operands.linear_turned),
                values=whole(operands.values),
                values_turned=whole(operands.values_turned),
                winner=blocks(plan.features),
                best=blocks(plan.features),
                share=pl.BlockSpec((1, 2, plan.features, LANES), lambda b, s: (b, 0, 0, 0)),
            )
        ],
        out_specs=[specs],
        out_shape=[shapes],
        scratch_shapes=[
            *_scratch(plan, like.dtype),
            pltpu.VMEM((plan.heads, PIXELS, PIXELS * LANES), jnp.float32),
            pltpu.VMEM((plan.features, PIXELS * LANES), like.dtype),
            pltpu.VMEM((plan.heads // 2, 2 * COLUMN, PIXELS * LANES), jnp.float32),
            pltpu.VMEM((plan.rows, LANES), jnp.float32),
            pltpu.VMEM((COLUMN, LANES), jnp.float32),
            pltpu.VMEM(values, jnp.float32),
        ],
        compiler_params=_compiler_params(),
        interpret=interpret,
        name="block_attention_backward_image" if image else "block_attention_backward",
    )(operands)
    return gradients


def _specs(plan: Plan) -> tuple[Callable, Callable]:
    """Of arrays [B, rows, blocks], and of what every grid step reads whole."""

    def blocks(rows: int) -> pl.BlockSpec:
        return pl.BlockSpec((1, rows, plan.tiles * LANES), lambda b, s: (b, 0, s))

    def whole(x: jax.Array) -> pl.BlockSpec:
        return pl.BlockSpec(x.shape, lambda b, s: (0,) * x.ndim)

    return blocks, whole


def _of_step(*shape: int) -> pl.BlockSpec:
    """What each grid step writes, [B, steps, ...]."""
    return pl.BlockSpec((1, 1, *shape), lambda b, s: (b, s, *(0 for _ in shape)))


def _scratch(plan: Plan, dtype: jnp.dtype) -> list:
    """What both kernels have."""
    return [
        pltpu.VMEM((plan.rows, LANES), jnp.float32),
        pltpu.VMEM((plan.heads // 2, 2 * COLUMN, PIXELS * LANES), dtype),
        pltpu.VMEM((plan.features, PIXELS * LANES), jnp.float32),
    ]


def _on_lanes(x: jax.Array) -> jax.Array:
    return jnp.broadcast_to(x[..., None], (*x.shape, LANES))


def _compiler_params() -> pltpu.CompilerParams:
    return pltpu.CompilerParams(
        dimension_semantics=("parallel", "parallel"), vmem_limit_bytes=fast_memory()
    )
