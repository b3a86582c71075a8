"""From a stored image with boxes to a square training or evaluation image, with OpenCV.

Frozen dataclasses that are called with one example of a `DetectionSplit` and a numpy Generator, as
in image_transforms. Pixels and boxes are moved alike: by one factor for both sides, a whole number
of pixels, and a mirror. Boxes are float32 (top, left, bottom, right) in pixels.

The paper names multi-scale jitter, a crop to 640 and mirroring (PAPER section 6) and leaves the
rest open. Chosen here:
  - the jitter's factor is uniform in 0.8 to 1.2, relative to the image that just fits (as in the
    TPU code of RetinaNet); larger than the square is cropped at a random place, smaller lies at the
    top left, as in evaluation;
  - what the image does not cover has ImageNet's mean colour, which is 0 after normalisation, like a
    convolution's padding;
  - a box of which less than a quarter is left, or less than a pixel of a side, is dropped: what is
    left can mostly not be told;
  - of more than `max_boxes` the largest stay, as their anchors are the most;
  - crowd boxes are left out.
"""

import dataclasses

import cv2
import numpy as np

from sasa_jax.data.image_transforms import MEAN_RGB, Example, decode

_PADDING = tuple(map(round, MEAN_RGB))


def rescale(image: np.ndarray, factor: float) -> tuple[np.ndarray, float]:
    """uint8 [h, w, 3] to round(factor h), round(factor w), at least 1; and the factor of boxes.

    Point (y, x) goes to exactly (factor y, factor x) although the number of pixels is rounded, so
    boxes take no error; 1 is returned where no side changes by a pixel, as the image is then left
    as it is. Interpolation as in image_transforms.resize.
    """
    height, width = image.shape[:2]
    if (round(factor * height), round(factor * width)) == (height, width):
        return image, 1.0
    scaled = cv2.resize(
        image,
        None,
        fx=max(factor, 1 / width),
        fy=max(factor, 1 / height),
        interpolation=cv2.INTER_AREA if factor < 1 else cv2.INTER_CUBIC,
    )
    return scaled, factor


def place(image: np.ndarray, image_size: int, top: int = 0, left: int = 0) -> np.ndarray:
    """The square [S, S, 3] of an image that begins at (top, left), mean colour outside of it."""
    part = image[top : top + image_size, left : left + image_size]
    if part.shape[:2] == (image_size, image_size):
        return np.ascontiguousarray(part)
    below, right = image_size - part.shape[0], image_size - part.shape[1]
    return cv2.copyMakeBorder(part, 0, below, 0, right, cv2.BORDER_CONSTANT, value=_PADDING)


def mirror(boxes: np.ndarray, width: int) -> np.ndarray:
    """Boxes [n, 4] in the mirror image of one of `width` pixels."""
    top, left, bottom, right = boxes.T
    return np.stack([top, width - right, bottom, width - left], axis=1)


def _areas(boxes: np.ndarray) -> np.ndarray:
    return (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])


def _check_image_size(image_size: int) -> None:
    if image_size < 1:
        raise ValueError(f"image_size is {image_size}; expected at least 1 pixel.")


