"""Local attention for NVIDIA GPUs (compute capability 8.0 and up), written in Triton.

Triton through jax-triton, and not Pallas, whose Triton backend is deprecated since JAX 0.11; nor
Mosaic GPU, which has no code for Ampere and whose unit of work, the matrix products of a warp group
with 64 rows at least, would be padded four times by a tile of 16 queries of one head.

Images are read as the network has them, [B, H, W, N, D]: nothing is transposed or copied. Between
the passes live the inputs and a float32 per query and head, its log-sum-exp. No atomic operation is
used, and all sums run in a fixed order. float32 is multiplied as float32, not as tf32.

tiles: steps on one tile, in Triton. kernels: the passes. constants: their compile-time arguments.
launch: how they are run from JAX, or in Triton's interpreter. call: operands, results, and what is
refused.
"""

from sasa_jax.ops.local_attention.gpu_triton.call import (
    gpu_triton,
    gpu_triton_packed,
    refuses,
)

__all__ = ["gpu_triton", "gpu_triton_packed", "refuses"]
