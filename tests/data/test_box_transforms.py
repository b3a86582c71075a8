"""Boxes move as pixels do: a bright rectangle on black is found where its box says."""

import cv2
import numpy as np
import pytest

from sasa_jax.data import DetectionEval, DetectionTrain
from sasa_jax.data.box_transforms import mirror, rescale
from sasa_jax.data.corrupt import CorruptRecord
from sasa_jax.data.image_transforms import MEAN_RGB


def example(image: np.ndarray, boxes=(), crowd=None, classes=None) -> dict:
    boxes = np.array(boxes, np.float32).reshape(-1, 4)
    return {
        "image": image,
        "boxes": boxes,
        "classes": np.arange(len(boxes), dtype=np.int32) if classes is None else classes,
        "crowd": np.zeros(len(boxes), np.bool_) if crowd is None else np.array(crowd),
        "image_id": 7,
        "file_name": "seven.png",
        "index": 3,
    }


def rectangle(rng: np.random.Generator) -> dict:
    """A white rectangle on black, both of random size, and its box."""
    height, width = rng.integers(20, 200, size=2)
    top, left = (int(rng.integers(side - 8)) for side in (height, width))
    bottom, right = (
        int(rng.integers(begin + 6, side + 1))
        for begin, side in zip((top, left), (height, width), strict=True)
    )
    image = np.zeros((height, width, 3), np.uint8)
    image[top:bottom, left:right] = 255
    return example(image, [[top, left, bottom, right]])


def bright_box(image: np.ndarray) -> np.ndarray | None:
    # Above the padding's red, 124.
    rows, columns = (np.flatnonzero((image[..., 0] > 127).any(axis=axis)) for axis in (1, 0))
    return rows.size and np.array([rows[0], columns[0], rows[-1] + 1, columns[-1] + 1])


@pytest.mark.parametrize("scale", [(1.0, 1.0), (0.3, 0.9), (1.1, 2.5), (0.5, 2.0)])
@pytest.mark.parametrize("flip", [0.0, 0.5, 1.0])
def test_training_moves_boxes_as_pixels(scale, flip):
    transform = DetectionTrain(96, scale=scale, flip=flip)
    kept = 0
    for seed in range(80):
        rng = np.random.default_rng(seed)
        made = transform(rectangle(rng), rng)
        if made["valid"].any():
            kept += 1
            # Half a pixel of the stored image may be lost where enlarging blurs its border.
            np.testing.assert_allclose(made["boxes"][0], bright_box(made["image"]), atol=1.0)
    assert kept > 40


@pytest.mark.parametrize("image_size", [17, 64, 96, 250])
def test_evaluation_moves_boxes_as_pixels(image_size):
    transform = DetectionEval(image_size)
    for seed in range(40):
        source = rectangle(np.random.default_rng(seed))
        made = transform(source, None)
        box = source["boxes"][0] * made["scale"]
        if (box[2:] - box[:2]).min() >= 1:
            np.testing.assert_allclose(box, bright_box(made["image"]), atol=1.0)
        # The square's part: the long side fills it, and no box is outside.
        assert made["size"].max() == image_size
        assert (box[2:] <= made["size"] + 1e-4).all()
        sides = np.array(source["image"].shape[:2]) * made["scale"]
        assert (made["size"] - sides > -1e-4).all() and (made["size"] - sides < 1).all()


def test_rescaling_is_by_exactly_the_factor():
    """Also where the number of pixels is rounded: a ramp keeps its slope to the last column."""
    image = np.ascontiguousarray(
        np.broadcast_to(np.arange(0, 255, 5, np.uint8)[:, None], (7, 51, 3))
    )
    for pixels in (25.51, 40.49, 50.6, 51.49, 77.49, 101.51):
        made, factor = rescale(image, pixels / 51)
        made = made[0, :, 0].astype(np.float64)
        assert len(made) == round(pixels)
        assert factor == (1.0 if len(made) == 51 else pixels / 51)
        # Column x is centred at (x + 0.5) / factor, that of the source at x + 0.5.
        expected = 5 * ((np.arange(len(made)) + 0.5) / factor - 0.5)
        np.testing.assert_allclose(made[2:-2], expected[2:-2], atol=1.0)