@dataclasses.dataclass(frozen=True)
class DetectionTrain:
    """Random scale, crop and mirror image; see the module for what is chosen.

    An example becomes {"image": uint8 [S, S, 3] RGB, "boxes": float32 [G, 4], "classes": int32 [G],
    "valid": bool [G], "index": int64}; boxes are in pixels of the new image, and rows that are not
    valid are zeros after the valid ones.

    Attributes:
      image_size: S, pixels.
      max_boxes: G.
      scale: limits of the factor on the image whose long side is S.
      flip: probability of a mirror image; 0 for what has a handedness, such as digits.
      min_visible: least share of a box's area that the crop has to leave.
      min_box: least side of what is left, pixels.

    Raises:
      ValueError: a value out of range; when called, as `image_transforms.decode`.
    """

    image_size: int
    max_boxes: int = 100
    scale: tuple[float, float] = (0.8, 1.2)
    flip: float = 0.5
    min_visible: float = 0.25
    min_box: float = 1.0

    def __post_init__(self) -> None:
        _check_image_size(self.image_size)
        # Configs turn tuples into lists.
        object.__setattr__(self, "scale", tuple(self.scale))
        if self.max_boxes < 1:
            raise ValueError(f"max_boxes is {self.max_boxes}; expected at least 1.")
        if len(self.scale) != 2 or not 0 < self.scale[0] <= self.scale[1]:
            raise ValueError(f"scale is {self.scale}; expected (low, high) with 0 < low <= high.")
        for name in ("flip", "min_visible"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is {getattr(self, name)}; expected 0 to 1.")
        if self.min_box < 0:
            raise ValueError(f"min_box is {self.min_box}; expected pixels, 0 or more.")

    def __call__(self, example: Example, rng: np.random.Generator | None) -> Example:
        image = decode(example["image"])
        height, width = image.shape[:2]
        boxes, classes = (example[key][~example["crowd"]] for key in ("boxes", "classes"))

        factor = rng.uniform(*self.scale) * self.image_size / max(height, width)
        if rng.random() < self.flip:
            image, boxes = cv2.flip(image, 1), mirror(boxes, width)
        image, factor = rescale(image, factor)
        top, left = (
            int(rng.integers(max(side - self.image_size, 0) + 1)) for side in image.shape[:2]
        )
        boxes = boxes * np.float32(factor) - np.float32([top, left, top, left])
        boxes, kept = self._visible(boxes)
        return {
            "image": place(image, self.image_size, top, left),
            **self._padded(boxes[kept], classes[kept]),
            "index": np.int64(example["index"]),
        }

    def _visible(self, boxes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Boxes [n, 4] cut at the square, and which of them are worth keeping, bool [n]."""
        inside = boxes.clip(0, self.image_size)
        sides = inside[:, 2:] - inside[:, :2]
        left_over = sides.prod(axis=1) >= self.min_visible * _areas(boxes)
        return inside, left_over & (sides >= self.min_box).all(axis=1) & (sides > 0).all(axis=1)

    def _padded(self, boxes: np.ndarray, classes: np.ndarray) -> Example:
        if len(boxes) > self.max_boxes:
            largest = np.argsort(-_areas(boxes), kind="stable")[: self.max_boxes]
            boxes, classes = boxes[largest], classes[largest]
        number = len(boxes)
        padded = {
            "boxes": np.zeros((self.max_boxes, 4), np.float32),
            "classes": np.zeros(self.max_boxes, np.int32),
        }
        padded["boxes"][:number] = boxes
        padded["classes"][:number] = classes
        return {**padded, "valid": np.arange(self.max_boxes) < number}


@dataclasses.dataclass(frozen=True)
class DetectionEval:
    """The whole image, its long side scaled to the square's, at the top left.

    An example becomes {"image": uint8 [S, S, 3] RGB, "index": int64, "scale": float32, "size":
    int32 [2]}: pixels of the new image per pixel of the stored one, and height and width of its
    part of the square, rounded up so that clipping to it never cuts a box.

    Attributes:
      image_size: S, pixels.

    Raises:
      ValueError: a value out of range; when called, as `image_transforms.decode`.
    """

    image_size: int

    def __post_init__(self) -> None:
        _check_image_size(self.image_size)

    def __call__(self, example: Example, rng: np.random.Generator | None) -> Example:
        image = decode(example["image"])
        sides = np.array(image.shape[:2])
        image, factor = rescale(image, self.image_size / sides.max())
        # Up, but not for a product such as 480.00000000000006.
        size = np.ceil(sides * factor - 1e-6).astype(np.int32)
        return {
            "image": place(image, self.image_size),
            "index": np.int64(example["index"]),
            "scale": np.float32(factor),
            "size": size,
        }
