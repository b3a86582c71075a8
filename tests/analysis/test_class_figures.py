"""Pictures of classes and of boxes without the truth, as prediction draws them."""

import numpy as np
import pytest

from sasa_jax.analysis import DetectedImage, classes_figure, detections_figure


@pytest.mark.parametrize("classes", [1, 3, 8])
def test_a_bar_for_each_class(classes):
    image = np.zeros((20, 30, 3), np.uint8)
    names, scores = [f"class {k}" for k in range(classes)], np.linspace(0.9, 0.1, classes)
    figure = classes_figure(image, names, scores, title="photo")
    _, bars = figure.axes
    np.testing.assert_allclose([bar.get_width() for bar in bars.patches], scores)
    written = [text.get_text() for text in bars.texts]
    assert written == [f"{n} {s:.3f}" for n, s in zip(names, scores, strict=True)]
    assert figure.get_suptitle() == "photo"


def test_the_legend_speaks_of_the_truth_only_where_it_is_drawn():
    image, box = np.zeros((20, 20, 3), np.uint8), np.array([[1.0, 2.0, 9.0, 9.0]])
    found = DetectedImage(image, np.zeros((0, 4)), (), box, ("cat",), np.array([0.5]))
    assert detections_figure([found]).get_suptitle() == "found, with scores from 0.3"
    scored = found._replace(true_boxes=box, true_names=("cat",))
    assert "dashed: true, colour: found" in detections_figure([found, scored]).get_suptitle()
