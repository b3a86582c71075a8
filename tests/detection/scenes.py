"""Random boxes, and plain NumPy forms of what the package computes, shared by the tests."""

import numpy as np


def random_boxes(rng: np.random.Generator, *shape: int, side: int = 64) -> np.ndarray:
    """float32 [*shape, 4] inside side x side pixels, on quarters of a pixel.

    Areas of such boxes are exact in float32, whatever the order of the operations: two correct
    programs agree to the last bit on every overlap.
    """
    corners = rng.integers(0, 4 * side + 1, (*shape, 2, 2))
    low, high = corners.min(axis=-2), corners.max(axis=-2)
    high = np.maximum(high, low + 1)
    return (np.concatenate([low, high], axis=-1) / 4).astype(np.float32)


def plain_iou(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """IoU of two boxes [4], in their own dtype."""
    sides = np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2])
    intersection = np.prod(np.maximum(sides, 0))
    union = np.prod(a[2:] - a[:2]) + np.prod(b[2:] - b[:2]) - intersection
    return intersection / union if union > 0 else a.dtype.type(0)


def plain_nms(
    boxes: np.ndarray, scores: np.ndarray, classes: np.ndarray, threshold: float, count: int
) -> list[int]:
    """Greedy suppression within each class, as it is told in words."""
    left = [int(i) for i in np.argsort(-scores, kind="stable") if scores[i] > -np.inf]
    kept = []
    while left and len(kept) < count:
        best = left.pop(0)
        kept.append(best)
        left = [
            i
            for i in left
            if classes[i] != classes[best]
            or plain_iou(boxes[best], boxes[i]) <= np.float32(threshold)
        ]
    return kept + [-1] * (count - len(kept))
