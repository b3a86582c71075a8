"""From a stored example to a training or evaluation image, with OpenCV.

Every transform is a small frozen dataclass, called with one example and a numpy Generator:
{"image": JPEG or PNG bytes, or uint8 [h, w, 1 or 3]; "label": int; "index": int} becomes
{"image": uint8 [H, W, 3] RGB, "label": int32, "index": int64}, H = W = image_size. The result is a
function of the example and of the generator's state alone. Evaluation draws nothing, so its
generator may be None. Normalisation with MEAN_RGB and STD_RGB is left to the device: uint8 is a
quarter of the bytes to move.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import cv2
import numpy as np

from sasa_jax.checks import nearest
from sasa_jax.data.corrupt import CorruptRecord

# ImageNet's statistics per channel, as the field uses them, for pixels 0..255.
MEAN_RGB = (123.675, 116.28, 103.53)
STD_RGB = (58.395, 57.12, 57.375)

Example = dict[str, Any]
Transform = Callable[[Example, np.random.Generator | None], Example]


def decode(image: bytes | np.ndarray) -> np.ndarray:
    """RGB pixels, uint8 [h, w, 3], of a JPEG, PNG or other file that OpenCV reads, or of an array.

    The bytes decide the format, not a name: ImageNet has a PNG called JPEG. Grey becomes three
    equal channels, CMYK becomes RGB, transparency and bits beyond 8 are dropped. The EXIF rotation
    is ignored, as in TensorFlow's and torchvision's ImageNet pipelines.

    Raises:
      CorruptRecord: bytes that are no image or not all of it. Wrong bytes within a JPEG pass: it
        has no checksum.
      ValueError: an array of another shape or type.
    """
    if isinstance(image, bytes):
        return _decode_file(image)
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] not in (1, 3):
        raise ValueError(
            f"image is {image.dtype} {list(image.shape)}; expected uint8 [h, w, 1 or 3]."
        )
    return np.repeat(image, 3, axis=2) if image.shape[2] == 1 else image


def _decode_file(image: bytes) -> np.ndarray:
    if _cut_short(image):
        raise CorruptRecord(f"the JPEG is cut short: no end mark in its {len(image)} bytes")
    flags = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION
    try:
        decoded = cv2.imdecode(np.frombuffer(image, np.uint8), flags) if image else None
    except cv2.error as error:
        if error.code == cv2.Error.StsNoMem:
            raise
        raise CorruptRecord(f"OpenCV refuses its {len(image)} bytes: {error.err}") from error
    if decoded is None:
        raise CorruptRecord(
            f"OpenCV cannot decode its {len(image)} bytes, starting {image[:8]!r}; expected a JPEG "
            "or PNG file"
        )
    return decoded


def _cut_short(image: bytes) -> bool:
    """A JPEG that does not end after its last scan: OpenCV paints the rest of some of them grey."""
    end, scan = b"\xff\xd9", b"\xff\xda"  # neither stands within compressed data
    jpeg = image.startswith(b"\xff\xd8")
    return jpeg and not image.endswith(end) and image.rfind(end) < image.rfind(scan)


def resize(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """uint8 [h, w, 3] to [height, width, 3].

    Shrinking averages over areas, which is the antialiasing that the field's bilinear resize has
    and OpenCV's lacks; enlarging is cubic.
    """
    if image.shape[:2] == (height, width):
        return image
    shrinks = height <= image.shape[0] and width <= image.shape[1]
    return cv2.resize(
        image, (width, height), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC
    )


def random_crop_box(
    height: int,
    width: int,
    rng: np.random.Generator,
    area: tuple[float, float],
    aspect: tuple[float, float],
) -> tuple[int, int, int, int]:
    """Top, left, height, width of a random part of an image, always inside it.

    The part's share of the area is uniform in `area`, its width / height log-uniform in `aspect`
    (Szegedy et al. 2014, as in torchvision). After ten misses the largest centred part with an
    admissible aspect is taken.
    """
    low, high = map(math.log, aspect)
    for _ in range(10):
        target = height * width * rng.uniform(*area)
        ratio = math.exp(rng.uniform(low, high))
        crop_width, crop_height = round(math.sqrt(target * ratio)), round(math.sqrt(target / ratio))
        if 0 < crop_width <= width and 0 < crop_height <= height:
            top = int(rng.integers(height - crop_height + 1))
            left = int(rng.integers(width - crop_width + 1))
            return top, left, crop_height, crop_width
    ratio = min(max(width / height, aspect[0]), aspect[1])
    crop_width = max(1, min(width, round(height * ratio)))
    crop_height = max(1, min(height, round(width / ratio)))
    return (height - crop_height) // 2, (width - crop_width) // 2, crop_height, crop_width


def centre_crop(image: np.ndarray, image_size: int, fraction: float) -> np.ndarray:
    """Scale the short side to image_size / fraction, then cut out the centre: [S, S, 3]."""
    height, width = image.shape[:2]
    scale = image_size / fraction / min(height, width)
    height, width = (max(image_size, round(side * scale)) for side in (height, width))
    image = resize(image, height, width)
    top, left = (height - image_size) // 2, (width - image_size) // 2
    return image[top : top + image_size, left : left + image_size]


def random_affine(
    image: np.ndarray,
    rng: np.random.Generator,
    *,
    shift: float,
    rotation: float,
    scale: float,
    shear: float,
) -> np.ndarray:
    """Move, turn, scale and shear uint8 [H, W, 3] about its centre; what comes in is black.

    Each amount is uniform within +- its limit: shift in pixels per axis, rotation and shear in
    degrees, scale as the logarithm of a factor of at most 1 + scale.
    """
    height, width = image.shape[:2]
    x, y, turn, slant, zoom = rng.uniform(-1.0, 1.0, size=5).tolist()
    angle, slope = math.radians(turn * rotation), math.tan(math.radians(slant * shear))
    factor = math.exp(zoom * math.log1p(scale))
    cos, sin = factor * math.cos(angle), factor * math.sin(angle)
    # Rotation times shear, in plain floats: for small images NumPy's overhead would dominate.
    a, b, c, d = cos, cos * slope - sin, sin, sin * slope + cos
    centre_x, centre_y = (width - 1) / 2, (height - 1) / 2
    to_x = centre_x + x * shift - a * centre_x - b * centre_y
    to_y = centre_y + y * shift - c * centre_x - d * centre_y
    matrix = np.array([[a, b, to_x], [c, d, to_y]])
    return cv2.warpAffine(image, matrix, (width, height))


def _finish(example: Example, image: np.ndarray) -> Example:
    return {
        "image": np.ascontiguousarray(image),
        "label": np.int32(example["label"]),
        "index": np.int64(example["index"]),
    }


@dataclasses.dataclass(frozen=True)
class CropFlip:
    """ImageNet's usual: random-resized crop and mirror to train, centre crop to evaluate.

    The paper names none (PAPER section 5), so these are the field's values.

    Attributes:
      area, aspect: limits of the random part, see `random_crop_box`.
      flip: probability of a mirror image.
      crop_fraction: evaluation takes this share of the short side, 224 of 256.
    """

    image_size: int
    train: bool
    area: tuple[float, float] = (0.08, 1.0)
    aspect: tuple[float, float] = (3 / 4, 4 / 3)
    flip: float = 0.5
    crop_fraction: float = 0.875

    def __post_init__(self) -> None:
        for name in ("area", "aspect"):
            low, high = getattr(self, name)
            if not 0 < low <= high or (name == "area" and high > 1):
                limit = "0 < low <= high <= 1" if name == "area" else "0 < low <= high"
                raise ValueError(f"{name} is {getattr(self, name)}; expected {limit}.")
        if not 0 <= self.flip <= 1:
            raise ValueError(f"flip is {self.flip}; expected a probability.")
        if not 0 < self.crop_fraction <= 1:
            raise ValueError(f"crop_fraction is {self.crop_fraction}; expected 0 < share <= 1.")

    def __call__(self, example: Example, rng: np.random.Generator | None) -> Example:
        image = decode(example["image"])
        if not self.train:
            return _finish(example, centre_crop(image, self.image_size, self.crop_fraction))
        top, left, height, width = random_crop_box(*image.shape[:2], rng, self.area, self.aspect)
        image = image[top : top + height, left : left + width]
        image = resize(image, self.image_size, self.image_size)
        if rng.random() < self.flip:
            image = image[:, ::-1]
        return _finish(example, image)


@dataclasses.dataclass(frozen=True)
class ShiftRotate:
    """For drawings such as digits: small random moves and turns, and no mirror, after resizing.

    Evaluation only resizes. Attributes: see `random_affine`; pixels are those of the result.
    """

    image_size: int
    train: bool
    shift: float = 3.0
    rotation: float = 12.0
    scale: float = 0.0
    shear: float = 0.0

    def __post_init__(self) -> None:
        for name in ("shift", "rotation", "scale", "shear"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} is {getattr(self, name)}; expected a limit >= 0.")

    def __call__(self, example: Example, rng: np.random.Generator | None) -> Example:
        image = resize(decode(example["image"]), self.image_size, self.image_size)
        if self.train:
            image = random_affine(
                image,
                rng,
                shift=self.shift,
                rotation=self.rotation,
                scale=self.scale,
                shear=self.shear,
            )
        return _finish(example, image)


@dataclasses.dataclass(frozen=True)
class Plain:
    """No augmentation: the whole image resized, its aspect not kept; the same for evaluation."""

    image_size: int
    train: bool

    def __call__(self, example: Example, rng: np.random.Generator | None) -> Example:
        return _finish(example, resize(decode(example["image"]), self.image_size, self.image_size))


KINDS = {"crop_flip": CropFlip, "shift_rotate": ShiftRotate, "none": Plain}


def make_transform(kind: str, image_size: int, *, train: bool, **options: Any) -> Transform:
    """The transform of a kind: "crop_flip", "shift_rotate" or "none".

    Args:
      kind: see CropFlip, ShiftRotate and Plain.
      image_size: side of the resulting square in pixels.
      train: with augmentation; False is the kind's fixed way to evaluate. Both take all options.
      options: the fields of the kind's class.

    Raises:
      ValueError: unknown kind or option (the nearest is suggested), or a value out of range.
    """
    if kind not in KINDS:
        raise ValueError(
            f"kind is {kind!r}{nearest(kind, KINDS)}; expected one of {', '.join(KINDS)}."
        )
    if image_size < 1:
        raise ValueError(f"image_size is {image_size}; expected at least 1 pixel.")
    fields = [
        f.name for f in dataclasses.fields(KINDS[kind]) if f.name not in ("image_size", "train")
    ]
    for option in options:
        if option not in fields:
            raise ValueError(
                f"{kind!r} has no option {option!r}{nearest(option, fields)}; its options are "
                f"{', '.join(fields) or 'none'}."
            )
    # Configs turn tuples into lists.
    options = {k: tuple(v) if isinstance(v, list) else v for k, v in options.items()}
    return KINDS[kind](image_size=image_size, train=train, **options)
