"""Reach by dense matrices, from the definition in sasa_jax/explorer/network.py."""

import numpy as np


def attention_matrix(weights: np.ndarray) -> np.ndarray:
    """[H, W, N, K, K] -> [H W, H W]: from each query to the keys inside the image."""
    height, width, _, size, _ = weights.shape
    mean, half = weights.mean(axis=2), size // 2
    matrix = np.zeros((height, width, height, width))
    for i, j, r, c in np.ndindex(height, width, size, size):
        y, x = i + r - half, j + c - half
        if 0 <= y < height and 0 <= x < width:
            matrix[i, j, y, x] = mean[i, j, r, c]
    return matrix.reshape(height * width, -1)


def halving_matrices(height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Of a map with even sides: the 2x2 average pool, and the first of every four."""
    pool = np.zeros((height // 2, width // 2, height, width))
    first = np.zeros_like(pool)
    for i, j in np.ndindex(height // 2, width // 2):
        pool[i, j, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2] = 0.25
        first[i, j, 2 * i, 2 * j] = 1
    shape = height * width // 4, height * width
    return pool.reshape(shape), first.reshape(shape)


def reach(blocks: list[tuple[np.ndarray, int]]) -> np.ndarray:
    """From the queries of the last block's attention to the stem's map.

    Args:
        blocks: of a backbone, weights [H, W, N, K, K] and stride of each from the stem on.
    """
    flow = None
    for number, (weights, stride) in enumerate(blocks, start=1):
        matrix, same = attention_matrix(weights), np.eye(weights.shape[0] * weights.shape[1])
        if stride == 2 and number < len(blocks):
            pool, first = halving_matrices(*weights.shape[:2])
            matrix, same = pool @ matrix, first
        step = 0.5 * matrix + 0.5 * same
        flow = step if flow is None else step @ flow
    return flow
