"""Local self-attention as a layer: projections around the operator (paper, section 3)."""

from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from flax.typing import Dtype

from sasa_jax.checks import check_choice
from sasa_jax.nn.position import sinusoidal_position
from sasa_jax.ops.local_attention import (
    local_attention,
    local_attention_packed,
    local_attention_weights,
    reads_packed,
)
from sasa_jax.ops.local_attention.checks import checked_options
from sasa_jax.ops.local_attention.contract import Boundary

Position = Literal["relative", "sinusoidal", "none"]
LogitScale = Literal["none", "inverse_sqrt"]
QueryKeyNorm = Literal["none", "rms"]


class GroupedLinear(nnx.Module):
    """A block-diagonal projection: one D x D kernel for each head, no bias."""

    def __init__(
        self,
        num_heads: int,
        head_dim: int,
        *,
        kernel_init: nnx.Initializer,
        dtype: Dtype | None,
        param_dtype: Dtype,
        rngs: nnx.Rngs,
    ):
        self.dtype = dtype
        # vmap over the heads, so that the fan-in is that of one head.
        keys = jax.random.split(rngs.params(), num_heads)
        init = jax.vmap(lambda key: kernel_init(key, (head_dim, head_dim), param_dtype))
        self.kernel = nnx.Param(init(keys))

    def __call__(self, x: jax.Array) -> jax.Array:
        """x [..., C] -> [..., C] with C = N D."""
        num_heads, head_dim, _ = self.kernel.shape
        dtype = self.dtype or x.dtype
        heads = x.reshape(*x.shape[:-1], num_heads, head_dim).astype(dtype)
        return jnp.einsum("...nd,nde->...ne", heads, self.kernel[...].astype(dtype)).reshape(
            x.shape
        )


class HeadNorm(nnx.Module):
    """Divides every head's vector by its root mean square, times a learned scale [D].

    Args:
        head_dim: D.
        size: what the scales start as.
        param_dtype: of the scales. The root mean square is in float32 at least.
    """

    def __init__(self, head_dim: int, *, size: float, param_dtype: Dtype):
        self.scale = nnx.Param(jnp.full((head_dim,), size, param_dtype))

    def __call__(self, x: jax.Array) -> jax.Array:
        """x [B, H, W, N, D] -> the same shape and dtype."""
        accumulator = np.promote_types(x.dtype, jnp.float32)
        exact = x.astype(accumulator)
        mean_square = jnp.square(exact).mean(axis=-1, keepdims=True)
        # The epsilon is for maps that are all zero, e.g. the padding of an image.
        scale = self.scale[...].astype(accumulator).reshape(1, 1, 1, 1, -1)
        return (exact * jax.lax.rsqrt(mean_square + 1e-6) * scale).astype(x.dtype)