def test_nothing_changes_at_the_image_s_own_size():
    rng = np.random.default_rng(0)
    image = rng.integers(256, size=(64, 64, 3), dtype=np.uint8)
    boxes = [[0, 0, 64, 64], [1.25, 2.5, 9.75, 30], [10, 10, 11, 11]]
    made = DetectionTrain(64, max_boxes=5, scale=(1, 1), flip=0)(example(image, boxes), rng)
    np.testing.assert_array_equal(made["image"], image)
    np.testing.assert_array_equal(made["boxes"], np.float32([*boxes, [0] * 4, [0] * 4]))
    np.testing.assert_array_equal(made["classes"], [0, 1, 2, 0, 0])
    np.testing.assert_array_equal(made["valid"], [True] * 3 + [False] * 2)
    assert {k: v.dtype.name for k, v in made.items()} == {
        "image": "uint8",
        "boxes": "float32",
        "classes": "int32",
        "valid": "bool",
        "index": "int64",
    }
    assert made["index"] == 3

    made = DetectionEval(64)(example(image, boxes), None)
    np.testing.assert_array_equal(made["image"], image)
    assert (made["scale"], made["size"].tolist(), made["index"]) == (1, [64, 64], 3)
    assert {k: v.dtype.name for k, v in made.items()} == {
        "image": "uint8",
        "index": "int64",
        "scale": "float32",
        "size": "int32",
    }


def test_mirror():
    image = np.random.default_rng(0).integers(256, size=(32, 32, 3), dtype=np.uint8)
    box = [[3, 4, 10, 20]]
    made = DetectionTrain(32, scale=(1, 1), flip=1)(example(image, box), np.random.default_rng(0))
    np.testing.assert_array_equal(made["image"], image[:, ::-1])
    np.testing.assert_array_equal(made["boxes"][0], [3, 12, 10, 28])
    twice = mirror(mirror(np.float32(box), 32), 32)
    np.testing.assert_array_equal(twice, box)


def test_outside_of_the_image_is_the_mean_colour():
    image = np.zeros((20, 40, 3), np.uint8)
    mean = np.rint(MEAN_RGB)
    for made in (
        DetectionEval(60)(example(image), None),
        DetectionTrain(60, scale=(1, 1))(example(image), np.random.default_rng(0)),
    ):
        assert not made["image"][:30].any()
        np.testing.assert_array_equal(made["image"][30:], np.broadcast_to(mean, (30, 60, 3)))


def test_every_crop_is_drawn():
    """At twice the size each place of the crop comes up, the corners included."""
    image = np.arange(16, dtype=np.uint8).reshape(4, 4, 1) * 16
    transform = DetectionTrain(4, scale=(2, 2), flip=0)
    rng = np.random.default_rng(0)
    crops = {transform(example(image), rng)["image"].tobytes() for _ in range(500)}
    assert len(crops) == 25


@pytest.mark.parametrize(("min_visible", "kept"), [(0.0, 3), (0.3, 2), (0.6, 1), (1.0, 1)])
def test_cut_boxes(min_visible, kept):
    """Boxes of which the crop leaves 100 %, 50 %, 20 % and nothing."""
    image = np.zeros((20, 20, 3), np.uint8)
    boxes = [[0, 0, 5, 5], [0, 5, 5, 15], [0, 8, 5, 18], [12, 12, 20, 20]]

    # Twice the size, of which the crop sees a quarter: here the first.
    class First:
        random = staticmethod(lambda: 1.0)
        uniform = staticmethod(lambda low, high: high)
        integers = staticmethod(lambda high: 0)

    made = DetectionTrain(20, scale=(2, 2), min_visible=min_visible)(example(image, boxes), First())
    assert made["valid"].sum() == kept
    expected = np.float32([[0, 0, 10, 10], [0, 10, 10, 20], [0, 16, 10, 20]])[:kept]
    np.testing.assert_array_equal(made["boxes"][:kept], expected)
    np.testing.assert_array_equal(made["classes"][:kept], np.arange(kept))


