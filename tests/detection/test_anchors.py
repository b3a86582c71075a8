"""Number, order, place and shape of the anchors."""

import numpy as np
import pytest

from sasa_jax.detection import Anchors

NINE = Anchors(scales=(1.0, 2 ** (1 / 3), 2 ** (2 / 3)))


@pytest.mark.parametrize(
    ("anchors", "size", "counts"),
    [
        (Anchors(), (640, 640), (38400, 9600, 2400, 600, 150)),
        (NINE, (320, 320), (14400, 3600, 900, 225, 81)),
        (Anchors(), (100, 60), (6 * 13 * 8, 6 * 7 * 4, 6 * 4 * 2, 6 * 2, 6)),  # rounded up
        (Anchors(levels=(4, 5), aspect_ratios=(1.0,)), (64, 32), (2 * 4 * 2, 2 * 2)),
    ],
)
def test_numbers(anchors, size, counts):
    assert anchors.counts(size) == counts
    boxes = anchors.boxes(size)
    assert boxes.shape == (sum(counts), 4)
    assert boxes.dtype == np.float32


def test_order_centres_and_shapes():
    """Levels, rows, columns, scales, aspect ratios: from the slowest to the fastest."""
    anchors = Anchors(scales=(1.0, 2.0), aspect_ratios=(0.25, 1.0), levels=(3, 4))
    boxes = anchors.boxes((16, 24))
    expected = [
        [y, x, scale * 4 * stride * ratio**0.5, scale * 4 * stride / ratio**0.5]
        for stride, rows, columns in ((8, 2, 3), (16, 1, 2))
        for y in (np.arange(rows) + 0.5) * stride
        for x in (np.arange(columns) + 0.5) * stride
        for scale in (1, 2)
        for ratio in (0.25, 1)
    ]
    centres, sides = (boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]
    np.testing.assert_allclose(np.concatenate([centres, sides], axis=1), expected)


def test_the_default_is_the_papers_number_and_covers_32_to_724_pixels():
    anchors = Anchors()
    assert anchors.per_place == 6
    assert NINE.per_place == 9
    boxes = anchors.boxes((640, 640)).astype(np.float64)
    sides = np.sqrt((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]))
    np.testing.assert_allclose([sides.min(), sides.max()], [32, 512 * 2**0.5], rtol=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scales": ()}, "scales must be one or more positive"),
        ({"aspect_ratios": (1.0, 0.0)}, "aspect_ratios must be one or more positive"),
        ({"size": -1.0}, "size must be positive"),
        ({"levels": (4, 3)}, "levels must rise"),
    ],
)
def test_what_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Anchors(**options)
