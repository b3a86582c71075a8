"""Scenes of scikit-learn's handwritten digits with boxes: a detection data set without network.

Images of 96x96 pixels, each with one to six real digits (see digits.py) of 16 to 40 pixels' height
on a dark, softly uneven ground, in the feature layout of TFDS's coco. Scenes of different splits
share no digit:

    train        2000 scenes of 1047 of the first 1437 digits
    validation    200 scenes of the other 390 (0-149 and 720-959, which are hard: configs/digits.py)
    test          200 scenes of the last 360 digits, by other writers

so settings can be chosen on `validation` and the test set is of unseen hands. Boxes are the
smallest around the ink, in whole pixels; `area` is the box's, as there are no masks. A digit must
not be mirrored. The scenes are drawn by NumPy's RandomState, whose stream is frozen, and are
therefore the same everywhere; examples are stored unshuffled.
"""

from collections.abc import Iterator

import cv2
import numpy as np
import tensorflow_datasets as tfds

from sasa_jax.data.digits import NUM_TRAIN, load_grey_digits

IMAGE_SIZE = 96
MAX_DIGITS = 6
# Of the 8x8 source, whose ink mostly fills its height.
HEIGHT_RANGE = (16, 40)
# Grey value of a digit, 0..255, from which a pixel is ink.
INK = 80
# Share of the smaller box that another may cover.
MAX_COVERED = 0.15
# Number of scenes, and the digits that they are made of.
SPLITS = {
    "train": (2000, np.r_[150:720, 960:NUM_TRAIN]),
    "validation": (200, np.r_[0:150, 720:960]),
    "test": (200, np.r_[NUM_TRAIN:1797]),
}


class DigitScenes(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """TFDS builder; images are PNGs [96, 96, 1] uint8, boxes and areas as in TFDS's coco."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self) -> tfds.core.DatasetInfo:
        names = [str(digit) for digit in range(10)]
        features = {
            "image": tfds.features.Image(shape=(IMAGE_SIZE, IMAGE_SIZE, 1), encoding_format="png"),
            "image/filename": tfds.features.Text(),
            "image/id": np.int64,
            "objects": tfds.features.Sequence(
                {
                    "area": np.int64,
                    "bbox": tfds.features.BBoxFeature(),
                    "id": np.int64,
                    "is_crowd": np.bool_,
                    "label": tfds.features.ClassLabel(names=names),
                }
            ),
        }
        return tfds.core.DatasetInfo(
            builder=self,
            description="Scenes of scikit-learn's handwritten digits, with boxes.",
            features=tfds.features.FeaturesDict(features),
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict:
        return {split: self._generate_examples(split) for split in SPLITS}

    def _generate_examples(self, split: str) -> Iterator[tuple[int, dict]]:
        grey, labels = load_grey_digits()
        scenes, usable = SPLITS[split]
        stream = list(SPLITS).index(split)
        for scene in range(scenes):
            # Of no two splits the same.
            image_id = (stream + 1) * 10_000 + scene
            image, boxes, digits = draw_scene(grey, usable, np.random.RandomState((stream, scene)))
            objects = [
                {
                    "area": int((bottom - top) * (right - left)),
                    "bbox": tfds.features.BBox(
                        *(side / IMAGE_SIZE for side in (top, left, bottom, right))
                    ),
                    "id": image_id * 10 + place,
                    "is_crowd": False,
                    "label": int(labels[digit]),
                }
                for place, ((top, left, bottom, right), digit) in enumerate(
                    zip(boxes, digits, strict=True)
                )
            ]
            yield (
                scene,
                {
                    # Encoded here because TFDS would import TensorFlow to encode an array.
                    "image": cv2.imencode(".png", image)[1].tobytes(),
                    "image/filename": f"{split}_{scene:04d}.png",
                    "image/id": image_id,
                    "objects": objects,
                },
            )


def draw_scene(
    grey: np.ndarray, usable: np.ndarray, random: np.random.RandomState
) -> tuple[np.ndarray, list[tuple[int, int, int, int]], list[int]]:
    """One scene: uint8 [96, 96], its boxes (top, left, bottom, right) and its digits' numbers.

    Args:
      grey: all digits, uint8 [digits, 8, 8].
      usable: numbers of the digits that may be drawn, int [n].
      random: decides everything else.
    """
    texture = random.uniform(0, 24, size=(6, 6)).astype(np.float32)
    image = random.uniform(0, 40) + cv2.resize(
        texture, (IMAGE_SIZE, IMAGE_SIZE), interpolation=cv2.INTER_LINEAR
    )
    boxes: list[tuple[int, int, int, int]] = []
    digits: list[int] = []
    for _ in range(random.randint(1, MAX_DIGITS + 1)):
        digit = int(usable[random.randint(len(usable))])
        side = random.randint(HEIGHT_RANGE[0], HEIGHT_RANGE[1] + 1)
        brightness = random.uniform(140, 255)
        ink, (height, width) = _enlarge(grey[digit], side)
        # Thirty tries; a digit that finds no place is left out, the first always finds one.
        for _ in range(30):
            top = random.randint(IMAGE_SIZE - height + 1)
            left = random.randint(IMAGE_SIZE - width + 1)
            box = (top, left, top + height, left + width)
            if all(_covered(box, other) <= MAX_COVERED for other in boxes):
                part = image[top : top + height, left : left + width]
                part += ink * (brightness - part)
                boxes.append(box)
                digits.append(digit)
                break
    return np.rint(image).astype(np.uint8), boxes, digits


def _enlarge(digit: np.ndarray, side: int) -> tuple[np.ndarray, tuple[int, int]]:
    """A digit [8, 8] at [side, side], cut to its ink: opacity float32 [h, w] in 0..1, (h, w)."""
    large = cv2.resize(digit, (side, side), interpolation=cv2.INTER_CUBIC)
    rows, columns = (np.flatnonzero((large >= INK).any(axis=axis)) for axis in (1, 0))
    ink = large[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    return ink.astype(np.float32) / 255, ink.shape


def _covered(box: tuple[int, int, int, int], other: tuple[int, int, int, int]) -> float:
    """What two boxes share, relative to the smaller one's area."""
    height = min(box[2], other[2]) - max(box[0], other[0])
    width = min(box[3], other[3]) - max(box[1], other[1])
    areas = [(bottom - top) * (right - left) for top, left, bottom, right in (box, other)]
    return max(height, 0) * max(width, 0) / min(areas)
