"""Decoding, crops and augmentation on made-up images whose right answer is known."""

from io import BytesIO

import cv2
import numpy as np
import pytest
from PIL import Image

from sasa_jax.data import CorruptRecord, make_transform
from sasa_jax.data.image_transforms import (
    centre_crop,
    decode,
    random_affine,
    random_crop_box,
    resize,
)


def photo(height: int, width: int) -> np.ndarray:
    """A smooth colour image: red grows along the rows, green along the columns."""
    red = np.linspace(0, 255, height)[:, None] * np.ones(width)
    green = np.linspace(0, 255, width) * np.ones((height, 1))
    return np.stack([red, green, np.full_like(red, 77)], axis=-1).round().astype(np.uint8)


def png(image: np.ndarray) -> bytes:
    return cv2.imencode(".png", image[..., ::-1])[1].tobytes()


def example(image: np.ndarray | bytes) -> dict:
    return {"image": image, "label": 7, "index": 123}


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def test_decode_is_rgb():
    image = photo(10, 12)
    np.testing.assert_array_equal(decode(png(image)), image)
    np.testing.assert_array_equal(decode(image), image)


def test_decode_grey_and_transparent():
    grey = photo(6, 5)[..., 0]
    three = np.repeat(grey[..., None], 3, axis=2)
    np.testing.assert_array_equal(decode(cv2.imencode(".png", grey)[1].tobytes()), three)
    np.testing.assert_array_equal(decode(grey[..., None]), three)
    rgba = np.dstack([photo(6, 5)[..., ::-1], np.full((6, 5), 9, np.uint8)])
    np.testing.assert_array_equal(decode(cv2.imencode(".png", rgba)[1].tobytes()), photo(6, 5))


def test_decode_cmyk_and_exif():
    """ImageNet holds CMYK files; a rotation noted in EXIF is ignored, as in the field."""
    image = photo(16, 32)
    buffer = BytesIO()
    Image.fromarray(image).convert("CMYK").save(buffer, "JPEG", quality=100)
    error = np.abs(decode(buffer.getvalue()).astype(int) - image)
    assert error.mean() < 3 and error.max() < 40  # JPEG's loss, and not another colour

    buffer = BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees
    Image.fromarray(image).save(buffer, "JPEG", quality=100, exif=exif)
    assert decode(buffer.getvalue()).shape == (16, 32, 3)


def saved(mode: str, kind: str, **options) -> bytes:
    buffer = BytesIO()
    Image.fromarray(photo(30, 40)).convert(mode).save(buffer, kind, **options)
    return buffer.getvalue()


def test_decode_sixteen_bits_and_palettes():
    deep = photo(6, 5)[..., ::-1].astype(np.uint16) * 257
    np.testing.assert_array_equal(decode(cv2.imencode(".png", deep)[1].tobytes()), photo(6, 5))
    deep = np.dstack([deep, deep[..., 0]])
    np.testing.assert_array_equal(decode(cv2.imencode(".png", deep)[1].tobytes()), photo(6, 5))
    for options in ({}, {"transparency": 0}):
        palette = saved("P", "PNG", **options)
        expected = np.asarray(Image.open(BytesIO(palette)).convert("RGB"))
        np.testing.assert_array_equal(decode(palette), expected)


def only_exif() -> bytes:
    """A JPEG's EXIF header with nothing behind it."""
    exif = Image.Exif()
    exif[0x0112] = 6
    whole = saved("RGB", "JPEG", exif=exif)
    begin = whole.index(b"\xff\xe1")
    return whole[: begin + 2 + int.from_bytes(whole[begin + 2 : begin + 4], "big")] + b"\xff\xd9"


def huge() -> bytes:
    """A header that claims 65500 x 65500 pixels."""
    image = bytearray(saved("RGB", "JPEG"))
    begin = image.index(b"\xff\xc0") + 5
    image[begin : begin + 4] = 2 * (65500).to_bytes(2, "big")
    return bytes(image)


@pytest.mark.parametrize("image", [b"", b"no image at all", bytes(999), only_exif(), huge()])
def test_decode_rejects_bytes(image):
    with pytest.raises(CorruptRecord, match=rf"OpenCV .* its {len(image)} bytes"):
        decode(image)


