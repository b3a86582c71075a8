"""Local attention on the matrix units of a TPU, written in Pallas; it serves any batch size.

Images stay as the network has them, channels on lanes. A grid step holds one image (several small
ones) and one group of 128 channels in fast memory, and goes through its tiles. A product costs the
same for head dimensions of 8 to 64, since the heads of a group are stacked (tiles.py).

Nothing is saved between the passes but the inputs: the backward pass makes the softmax again, and
sums w . dw from what it made. All sums run in a fixed order. One array of queries, keys and values
is read in place, and their gradients leave in one, where a group is 128 channels wide.

geometry: how maps are cut. maps: images in fast memory. tiles: the steps on one tile.
kernels: the two passes. call: operands, results, and what is refused.
"""

from sasa_jax.ops.local_attention.tpu_matrix.call import refuses, tpu_matrix, tpu_matrix_packed

__all__ = ["refuses", "tpu_matrix", "tpu_matrix_packed"]
