"""Scenes hold real digits where their boxes say, and no digit is in two splits."""

import sys

import cv2
import numpy as np
import pytest
import tensorflow_datasets as tfds

from sasa_jax.data import DetectionSplit, open_detection_split
from sasa_jax.data.digit_scenes import IMAGE_SIZE, SPLITS, draw_scene
from sasa_jax.data.digits import load_grey_digits
from sasa_jax.data.image_transforms import decode

SIZES = {"train": 2000, "validation": 200, "test": 200}


@pytest.fixture(scope="module")
def splits(data_dir) -> dict[str, DetectionSplit]:
    """The first opening prepares them."""
    return {split: open_detection_split("digit_scenes", split, data_dir) for split in SIZES}


def test_prepared_without_tensorflow(splits):
    assert {split: len(opened) for split, opened in splits.items()} == SIZES
    assert "tensorflow" not in sys.modules
    for split, opened in splits.items():
        assert [c.id for c in opened.categories] == list(range(1, 11))
        assert [c.name for c in opened.categories] == [str(digit) for digit in range(10)]
        assert f"digit_scenes:1.0.0 {split}: {SIZES[split]:,} images" in opened.description
        assert not opened.skipped


def test_splits_share_no_digit():
    parts = [set(digits.tolist()) for _, digits in SPLITS.values()]
    assert [len(part) for part in parts] == [1047, 390, 360]
    assert set.union(*parts) == set(range(1797))
    # Held-out hands: the last 360 of the file, as in digits.
    assert min(parts[2]) == 1437


def test_examples(splits):
    ids = set()
    for opened in splits.values():
        heights, classes, numbers = [], [], []
        for i in range(len(opened)):
            example = opened[i]
            assert (example["index"], example["height"], example["width"]) == (i, 96, 96)
            boxes = example["boxes"]
            assert boxes.dtype == np.float32 and example["classes"].dtype == np.int32
            np.testing.assert_allclose(boxes, np.rint(boxes), atol=1e-4)
            assert (boxes >= 0).all() and (boxes <= 96).all()
            area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
            np.testing.assert_allclose(example["area"], area, rtol=1e-4)
            assert not example["crowd"].any()
            heights.extend(boxes[:, 2] - boxes[:, 0])
            classes.extend(example["classes"])
            numbers.append(len(boxes))
            ids.add(example["image_id"])
        assert set(numbers) == set(range(1, 7))
        # The ten digits alike often: 0.1 of 700 or more, six deviations.
        assert np.abs(np.bincount(classes, minlength=10) / len(classes) - 0.1).max() < 0.07
        assert 13 <= min(heights) < 20 and 36 < max(heights) < 40.5
    assert len(ids) == sum(SIZES.values())


def test_boxes_are_tight(splits):
    """Across each side of a lonely digit's box the grey value jumps, and nowhere outside of it."""
    lonely = 0
    for i in range(200):
        example = splits["test"][i]
        if len(example["boxes"]) > 1:
            continue
        lonely += 1
        image = decode(example["image"])[..., 0].astype(np.int32)
        top, left, bottom, right = np.rint(example["boxes"][0]).astype(int)
        for turned, begin, end in ((image, top, bottom), (image.T, left, right)):
            jumps = np.abs(np.diff(turned, axis=0)).max(axis=1)
            for side in (begin, end):
                assert side in (0, IMAGE_SIZE) or jumps[side - 1] >= 20
            outside = np.r_[jumps[: max(begin - 1, 0)], jumps[end:]]
            assert (outside <= 8).all()
        assert image[top:bottom, left:right].max() > 100
    assert lonely > 10


def test_labels_are_of_the_shipped_digits(splits):
    """What lies in a box looks most like one of the held-out digits, and bears its label."""
    grey, labels = load_grey_digits()
    usable = SPLITS["test"][1]

    def normalised(ink: np.ndarray) -> np.ndarray:
        small = cv2.resize(ink.astype(np.float32), (8, 8), interpolation=cv2.INTER_AREA).ravel()
        return (small - small.mean()) / np.linalg.norm(small - small.mean())

    def ink(digit: np.ndarray) -> np.ndarray:
        large = cv2.resize(digit, (40, 40), interpolation=cv2.INTER_CUBIC)
        rows, columns = np.nonzero(large >= 80)
        return large[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]

    known = np.stack([normalised(ink(grey[digit])) for digit in usable])
    found, likeness = [], []
    for i in range(200):
        example = splits["test"][i]
        image = decode(example["image"])[..., 0]
        top, left, bottom, right = np.rint(example["boxes"][0]).astype(int)
        alike = known @ normalised(image[top:bottom, left:right])
        likeness.append(alike.max())
        found.append(labels[usable[alike.argmax()]] == example["classes"][0])
    # Others may cover the first a little.
    assert np.mean(found) > 0.95 and np.median(likeness) > 0.98


def test_little_overlap():
    grey, _ = load_grey_digits()
    for seed in range(200):
        _, boxes, _ = draw_scene(grey, np.arange(1437), np.random.RandomState(seed))
        boxes = np.array(boxes)
        begin = np.maximum(boxes[:, None, :2], boxes[None, :, :2])
        end = np.minimum(boxes[:, None, 2:], boxes[None, :, 2:])
        shared = (end - begin).clip(0).prod(axis=-1)
        areas = np.diag(shared)
        covered = shared / np.minimum(areas[:, None], areas)
        assert (covered - np.eye(len(boxes))).max() <= 0.15


def test_always_the_same(splits, tmp_path):
    """A second machine makes the same files' content; three scenes are pinned."""
    again = open_detection_split("digit_scenes", "test", tmp_path)
    for i in range(0, 200, 7):
        one, other = splits["test"][i], again[i]
        for key, value in one.items():
            np.testing.assert_array_equal(value, other[key])
    assert [splits["test"][i]["classes"].tolist() for i in range(3)] == [
        [6],
        [4, 2, 7, 4, 4],
        [5, 1, 4],
    ]


def test_layout_is_coco_s(splits, data_dir):
    features = tfds.builder_from_directory(data_dir / "digit_scenes" / "1.0.0").info.features
    assert sorted(features) == ["image", "image/filename", "image/id", "objects"]
    assert sorted(features["objects"].feature) == ["area", "bbox", "id", "is_crowd", "label"]