@pytest.mark.parametrize(
    ("mode", "kind", "options"),
    [
        ("RGB", "JPEG", {"quality": 100, "subsampling": 0}),
        ("RGB", "JPEG", {"progressive": True}),
        ("L", "JPEG", {"restart_marker_blocks": 2}),
        ("CMYK", "JPEG", {}),
        ("RGB", "PNG", {}),
    ],
)
def test_a_file_cut_anywhere_is_corrupt(mode, kind, options):
    """Also where its length was kept: the rest of many a JPEG would be painted grey."""
    whole = saved(mode, kind, **options)
    decode(whole)
    decode(whole + b"more")
    for length in range(0, len(whole) - 8, 23):
        for end in (b"", bytes(len(whole) - length)):
            with pytest.raises(CorruptRecord):
                decode(whole[:length] + end)


def test_a_cut_file_with_a_preview_is_corrupt():
    """The end mark of the preview within its header is not the picture's."""
    preview = saved("RGB", "JPEG")
    segment = b"\xff\xe2" + (len(preview) + 2).to_bytes(2, "big") + preview
    whole = preview[:2] + segment + saved("RGB", "JPEG", quality=100, subsampling=0)[2:]
    decode(whole)
    with pytest.raises(CorruptRecord, match="cut short"):
        decode(whole[: len(whole) - 500] + bytes(500))


@pytest.mark.parametrize(
    "image", [np.zeros((4, 4), np.uint8), np.zeros((4, 4, 3)), np.zeros((4, 4, 4), np.uint8)]
)
def test_decode_rejects_arrays(image):
    with pytest.raises(ValueError, match="expected uint8"):
        decode(image)


def test_resize_averages_when_shrinking():
    """A fine chessboard becomes even grey; without antialiasing it stays black and white."""
    board = (np.indices((64, 64)).sum(0) % 2 * 255).astype(np.uint8)[..., None].repeat(3, 2)
    assert np.ptp(resize(board, 16, 16)) <= 1
    assert resize(board, 64, 64) is board


@pytest.mark.parametrize("size", [(1, 1), (1, 300), (300, 2), (224, 224), (37, 500), (500, 375)])
def test_crop_box_inside(size):
    generator = rng()
    shares, ratios = [], []
    for _ in range(300):
        top, left, height, width = random_crop_box(*size, generator, (0.08, 1.0), (3 / 4, 4 / 3))
        assert 0 <= top and 0 <= left and height >= 1 and width >= 1
        assert top + height <= size[0] and left + width <= size[1]
        shares.append(height * width / (size[0] * size[1]))
        ratios.append(width / height)
    if min(size) >= 200:
        # Rounding to whole pixels moves each limit a little.
        assert 0.075 < min(shares) < 0.15 and 0.8 < max(shares) <= 1
        assert 0.73 < min(ratios) < 0.8 and 1.25 < max(ratios) < 1.36


def test_crop_flip_train():
    transform = make_transform("crop_flip", 24, train=True)
    image = photo(40, 60)
    mirrored = 0
    for seed in range(60):
        out = transform(example(png(image)), rng(seed))
        pixels = out["image"]
        assert pixels.shape == (24, 24, 3) and pixels.dtype == np.uint8
        assert pixels.flags.c_contiguous
        assert out["label"] == 7 and out["label"].dtype == np.int32
        assert out["index"] == 123 and out["index"].dtype == np.int64
        assert (pixels[..., 2] == 77).all()  # nothing from outside the image
        red, green = (pixels[..., c].astype(int) for c in range(2))
        assert red[-1].mean() > red[0].mean()  # never upside down
        mirrored += green[:, -1].mean() < green[:, 0].mean()
        again = transform(example(png(image)), rng(seed))
        np.testing.assert_array_equal(again["image"], pixels)
    assert 15 < mirrored < 45


def test_flip_is_the_only_difference():
    """With the same draws, flip 1 is the mirror of flip 0."""
    plain = make_transform("crop_flip", 16, train=True, flip=0.0)
    mirror = make_transform("crop_flip", 16, train=True, flip=1.0)
    for seed in range(5):
        one, other = (t(example(photo(30, 20)), rng(seed))["image"] for t in (plain, mirror))
        np.testing.assert_array_equal(one, other[:, ::-1])


