"""One step for each offset in the window, with pixels along the vector lanes: a form for CPUs.

A head has few channels (8 to 32), too few for matrix products to pay. Here a map is one long line
of pixels for each channel, rows one after the other with K//2 zeros between, so that a window's
offset is a shift of the line: logits, sums and all gradients are multiplications and additions of
shifted lines. No key outside the window is looked at, and there are no tiles to fill.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from sasa_jax.ops.local_attention.blocks import OUTSIDE, relative_logits
from sasa_jax.ops.local_attention.chunks import chunk_size, map_backward, map_forward
from sasa_jax.ops.local_attention.contract import Inputs, Options, differentiable
from sasa_jax.ops.local_attention.definition import softmax_dtype


def forward(options: Options, inputs: Inputs) -> tuple[jax.Array, jax.Array]:
    def chunk(inputs: Inputs) -> tuple[jax.Array, jax.Array]:
        logits = _logits(options, inputs, *_line_logits(options, inputs))
        highest = logits.max(axis=(0, 1))
        weights = jnp.exp(logits - highest[None, None])
        total = weights.sum(axis=(0, 1))
        output = _weighted(weights, inputs.value, options) / total[None]
        log_sum_exp = highest + jnp.log(total)
        return _image(output, inputs), _image(log_sum_exp[None], inputs)[..., 0]

    return map_forward(chunk, _chunk_size(options, inputs), inputs)


def backward(
    options: Options,
    inputs: Inputs,
    output: jax.Array,
    log_sum_exp: jax.Array,
    cotangent: jax.Array,
) -> Inputs:
    def chunk(inputs: Inputs, output: jax.Array, lse: jax.Array, cotangent: jax.Array) -> Inputs:
        (rows, columns), line_logits_transpose = jax.vjp(partial(_line_logits, options), inputs)
        weights = jnp.exp(_logits(options, inputs, rows, columns) - lines(lse)[None])
        slots = _products(cotangent, inputs.value, options)
        mean = jnp.sum(output * cotangent, axis=-1, keepdims=True)
        slots = weights * (slots - lines(mean)[None])
        gradient = line_logits_transpose((slots.sum(axis=1), slots.sum(axis=0)))[0]
        scattered = partial(_scattered, options=options)
        query, key = gradient.query, None
        if inputs.key is not None:
            query += _image(_weighted(slots, inputs.key, options), inputs) * options.scale
            key = _image(_scattered(slots, inputs.query * options.scale, options), inputs)
        value = _image(_scattered(weights, cotangent, options), inputs)
        return gradient._replace(query=query, key=key, value=value)

    size = _chunk_size(options, inputs)
    return map_backward(chunk, size, inputs, output, log_sum_exp[..., None], cotangent)
