"""Anchors: the boxes that the network's predictions are relative to.

The paper tells neither sizes nor number. Six at a place, two scales times three aspect ratios, fit
its parameter counts and are the default; RetinaNet's nine are
`Anchors(scales=(1.0, 2 ** (1 / 3), 2 ** (2 / 3)))`.
"""

import math
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Anchors:
    """Anchors at every place of every level of the pyramid; level l has stride 2**l.

    Their order, here and in the network's predictions: level by level, row by row, column by
    column, scale by scale, aspect ratio by aspect ratio.

    Attributes:
        scales: factors on `size`.
        aspect_ratios: height over width. The area is that of the square of the same scale.
        size: side of the square at scale 1, in strides of its level.
        levels: of the pyramid, finest first.

    Raises:
        ValueError: an empty or non-positive attribute, or levels that do not rise.
    """

    scales: tuple[float, ...] = (1.0, 2**0.5)
    aspect_ratios: tuple[float, ...] = (0.5, 1.0, 2.0)
    size: float = 4.0
    levels: tuple[int, ...] = (3, 4, 5, 6, 7)

    def __post_init__(self):
        for name in ("scales", "aspect_ratios", "levels"):
            values = getattr(self, name)
            if not values or min(values) <= 0:
                raise ValueError(f"{name} must be one or more positive numbers; got {values!r}")
        if self.size <= 0:
            raise ValueError(f"size must be positive, in strides; got {self.size!r}")
        if list(self.levels) != sorted(set(self.levels)):
            raise ValueError(f"levels must rise, finest first; got {self.levels!r}")

    @property
    def per_place(self) -> int:
        """Number of anchors at one place of a map."""
        return len(self.scales) * len(self.aspect_ratios)

    def counts(self, image_size: tuple[int, int]) -> tuple[int, ...]:
        """Number of anchors of every level for an image of (height, width) pixels."""
        return tuple(
            rows * columns * self.per_place
            for rows, columns in (self._map_size(level, image_size) for level in self.levels)
        )

    def boxes(self, image_size: tuple[int, int]) -> np.ndarray:
        """All anchors for an image of (height, width) pixels: float32 [A, 4].

        Centred on the places' pixels; those at the border reach outside of the image.
        """
        return np.concatenate([self._level_boxes(level, image_size) for level in self.levels])

    def _map_size(self, level: int, image_size: tuple[int, int]) -> tuple[int, int]:
        height, width = image_size
        return -(-height // 2**level), -(-width // 2**level)

    def _level_boxes(self, level: int, image_size: tuple[int, int]) -> np.ndarray:
        stride = 2**level
        rows, columns = self._map_size(level, image_size)
        y = (np.arange(rows) + 0.5) * stride
        x = (np.arange(columns) + 0.5) * stride
        # [rows, columns, 1, 2] centres and [anchors of a place, 2] half sides.
        centres = np.stack(np.meshgrid(y, x, indexing="ij"), axis=-1)[:, :, None]
        halves = np.array(
            [
                (math.sqrt(ratio), 1 / math.sqrt(ratio))
                for scale in self.scales
                for ratio in self.aspect_ratios
            ]
        )
        halves *= np.repeat(self.scales, len(self.aspect_ratios))[:, None] * self.size * stride / 2
        boxes = np.concatenate([centres - halves, centres + halves], axis=-1)
        return boxes.reshape(-1, 4).astype(np.float32)