@pytest.mark.parametrize("size", [(256, 256), (300, 500), (10, 7), (224, 1000), (257, 255)])
def test_centre_crop(size):
    out = centre_crop(photo(*size), 224, 0.875)
    assert out.shape == (224, 224, 3)
    # The centre of the picture is at the centre of the crop; half a step of the ramp is allowed.
    assert abs(out[..., 0].mean() - 127.5) < 1.5 and abs(out[..., 1].mean() - 127.5) < 1.5
    if size == (256, 256):
        np.testing.assert_array_equal(out, photo(*size)[16:240, 16:240])


def test_affine_moves_turns_and_scales():
    dot = np.zeros((33, 33, 3), np.uint8)
    dot[16, 16] = 255

    def centre(image: np.ndarray) -> np.ndarray:
        weights = image[..., 0] / image[..., 0].sum()
        return np.array(
            [(weights.sum(1) * np.arange(33)).sum(), (weights.sum(0) * np.arange(33)).sum()]
        )

    still = dict(shift=0.0, rotation=0.0, scale=0.0, shear=0.0)
    np.testing.assert_array_equal(random_affine(dot, rng(), **still), dot)
    offsets = []
    for seed in range(50):
        moved = random_affine(dot, rng(seed), **{**still, "shift": 3.0})
        offsets.append(centre(moved) - 16)
        # The middle stays where it is under all else.
        others = dict(shift=0.0, rotation=90.0, scale=0.2, shear=20.0)
        np.testing.assert_allclose(centre(random_affine(dot, rng(seed), **others)), 16, atol=0.3)
    offsets = np.array(offsets)
    assert np.abs(offsets).max() <= 3.05 and offsets.max() > 2 and offsets.min() < -2

    bar = np.zeros((33, 33, 3), np.uint8)
    bar[16, 8:25] = 255
    angles, lengths = [], []
    for seed in range(50):
        ys, xs = np.nonzero(random_affine(bar, rng(seed), **{**still, "rotation": 30.0})[..., 0])
        angles.append(np.degrees(np.arctan(np.polyfit(xs, ys, 1)[0])))
        scaled = random_affine(bar, rng(seed), **{**still, "scale": 0.25})
        lengths.append(scaled[..., 0].max(axis=0).astype(float).sum() / 255 / 17)
    assert max(map(abs, angles)) < 32 and max(angles) > 20 and min(angles) < -20
    assert 0.7 < min(lengths) < 0.9 and 1.1 < max(lengths) < 1.35


def test_shift_rotate():
    transform = make_transform("shift_rotate", 32, train=True, shift=2.0, rotation=10.0)
    image = photo(8, 8)
    out = transform(example(png(image)), rng(1))
    assert out["image"].shape == (32, 32, 3) and out["label"] == 7
    np.testing.assert_array_equal(out["image"], transform(example(png(image)), rng(1))["image"])
    assert (out["image"] != transform(example(png(image)), rng(2))["image"]).any()
    # Evaluation is the resized image; augmentation with all limits 0 is the same.
    evaluation = make_transform("shift_rotate", 32, train=False)(example(png(image)), None)
    np.testing.assert_array_equal(evaluation["image"], resize(image, 32, 32))
    none = make_transform("shift_rotate", 32, train=True, shift=0.0, rotation=0.0)
    np.testing.assert_array_equal(none(example(image), rng())["image"], evaluation["image"])


def test_evaluation_draws_nothing():
    for kind in ("crop_flip", "shift_rotate", "none"):
        out = make_transform(kind, 16, train=False)(example(photo(20, 30)), None)
        assert out["image"].shape == (16, 16, 3) and out["label"] == 7


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        ("crop_flop", {}, "did you mean 'crop_flip'"),
        ("crop_flip", {"flipp": 0.1}, "did you mean 'flip'.*area, aspect, flip"),
        ("none", {"shift": 1.0}, "its options are none"),
        ("crop_flip", {"area": (0.0, 1.0)}, "area is"),
        ("crop_flip", {"area": [0.5, 1.1]}, "area is"),
        ("crop_flip", {"aspect": (2.0, 1.0)}, "aspect is"),
        ("crop_flip", {"flip": 1.5}, "flip is 1.5"),
        ("crop_flip", {"crop_fraction": 0.0}, "crop_fraction is 0.0"),
        ("shift_rotate", {"rotation": -1.0}, "rotation is -1.0"),
    ],
)
def test_bad_options(kind, options, message):
    with pytest.raises(ValueError, match=message):
        make_transform(kind, 32, train=True, **options)


def test_bad_size():
    with pytest.raises(ValueError, match="image_size is 0"):
        make_transform("none", 0, train=True)
