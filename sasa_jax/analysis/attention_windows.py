"""Which weights belong to one query pixel of an image, and where their window lies in it."""

import dataclasses
from typing import Any

import numpy as np


@dataclasses.dataclass(frozen=True)
class QueryWindow:
    """The attention of one query pixel in one layer.

    Attributes:
        weights: float32 [N, K, K], a map for each head; [N, 4, 4] in the stem.
        box: (top, left, height, width) of the window in pixels of the image; may reach beyond it.
        query: (row, column) of the query in the maps.
        inside: bool [K, K], the slots that lie in the image.
    """

    weights: np.ndarray
    box: tuple[float, float, float, float]
    query: tuple[int, int]
    inside: np.ndarray


def query_window(weights: Any, query: tuple[int, int], image_size: tuple[int, int]) -> QueryWindow:
    """One query's part of a layer's weights.

    Args:
        weights: [H', W', N, K, K], or [H/4, W/4, N, 16, 16] from the attention stem.
        query: (row, column) in pixels of the image.
        image_size: (H, W).

    Raises:
        ValueError: weights of another shape, a query outside the image.
    """
    shape = weights.shape
    if len(shape) != 5 or shape[3] != shape[4] or (shape[4] % 2 == 0 and shape[4] != 16):
        hint = "; take one image of the batch" if len(shape) == 6 else ""
        raise ValueError(
            "attention must be [H, W, N, K, K] with K odd, or [H, W, N, 16, 16] from the stem, "
            f"got {list(shape)}{hint}"
        )
    row, column = query
    height, width = image_size
    if not (0 <= row < height and 0 <= column < width):
        raise ValueError(f"query {query} is outside the image of {height}x{width} pixels")
    i, j = row * shape[0] // height, column * shape[1] // width
    step_y, step_x = height / shape[0], width / shape[1]
    at_query = np.asarray(weights[i, j]).astype(np.float32)
    if shape[4] == 16:  # one query for each pixel of an aligned 4x4 block
        y, x = int(row % step_y * 4 / step_y), int(column % step_x * 4 / step_x)
        maps = at_query[:, 4 * y + x].reshape(-1, 4, 4)
        box = (i * step_y, j * step_x, step_y, step_x)
        return QueryWindow(maps, box, (y, x), np.ones((4, 4), bool))
    size = shape[4]
    rows, columns = (np.arange(size) - size // 2 + centre for centre in (i, j))
    inside = ((rows >= 0) & (rows < shape[0]))[:, None] & ((columns >= 0) & (columns < shape[1]))
    box = (rows[0] * step_y, columns[0] * step_x, size * step_y, size * step_x)
    return QueryWindow(at_query, box, (size // 2, size // 2), inside)


def pick_queries(image: np.ndarray, count: int = 3) -> list[tuple[int, int]]:
    """Up to `count` pixels of image [H, W, 3] at its strongest edges, away from one another."""
    grey = np.asarray(image, np.float32).mean(axis=-1)
    edges = sum(np.abs(gradient) for gradient in np.gradient(grey))
    height, width = grey.shape
    # Border pixels show mostly padding.
    margin = min(height, width) // 8
    edges[:margin], edges[height - margin :] = -1, -1
    edges[:, :margin], edges[:, width - margin :] = -1, -1
    y, x = np.ogrid[:height, :width]
    queries = []
    while len(queries) < count and edges.max() >= 0:
        row, column = (int(k) for k in np.unravel_index(edges.argmax(), edges.shape))
        queries.append((row, column))
        edges[np.hypot(y - row, x - column) < min(height, width) / 4] = -1
    return sorted(queries)
