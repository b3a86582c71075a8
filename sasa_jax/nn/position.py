"""Absolute positions, the alternative that table 5 of the paper compares with relative ones."""

import numpy as np


def sinusoidal_position(height: int, width: int, channels: int) -> np.ndarray:
    """Two-dimensional sinusoidal encoding, float64 [H, W, C].

    The first half of the channels encodes the row, the second half the column. Each half holds
    sines, then cosines, of the position times 10000^(-i / (C/4)), i = 0 .. C/4 - 1.

    Raises:
        ValueError: if `channels` is not a multiple of 4.
    """
    if channels % 4:
        raise ValueError(f"sinusoidal_position: channels must be a multiple of 4, got {channels}")

    def encode(length: int) -> np.ndarray:
        frequency = 10_000.0 ** (-np.arange(channels // 4) / (channels // 4))
        angle = np.arange(length)[:, None] * frequency
        return np.concatenate([np.sin(angle), np.cos(angle)], axis=-1)

    rows = np.broadcast_to(encode(height)[:, None], (height, width, channels // 2))
    columns = np.broadcast_to(encode(width)[None, :], (height, width, channels // 2))
    return np.concatenate([rows, columns], axis=-1)
