"""The two stems (paper, section 3.1 and appendix A): from the image to the first group's input."""

from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from flax.typing import Dtype

from sasa_jax.checks import check_choice
from sasa_jax.nn.batch_norm import BatchNorm
from sasa_jax.ops.block_attention import (
    BLOCK,
    attention_weights,
    best_of_blocks,
    refuses,
    to_blocks,
)
from sasa_jax.ops.devices import platform

StemValues = Literal["spatial", "plain", "conv"]
StemImplementation = Literal["tpu_blocks", "definition"]


class ConvStem(nnx.Module):
    """7x7 convolution with stride 2, BN, ReLU, 3x3 max pool with stride 2.

    Args:
        features: C of the output.
        batch_norm: keyword arguments of `BatchNorm`.
        dtype, param_dtype, rngs: as everywhere.
    """

    def __init__(
        self,
        features: int,
        *,
        batch_norm: dict,
        dtype: Dtype | None = None,
        param_dtype: Dtype = jnp.float32,
        rngs: nnx.Rngs,
    ):
        self.conv = nnx.Conv(
            3,
            features,
            (7, 7),
            strides=2,
            padding=3,
            use_bias=False,
            kernel_init=nnx.initializers.variance_scaling(2.0, "fan_out", "normal"),
            dtype=dtype,
            param_dtype=param_dtype,
            rngs=rngs,
        )
        self.bn = BatchNorm(features, **batch_norm, dtype=dtype, param_dtype=param_dtype, rngs=rngs)

    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        """images [B, H, W, 3] -> [B, H/4, W/4, C], sizes rounded up."""
        x = nnx.relu(self.bn(self.conv(images), train=train))
        return nnx.max_pool(x, (3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))


