"""scikit-learn's handwritten digits as a TFDS data set that needs no network and no TensorFlow.

1797 real images of 8x8 pixels by 43 writers (the test part of UCI's "Optical Recognition of
Handwritten Digits", 1998), shipped inside scikit-learn. The order of the file is kept: train is
the first 1437 images, test the last 360. The files go by writer, so the test digits are from
hands that the training set hardly holds, which is harder than a shuffled split. Examples are
stored unshuffled, so `train[:1200]` is the first 1200 of the shipped order and not, as for other
TFDS data sets, a random subset.
"""

from collections.abc import Iterator

import cv2
import numpy as np
import tensorflow_datasets as tfds

NUM_TRAIN = 1437


def load_grey_digits() -> tuple[np.ndarray, np.ndarray]:
    """All digits in the shipped order: uint8 [1797, 8, 8], grey 0..255, and labels int [1797]."""
    # Seconds to import, and needed once.
    from sklearn.datasets import load_digits

    digits = load_digits()
    return np.rint(digits.images * (255 / 16)).astype(np.uint8), digits.target


class Digits(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """TFDS builder; images are PNGs [8, 8, 1] uint8, grey 0..16 scaled to 0..255."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description="scikit-learn's handwritten digits: first 1437 to train, last 360 to test.",
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(8, 8, 1), encoding_format="png"),
                    "label": tfds.features.ClassLabel(names=[str(digit) for digit in range(10)]),
                }
            ),
            supervised_keys=("image", "label"),
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict:
        grey, labels = load_grey_digits()
        return {
            "train": self._generate_examples(grey[:NUM_TRAIN], labels[:NUM_TRAIN]),
            "test": self._generate_examples(grey[NUM_TRAIN:], labels[NUM_TRAIN:]),
        }

    def _generate_examples(
        self, images: np.ndarray, labels: np.ndarray
    ) -> Iterator[tuple[int, dict]]:
        for key, (image, label) in enumerate(zip(images, labels, strict=True)):
            # Encoded here because TFDS would import TensorFlow to encode an array.
            yield key, {"image": cv2.imencode(".png", image)[1].tobytes(), "label": int(label)}
