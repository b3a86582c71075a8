"""Attention weights as text in a page: quantised, predicted, deflated, base 85.

A row of weights (one query, one head) is stored as its largest weight, in 65535ths, and K^2 codes
from 0 to `levels` in steps of that weight. A weight is therefore off by at most 1 / (2 levels) of
its row's largest: 1/256 with 128 levels.

The relative part of the logits is a sum of a row's and a column's term, so without content a window
would be a product of a column and a row. Each code is stored as its difference from what such a
product predicts from the codes before it: for sa_resnet50 as it begins, on two photos, this takes a
quarter and a third off what differences between neighbouring queries take. Browsers inflate by
themselves.
"""

import base64
import zlib

import numpy as np

TOP_LEVELS = 65535


def quantise(weights: np.ndarray, levels: int) -> tuple[np.ndarray, np.ndarray]:
    """A layer's weights as small integers.

    Args:
        weights: [H, W, N, K, K], not negative, each row's sum 1.
        levels: 255 at most.

    Returns:
        Codes uint8 [N, K, K, H, W], and the rows' largest weights uint16 [N, H, W].
    """
    weights = np.asarray(weights, np.float32)
    # Rounded up, so that no code is above `levels`.
    tops = np.ceil(weights.max(axis=(3, 4)) * TOP_LEVELS)
    tops = np.clip(tops, 1, TOP_LEVELS).astype(np.uint16)
    steps = tops.astype(np.float32) / (TOP_LEVELS * levels)
    codes = np.rint(weights / steps[..., None, None]).astype(np.uint8)
    return codes.transpose(2, 3, 4, 0, 1), tops.transpose(2, 0, 1)


def pack_codes(codes: np.ndarray) -> str:
    """Codes uint8 [N, K, K, H, W] of `quantise` -> text."""
    return _text(_surprises(codes))


def pack(array: np.ndarray) -> str:
    """Bytes, or 16-bit numbers as all low bytes and then all high ones; [..., W] -> text.

    They are stored as differences along W, modulo 256.
    """
    if array.dtype == np.uint16:
        array = np.stack([array & 255, array >> 8]).astype(np.uint8)
    return _text(np.diff(array, axis=-1, prepend=np.uint8(0)))


def _surprises(codes: np.ndarray) -> np.ndarray:
    """Codes less their predictions, modulo 256, in the same places.

    In a window's row a: its codes so far are to those above them (the sums of all rows before) as
    the next code is to the sum above it. Whole numbers, so that the page predicts the same.
    """
    codes = codes.astype(np.int32)
    surprises = codes.copy()
    surprises[:, 0, 1:] -= codes[:, 0, :-1]
    above = codes[:, 0].copy()  # [N, K, H, W]
    for a in range(1, codes.shape[1]):
        row = codes[:, a]
        surprises[:, a, 0] -= codes[:, a - 1, 0]
        own, their = row[:, 0].copy(), above[:, 0].copy()
        for b in range(1, codes.shape[2]):
            ratio = own * above[:, b] // np.maximum(their, 1)
            surprises[:, a, b] -= np.minimum(np.where(their > 0, ratio, own), 255)
            own += row[:, b]
            their += above[:, b]
        above += row
    return surprises.astype(np.uint8)


def _text(array: np.ndarray) -> str:
    # Python's base 85, which has no "/", without "<": nothing in it can end a script element.
    return base64.b85encode(zlib.compress(array.tobytes(), 9)).decode().replace("<", "/")