class LocalSelfAttention(nnx.Module):
    """Stand-alone local self-attention, the paper's replacement of a spatial convolution.

    y_ij = sum_ab softmax_ab(q_ij . k_ab + q_ij . r_{a-i, b-j}) v_ab over the window around (i, j),
    with q, k, v = W_Q x, W_K x, W_V x, separately for each of `num_heads` heads.

    What the paper leaves open, with the default and why:

    * Projections are dense, C x C. The paper writes them for each head (`grouped_projections`), but
      only dense ones give its parameter counts (18.0 M for ResNet-50; grouped give 14.7 M).
    * One relative table is shared by all heads; `per_head_embeddings` gives each its own. The
      printed counts cannot tell the two apart.
    * `boundary="zero"`: keys and values outside the image are zero and stay in the softmax, which
      is what zero padding before projections without bias gives. "mask" leaves them out of it.
    * `logit_scale="none"`, as the equation is written; "inverse_sqrt" divides by sqrt(D).
    * `position="sinusoidal"` (table 5) adds the encoding to the layer's input, before all three
      projections.
    * Initialisation: projections are normal with variance 1 / C, times `query_key_init_scale` for
      W_Q and W_K; the relative tables are normal with `embedding_init_std`. The defaults trained
      fastest of a grid (docs/initialisation.md). `value_init_std` gives W_V a standard deviation of
      its own: the paper says 0.01 for the heads and the FPN of its detector, and nothing elsewhere.

    Not the paper's: `query_key_norm="rms"` puts each head's queries and keys through `HeadNorm`, so
    that the logits' size does not depend on the input's. Its scales start at the size that
    `query_key_init_scale` gives queries of inputs of unit size: the logits start out alike.

    `content=False` drops q . k and with it W_K (table 6). There is no bias and no output
    projection: with one, ResNet-50 would have 19.3 M parameters.

    Args:
        features: C of input and output.
        num_heads: N; must divide C. Channel c belongs to head c // D with D = C / N.
        window: K, odd.
        dtype: of the computation; None is the input's. The softmax is in float32 at least.
        param_dtype: of the parameters.
        implementation: of the operator; None picks the best for the platform and shape. Where it
            reads query, key and value from one array, dense projections without `query_key_norm`
            are one product.
        rngs: streams for the initialisers.

    Raises:
        ValueError: an option that is not allowed, features that do not divide over the heads, or
            neither content nor a relative position, which would leave no logits.
    """

    def __init__(
        self,
        features: int,
        *,
        num_heads: int = 8,
        window: int = 7,
        position: Position = "relative",
        content: bool = True,
        boundary: Boundary = "zero",
        logit_scale: LogitScale = "none",
        per_head_embeddings: bool = False,
        grouped_projections: bool = False,
        query_key_norm: QueryKeyNorm = "none",
        query_key_init_scale: float = 0.0625,
        embedding_init_std: float = 1.0,
        value_init_std: float | None = None,
        dtype: Dtype | None = None,
        param_dtype: Dtype = jnp.float32,
        implementation: str | None = None,
        rngs: nnx.Rngs,
    ):
        check_choice("position", position, Position)
        check_choice("logit_scale", logit_scale, LogitScale)
        check_choice("query_key_norm", query_key_norm, QueryKeyNorm)
        if features % num_heads:
            raise ValueError(f"num_heads {num_heads} must divide the features, got {features}")
        if not content and position != "relative":
            raise ValueError(
                f"content=False leaves no logits with position={position!r}; "
                "use position='relative'"
            )
        head_dim = features // num_heads
        if position == "relative" and head_dim % 2:
            raise ValueError(
                f"relative embeddings need an even head dimension, got {features} features over "
                f"{num_heads} heads = {head_dim}"
            )
        self.features = features
        self.num_heads = num_heads
        self.window = window
        self.position = position
        self.boundary = boundary
        self.scale = head_dim**-0.5 if logit_scale == "inverse_sqrt" else None
        checked_options(window, boundary, self.scale)  # here, and not at the first call
        self.dtype = dtype
        self.implementation = implementation

        def projection(init: nnx.Initializer) -> nnx.Linear | GroupedLinear:
            options = dict(kernel_init=init, dtype=dtype, param_dtype=param_dtype, rngs=rngs)
            if grouped_projections:
                return GroupedLinear(num_heads, head_dim, **options)
            return nnx.Linear(features, features, use_bias=False, **options)

        fan_in = partial(nnx.initializers.variance_scaling, mode="fan_in", distribution="normal")
        self.query = projection(fan_in(query_key_init_scale))
        self.key = projection(fan_in(query_key_init_scale)) if content else None
        self.value = projection(
            fan_in(1.0) if value_init_std is None else nnx.initializers.normal(value_init_std)
        )
        # NNX fixes at the first assignment whether an attribute holds arrays.
        if query_key_norm == "none":
            self.query_norm = self.key_norm = None
        else:
            norm = partial(HeadNorm, size=query_key_init_scale**0.5, param_dtype=param_dtype)
            self.query_norm = norm(head_dim)
            self.key_norm = norm(head_dim) if content else None
        if position == "relative":
            heads = (num_heads,) if per_head_embeddings else ()
            shape = (window, *heads, head_dim // 2)
            init = nnx.initializers.normal(embedding_init_std)
            self.row_embedding = nnx.Param(init(rngs.params(), shape, param_dtype))
            self.column_embedding = nnx.Param(init(rngs.params(), shape, param_dtype))
        else:
            self.row_embedding = self.column_embedding = None

    def __call__(
        self, x: jax.Array, *, return_weights: bool = False
    ) -> jax.Array | tuple[jax.Array, jax.Array]:
        """x [B, H, W, C] -> [B, H, W, C], and on request the weights [B, H, W, N, K, K]."""
        batch, height, width, features = x.shape
        dtype = self.dtype or x.dtype
        x = x.astype(dtype)
        if self.position == "sinusoidal":
            x = x + jnp.asarray(sinusoidal_position(height, width, features), dtype)[None]

        options = dict(window=self.window, boundary=self.boundary, scale=self.scale)
        embeddings = [
            None if table is None else table[...].astype(dtype)
            for table in (self.row_embedding, self.column_embedding)
        ]
        if not return_weights and self._packs((batch, height, width), dtype):
            y = local_attention_packed(
                self._packed(x), *embeddings, **options, implementation=self.implementation
            )
            return y.reshape(x.shape)

        def heads(projection: nnx.Module | None) -> jax.Array | None:
            if projection is None:
                return None
            return projection(x).reshape(batch, height, width, self.num_heads, -1)

        query, key, value = heads(self.query), heads(self.key), heads(self.value)
        if self.query_norm is not None:
            query = self.query_norm(query)
            key = None if key is None else self.key_norm(key)
        y = local_attention(
            query, key, value, *embeddings, **options, implementation=self.implementation
        )
        y = y.reshape(batch, height, width, features)
        if not return_weights:
            return y
        return y, local_attention_weights(query, key, *embeddings, **options)

    def _packs(self, image: tuple[int, int, int], dtype: Dtype) -> bool:
        """Whether query, key and value are best left in one array [*image, 3, N, D]."""
        if self.key is None or self.query_norm is not None:
            return False
        return isinstance(self.query, nnx.Linear) and reads_packed(
            (*image, self.num_heads, self.features // self.num_heads),
            dtype,
            window=self.window,
            boundary=self.boundary,
            scale=self.scale,
            implementation=self.implementation,
        )

    def _packed(self, x: jax.Array) -> jax.Array:
        """x [B, H, W, C] -> [B, H, W, 3, N, D], by one product with the three kernels together."""
        projections = self.query, self.key, self.value
        kernel = jnp.concatenate([p.kernel[...].astype(x.dtype) for p in projections], axis=1)
        return (x @ kernel).reshape(*x.shape[:3], 3, self.num_heads, -1)