class AttentionStem(nnx.Module):
    """Attention inside each aligned 4x4 block of the image, BN, ReLU, 4x4 max pool with stride 4.

    Every pixel is a query over the 16 pixels of its own block. An edge detector must tell pixels
    apart by place, which shared values cannot; the stem's values therefore are spatially aware:

        v_ab = (sum_m p(a, b, m) W_V^m) x_ab,  p(a, b, m) = softmax_m((row_a + column_b) . nu_m)

    with (a, b) the place inside the block, and p shared by the heads.

    What the paper leaves open, with the default and why:

    * `mixtures`: M = 4. `row`, `column` and nu are as wide as a head.
    * `relative=True`: the logits have a relative term as in the body. The appendix writes none, but
      the paper's FLOPS need one.
    * `values`: "spatial" is the paper's; table 7 compares "plain" (one W_V) and "conv" (a 4x4
      convolution over the image; the paper's FLOPS fit that kernel size).

    With three input channels the logits are cheapest as x (W_Q W_K^T) x: queries and keys are never
    formed. This is exact.

    Args:
        features: C of the output; `num_heads` must divide it.
        batch_norm: keyword arguments of `BatchNorm`.
        query_key_init_scale, embedding_init_std: as in `LocalSelfAttention`.
        implementation: "definition", or "tpu_blocks", which never holds all pixels' outputs; None
            for the better one: "tpu_blocks" on TPU where it can run.
        dtype, param_dtype, rngs: as everywhere.
    """

    def __init__(
        self,
        features: int,
        *,
        batch_norm: dict,
        num_heads: int = 4,
        values: StemValues = "spatial",
        mixtures: int = 4,
        relative: bool = True,
        query_key_init_scale: float = 0.0625,
        embedding_init_std: float = 1.0,
        implementation: StemImplementation | None = None,
        dtype: Dtype | None = None,
        param_dtype: Dtype = jnp.float32,
        rngs: nnx.Rngs,
    ):
        check_choice("stem_values", values, StemValues)
        if implementation is not None:
            check_choice("implementation", implementation, StemImplementation)
        if features % num_heads:
            raise ValueError(f"stem_heads {num_heads} must divide the stem's features, {features}")
        head_dim = features // num_heads
        if relative and head_dim % 2:
            raise ValueError(
                f"stem_relative needs an even head dimension, got {features} features over "
                f"{num_heads} heads = {head_dim}"
            )
        if mixtures < 1:
            raise ValueError(f"stem_mixtures must be at least 1, got {mixtures}")
        self.num_heads = num_heads
        self.values = values
        self.implementation = implementation
        self.dtype = dtype

        def param(init: nnx.Initializer, *shape: int) -> nnx.Param:
            return nnx.Param(init(rngs.params(), shape, param_dtype))

        fan_in = nnx.initializers.variance_scaling(1.0, "fan_in", "normal", batch_axis=0)
        query_key = nnx.initializers.variance_scaling(query_key_init_scale, "fan_in", "normal")
        embedding = nnx.initializers.normal(embedding_init_std)
        linear = dict(use_bias=False, dtype=dtype, param_dtype=param_dtype, rngs=rngs)
        self.query = nnx.Linear(3, features, kernel_init=query_key, **linear)
        self.key = nnx.Linear(3, features, kernel_init=query_key, **linear)
        self.relative = relative
        if relative:
            self.row_embedding = param(embedding, 2 * BLOCK - 1, head_dim // 2)
            self.column_embedding = param(embedding, 2 * BLOCK - 1, head_dim // 2)
        if values == "conv":
            self.value_conv = nnx.Conv(3, features, (BLOCK, BLOCK), **linear)
        elif values == "plain":
            self.value = nnx.Linear(3, features, **linear)
        else:
            self.value = nnx.Dict(kernel=param(fan_in, mixtures, 3, features))
            self.mixture_row = param(embedding, BLOCK, head_dim)
            self.mixture_column = param(embedding, BLOCK, head_dim)
            self.mixture = param(embedding, mixtures, head_dim)
        self.bn = BatchNorm(features, **batch_norm, dtype=dtype, param_dtype=param_dtype, rngs=rngs)

    def mixture_weights(self) -> jax.Array:
        """p(a, b, m) of the spatially aware values, [4, 4, M], in the parameters' dtype."""
        place = self.mixture_row[...][:, None, :] + self.mixture_column[...][None, :, :]
        return jax.nn.softmax(jnp.einsum("abd,md->abm", place, self.mixture[...]), axis=-1)

    def __call__(
        self, images: jax.Array, *, train: bool, return_weights: bool = False
    ) -> jax.Array | tuple[jax.Array, jax.Array]:
        """images [B, H, W, 3] -> [B, H/4, W/4, C].

        On request also the weights [B, H/4, W/4, N, 16, 16], the pixels of a block row by row.

        Raises:
            ValueError: if H or W is not a multiple of 4.
        """
        _, height, width, _ = images.shape
        if height % BLOCK or width % BLOCK:
            raise ValueError(
                f"the attention stem cuts images into 4x4 blocks: height and width must be "
                f"multiples of 4, got {height}x{width}"
            )
        x = images.astype(self.dtype or images.dtype)
        if self._takes_best(x.dtype, return_weights):
            return self._best(x, train=train)
        blocks = to_blocks(x)
        weights = attention_weights(blocks, *self.logit_kernels())
        y = jnp.einsum("bpqnij,bpqjnd->bpqind", weights, self._values(x, blocks))
        y = self.bn(y.reshape(*blocks.shape[:4], -1), train=train)
        # The pool's windows are the blocks. JAX differentiates `max` by comparing with the result,
        # and where XLA has computed y twice, differently rounded, nothing is equal: the winner is
        # picked here instead.
        winner = jax.lax.stop_gradient(y).argmax(axis=3)
        y = nnx.relu((y * jax.nn.one_hot(winner, BLOCK**2, axis=3, dtype=y.dtype)).sum(axis=3))
        return (y, weights) if return_weights else y

    def _takes_best(self, dtype: Dtype, return_weights: bool) -> bool:
        """Whether the form runs that finds the blocks' best pixels without the other 15."""
        if self.implementation == "definition" or return_weights:
            return False
        reason = refuses(dtype, self.num_heads, self.bn.features)
        if self.values == "conv":
            reason = 'it takes stem_values "spatial" and "plain", not "conv"'
        if self.implementation is None:
            return reason is None and platform() == "tpu"
        if reason is not None:
            raise NotImplementedError(
                f'implementation "tpu_blocks" cannot run this stem: {reason}. '
                "implementation=None takes one that can."
            )
        return True

    def _best(self, x: jax.Array, *, train: bool) -> jax.Array:
        """BN is affine in each channel, so the pool's winner is known before BN.

        A scale of exactly 0 makes all pixels tie. It is given the gradient at the largest output
        and not, as by the definition, that at the first pixel's: either is one of its gradients.
        """
        kernel = self._value_kernel().reshape(BLOCK**2, 3, self.num_heads, -1)
        highest = self.bn.scale[...] >= 0
        best = best_of_blocks(x, *self.logit_kernels(), kernel, highest, self.bn.mean[...])
        return nnx.relu(self.bn.with_moments(best.value, best.mean, best.square, train=train))

    def logit_kernels(self) -> tuple[jax.Array, jax.Array | None]:
        """What the logits of two pixels of a block are made of, in the parameters' dtype.

        Returns:
            content C [N, 3, 3] and relative R [N, 3, 16, 16] (None without relative embeddings): in
            head n, query pixel x_i and key pixel x_j have the logit x_i C_n x_j + x_i R_n[:, i, j].
        """
        per_head = (3, self.num_heads, -1)
        query = self.query.kernel[...].reshape(per_head)
        key = self.key.kernel[...].reshape(per_head)
        content = jnp.einsum("cnd,end->nce", query, key)
        if not self.relative:
            return content, None
        row, column = self.row_embedding[...], self.column_embedding[...]
        row_of, column_of = np.divmod(np.arange(BLOCK**2), BLOCK)
        # Row i, column j: from query pixel i to key pixel j, shifted to start at 0.
        row_offset = row_of[None, :] - row_of[:, None] + BLOCK - 1
        column_offset = column_of[None, :] - column_of[:, None] + BLOCK - 1
        relative = jnp.concatenate([row[row_offset], column[column_offset]], axis=-1)
        return content, jnp.einsum("cnd,ijd->ncij", query, relative)

    def _value_kernel(self) -> jax.Array:
        """[16, 3, C] for the key pixels, in the parameters' dtype."""
        if self.values == "plain":
            kernel = self.value.kernel[...]
            return jnp.broadcast_to(kernel, (BLOCK**2, *kernel.shape))
        mixture = self.mixture_weights().reshape(BLOCK**2, -1)
        return jnp.einsum("jm,mcd->jcd", mixture, self.value.kernel[...])

    def _values(self, images: jax.Array, blocks: jax.Array) -> jax.Array:
        """-> [B, P, Q, 16, N, D]."""
        if self.values == "conv":
            values = to_blocks(self.value_conv(images))
        elif self.values == "plain":
            values = self.value(blocks)
        else:
            kernel = self._value_kernel().astype(blocks.dtype)
            values = jnp.einsum("bpqjc,jcd->bpqjd", blocks, kernel)
        return values.reshape(*blocks.shape[:4], self.num_heads, -1)
