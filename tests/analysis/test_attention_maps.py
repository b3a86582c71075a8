"""Attention figures: the right weights at the right place, and a picture that shows something."""

import re

import cv2
import numpy as np
import pytest

from sasa_jax.analysis import attention_figure, save_attention_figure
from sasa_jax.analysis.attention_windows import pick_queries, query_window


def softmax(rng: np.random.Generator, *shape: int) -> np.ndarray:
    weights = np.exp(rng.normal(size=shape))
    return (weights / weights.sum(axis=(-2, -1), keepdims=True)).astype(np.float32)


def an_image(size: int = 32) -> np.ndarray:
    y, x = np.mgrid[:size, :size]
    grey = np.where(np.hypot(y - size / 2, x - size / 2) < size / 4, 220, 30)
    return np.repeat(grey[..., None], 3, axis=-1).astype(np.uint8)


def test_window_of_a_query():
    weights = softmax(np.random.default_rng(0), 8, 8, 4, 7, 7)
    window = query_window(weights, (9, 30), (32, 32))  # pixel (9, 30) lies in slot (2, 7)
    np.testing.assert_array_equal(window.weights, weights[2, 7])
    assert window.box == ((2 - 3) * 4, (7 - 3) * 4, 28, 28)
    assert window.query == (3, 3)
    expected = np.ones((7, 7), bool)
    expected[0] = False  # one row above the image
    expected[:, 4:] = False  # three columns to its right
    np.testing.assert_array_equal(window.inside, expected)


def test_window_of_a_query_in_the_stem():
    weights = np.random.default_rng(0).random((8, 8, 4, 16, 16), np.float32)
    window = query_window(weights, (9, 30), (32, 32))  # block (2, 7), row 1 and column 2 inside
    np.testing.assert_array_equal(window.weights, weights[2, 7, :, 4 * 1 + 2].reshape(4, 4, 4))
    assert window.box == (8, 28, 4, 4)
    assert window.query == (1, 2)
    assert window.inside.all()


def test_queries_are_apart_and_on_edges():
    image = an_image(64)
    queries = pick_queries(image)
    assert len(queries) == 3
    for number, (row, column) in enumerate(queries):
        assert abs(np.hypot(row - 32, column - 32) - 16) < 2  # the disc's rim
        for other in queries[:number]:
            assert np.hypot(row - other[0], column - other[1]) >= 16
    assert len(pick_queries(np.zeros((64, 64, 3), np.uint8))) == 3


def test_figure_file(tmp_path):
    rng = np.random.default_rng(0)
    attention = {
        "group1/block1": softmax(rng, 8, 8, 8, 7, 7),
        "group2/block1": softmax(rng, 4, 4, 4, 3, 3),
        "stem": softmax(rng, 8, 8, 4, 16, 16),
    }
    path = tmp_path / "maps.png"
    save_attention_figure(path, an_image(), attention, title="a disc")
    assert path.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    picture = cv2.imread(str(path))
    height, width, _ = picture.shape
    assert min(height, width) > 600
    assert len(np.unique(picture.reshape(-1, 3), axis=0)) > 200
    # Every quarter has something drawn in it besides the white ground.
    for rows in (slice(0, height // 2), slice(height // 2, height)):
        assert (picture[rows, width // 2 :] != 255).any(axis=-1).mean() > 0.1


def test_chosen_heads_as_drawing_for_papers(tmp_path):
    attention = {"group1/block1": softmax(np.random.default_rng(0), 8, 8, 8, 7, 7)}
    path = tmp_path / "maps.svg"
    save_attention_figure(path, an_image(), attention, heads=[5, 2], queries=[(9, 9)])
    drawing = path.read_text()
    assert drawing.lstrip().startswith("<?xml") and "</svg>" in drawing
    words = re.findall(r">([^<>]+)</text>", drawing)
    assert [word for word in words if word.startswith("head")] == ["head 5", "head 2"]
    figure = attention_figure(an_image(), attention, heads=[5, 2], queries=[(9, 9)])
    maps = [axes.images[0].get_array() for axes in figure.axes if axes.images]
    assert [np.shape(m) for m in maps[1:]] == [(32, 32, 3), (7, 7), (7, 7)]
    np.testing.assert_array_equal(maps[2], attention["group1/block1"][2, 2, 4])
    np.testing.assert_array_equal(maps[3], attention["group1/block1"][2, 2, 1])


def test_figure_shows_the_chosen_layers_and_every_head():
    rng = np.random.default_rng(0)
    attention = {f"group1/block{b}": softmax(rng, 8, 8, 2, 5, 5) for b in range(1, 7)}
    attention["stem"] = softmax(rng, 8, 8, 4, 16, 16)

    def words(**options) -> list[str]:
        return [
            text.get_text() for text in attention_figure(an_image(), attention, **options).texts
        ]

    shown = [word for word in words() if word in attention]
    assert shown[0] == "stem" and shown[-1] == "group1/block6" and len(shown) == 4
    chosen = words(layers=["group1/block2"], queries=[(3, 4), (20, 20)])
    assert [word for word in chosen if word in attention] == ["group1/block2"]
    assert [word for word in chosen if word.startswith("head")] == ["head 1", "head 2"]
    assert "window 5x5, one slot is 4 pixels" in chosen
    figure = attention_figure(an_image(), attention, layers=["group1/block2"], queries=[(3, 4)])
    maps = [axes.images[0].get_array() for axes in figure.axes if axes.images]
    for head in range(2):
        assert any(np.array_equal(m, attention["group1/block2"][0, 1, head]) for m in maps)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (dict(image=an_image() / 255), TypeError, "image must be uint8, got float64"),
        (dict(image=an_image()[..., 0]), ValueError, r"image must be \[H, W, 3\], got \[32, 32\]"),
        (dict(layers=["group1/block3"]), ValueError, "did you mean 'group1/block1'"),
        (dict(queries=[(40, 0)]), ValueError, r"query \(40, 0\) is outside the image of 32x32"),
        (dict(heads=[1, 3]), ValueError, "has the 2 heads 1 to 2 and no 3"),
        (dict(queries=[]), ValueError, "nothing to show: 0 queries"),
        (dict(attention={}), ValueError, "nothing to show: 3 queries, 0 layers"),
        (
            dict(attention={"group1/block1": np.ones((1, 8, 8, 2, 7, 7))}),
            ValueError,
            "take one image of the batch",
        ),
        (dict(attention={"group1/block1": np.ones((8, 8, 2, 6, 6))}), ValueError, "K odd"),
    ],
)
def test_errors_name_what_is_wrong(change, error, message):
    arguments = dict(image=an_image(), attention={"group1/block1": np.ones((8, 8, 2, 7, 7))})
    with pytest.raises(error, match=message):
        attention_figure(**(arguments | change))
