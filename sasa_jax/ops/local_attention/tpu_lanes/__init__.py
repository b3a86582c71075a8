"""Local attention on the vector unit of a TPU, 128 images side by side, written in Pallas.

Activations lie as [H, W, channels, B], images innermost, which is how XLA likes them at this batch
size. A product of a query and a key is D multiplications and additions of registers that hold
8 heads of 128 images, and nothing is computed that the window does not hold; the matrix unit
computes three times as many products for a 7 x 7 window, and fills D of its 128 rows. So this form
is for many images and few channels a head.

Heads are padded to a multiple of 8 and images to one of 128; both cost as if they were there.
Saved between the passes: inputs, output, and log-sum-exp. All sums run in a fixed order. One array
of queries, keys and values is read in place; gradients always leave in one.

pixels: what both kernels do with pixels, and how they walk a map. forward, backward: the kernels.
launch: their grids and buffers. call: operands, results, and what is refused.
"""

from sasa_jax.ops.local_attention.tpu_lanes.call import cuts, refuses, tpu_lanes

__all__ = ["cuts", "refuses", "tpu_lanes"]