def test_small_boxes_are_dropped():
    image = np.zeros((64, 64, 3), np.uint8)
    boxes = [[0, 0, 2, 30], [0, 0, 4, 4], [0, 0, 30, 3.9]]
    rng = np.random.default_rng(0)
    for min_box, kept in ((1.0, [1]), (0.0, [0, 1, 2])):
        transform = DetectionTrain(16, scale=(1, 1), min_box=min_box)
        made = transform(example(image, boxes), rng)
        assert made["classes"][made["valid"]].tolist() == kept


def test_crowd_is_left_out():
    image = np.zeros((8, 8, 3), np.uint8)
    boxes = [[0, 0, 4, 4], [0, 0, 8, 8], [4, 4, 8, 8]]
    transform = DetectionTrain(8, scale=(1, 1), flip=0)
    made = transform(example(image, boxes, [False, True, False]), np.random.default_rng(0))
    assert made["classes"][made["valid"]].tolist() == [0, 2]
    made = transform(example(image, boxes, [True] * 3), np.random.default_rng(0))
    assert not made["valid"].any() and not made["boxes"].any()


def test_of_too_many_the_largest_stay():
    image = np.zeros((64, 64, 3), np.uint8)
    sides = np.random.default_rng(1).permutation(np.arange(2, 62))
    boxes = [[0, 0, side, side] for side in sides]
    transform = DetectionTrain(64, max_boxes=20, scale=(1, 1), flip=0)
    made = transform(example(image, boxes), np.random.default_rng(0))
    assert made["valid"].all() and made["boxes"].shape == (20, 4)
    assert set(made["boxes"][:, 2]) == set(range(42, 62))
    np.testing.assert_array_equal(sides[made["classes"]], made["boxes"][:, 2])
    exactly = DetectionTrain(64, max_boxes=60, scale=(1, 1), flip=0)
    made = exactly(example(image, boxes), np.random.default_rng(0))
    np.testing.assert_array_equal(made["classes"], np.arange(60))


@pytest.mark.parametrize("shape", [(1, 1), (1, 500), (500, 1), (3, 2000)])
def test_extreme_shapes(shape):
    image = np.full((*shape, 3), 9, np.uint8)
    source = example(image, [[0, 0, *shape]])
    made = DetectionEval(64)(source, None)
    assert made["image"].shape == (64, 64, 3) and made["size"].min() >= 1
    for seed in range(5):
        made = DetectionTrain(64)(source, np.random.default_rng(seed))
        assert made["image"].shape == (64, 64, 3) and np.isfinite(made["boxes"]).all()


def test_function_of_the_generator_alone():
    source = rectangle(np.random.default_rng(5))
    transform = DetectionTrain(48)
    one, other = (transform(source, np.random.default_rng((1, 2))) for _ in range(2))
    for key, value in one.items():
        np.testing.assert_array_equal(value, other[key])
    images = {transform(source, np.random.default_rng(i))["image"].tobytes() for i in range(20)}
    assert len(images) == 20


def test_jpeg_bytes_and_broken_bytes():
    image = np.zeros((30, 50, 3), np.uint8)
    source = example(cv2.imencode(".jpg", image)[1].tobytes())
    assert DetectionEval(50)(source, None)["size"].tolist() == [30, 50]
    for transform in (DetectionEval(50), DetectionTrain(50)):
        with pytest.raises(CorruptRecord, match="OpenCV cannot decode its 20 bytes"):
            transform({**source, "image": source["image"][:20]}, np.random.default_rng(0))


def test_lists_of_a_config():
    assert DetectionTrain(32, scale=[0.5, 2.0]) == DetectionTrain(32, scale=(0.5, 2.0))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(image_size=0), "image_size is 0"),
        (dict(max_boxes=0), "max_boxes is 0"),
        (dict(scale=(1.2, 0.8)), r"scale is \(1.2, 0.8\); expected \(low, high\)"),
        (dict(scale=(0.0, 1.0)), "scale is"),
        (dict(scale=(1.0,)), "scale is"),
        (dict(flip=1.5), "flip is 1.5"),
        (dict(min_visible=-0.1), "min_visible is -0.1"),
        (dict(min_box=-1), "min_box is -1"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        DetectionTrain(**{"image_size": 32, **options})
    if "image_size" in options:
        with pytest.raises(ValueError, match=message):
            DetectionEval(**options)
