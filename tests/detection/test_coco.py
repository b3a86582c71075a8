"""The twelve numbers: against pycocotools called plainly, both backends, and the odd files."""

import contextlib
import copy
import io
import json
import sys

import jax.numpy as jnp
import numpy as np
import pytest

from sasa_jax.detection import Detections, coco

CATEGORIES = (1, 3, 7, 90)
BACKENDS = ("pycocotools", "faster")


def make_truth(seed: int, images: int = 20) -> dict:
    """Small, medium and large boxes, crowds, areas that are not the box's, images without boxes."""
    rng = np.random.default_rng(seed)
    annotations = []
    for image in range(images):
        for _ in range(rng.integers(0, 8)):
            width, height = np.exp(rng.normal(3.8, 0.9, 2)).tolist()
            left, top = rng.uniform(0, 200, 2).tolist()
            annotations.append(
                {
                    "id": 1000 + len(annotations),
                    "image_id": 10 * image,
                    "category_id": int(rng.choice(CATEGORIES)),
                    "bbox": [left, top, width, height],
                    "area": 0.7 * width * height,
                    "iscrowd": int(rng.random() < 0.15),
                }
            )
    return {
        "images": [{"id": 10 * i, "height": 400, "width": 500} for i in range(images)],
        "categories": [{"id": i, "name": f"class {i}"} for i in CATEGORIES],
        "annotations": annotations,
    }


def make_results(truth: dict, seed: int) -> list[dict]:
    """Shifted and repeated boxes, some in the wrong category, some with equal scores."""
    rng = np.random.default_rng(seed)
    results = []
    for entry in truth["annotations"]:
        for _ in range(rng.integers(0, 4)):
            box = np.array(entry["bbox"]) * np.exp(rng.normal(0, 0.1, 4))
            wrong = rng.random() < 0.2
            results.append(
                {
                    "image_id": entry["image_id"],
                    "category_id": int(rng.choice(CATEGORIES)) if wrong else entry["category_id"],
                    "bbox": box.tolist(),
                    "score": round(float(rng.random()), 1),
                }
            )
    return results


def call_pycocotools(truth: dict, results: list[dict]) -> np.ndarray:
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    with contextlib.redirect_stdout(io.StringIO()) as printed:
        tables = COCO()
        tables.dataset = copy.deepcopy(truth)
        tables.createIndex()
        evaluation = COCOeval(tables, tables.loadRes(copy.deepcopy(results)), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    assert "Average Precision" in printed.getvalue()  # silence is ours alone
    return evaluation.stats


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> str:
    if request.param == "faster":
        pytest.importorskip("faster_coco_eval", reason="faster-coco-eval is not installed")
    return request.param


@pytest.mark.parametrize("seed", range(4))
def test_the_twelve_numbers_are_those_of_pycocotools(seed, backend, capfd):
    truth = make_truth(seed)
    results = make_results(truth, seed + 100)
    before = copy.deepcopy((truth, results))
    found = coco.evaluate(truth, results, backend=backend)
    assert tuple(found) == coco.METRICS
    assert all(type(value) is float for value in found.values())
    np.testing.assert_allclose(
        list(found.values()), call_pycocotools(truth, results), rtol=0, atol=1e-12
    )
    assert 0.05 < found["AP"] < found["AP50"] < 0.95
    assert (truth, results) == before
    assert capfd.readouterr() == ("", "")


def test_the_truth_as_detections_scores_one(backend):
    """A crowd takes any number of boxes and is nothing that has to be found."""
    truth = make_truth(0)
    assert any(entry["iscrowd"] for entry in truth["annotations"])
    results = [
        {**{key: entry[key] for key in ("image_id", "category_id", "bbox")}, "score": 1.0}
        for entry in truth["annotations"]
    ]
    found = coco.evaluate(truth, results, backend=backend)
    assert [found[key] for key in ("AP", "AP50", "AP75", "APs", "APm", "APl")] == [1.0] * 6
    assert found["AR100"] == 1.0


def test_no_detections_score_zero_and_no_boxes_minus_one(backend):
    truth = make_truth(1)
    assert coco.evaluate(truth, [], backend=backend)["AP"] == 0.0
    empty = {**truth, "annotations": []}
    assert coco.evaluate(empty, [], backend=backend) == dict.fromkeys(coco.METRICS, -1.0)
    results = make_results(truth, 1)
    assert coco.evaluate(empty, results, backend=backend) == dict.fromkeys(coco.METRICS, -1.0)


def test_part_of_the_images(backend):
    truth = make_truth(2)
    results = make_results(truth, 2)
    ids = [entry["id"] for entry in truth["images"]][::2]
    part = {
        **truth,
        "images": [entry for entry in truth["images"] if entry["id"] in ids],
        "annotations": [entry for entry in truth["annotations"] if entry["image_id"] in ids],
    }
    expected = coco.evaluate(part, [r for r in results if r["image_id"] in ids], backend=backend)
    assert coco.evaluate(truth, results, backend=backend, image_ids=reversed(ids)) == expected
    assert coco.evaluate(truth, results, backend=backend) != expected
    with pytest.raises(ValueError, match=r"image_ids must be among the 20 images.*; 5 is not"):
        coco.evaluate(truth, results, backend=backend, image_ids=[10, 5])


def test_annotation_ids_may_be_zero_repeated_or_absent(backend):
    """pycocotools takes the id 0 for "no match", and leaves out repeated ones."""
    truth = make_truth(3)
    results = make_results(truth, 3)
    expected = coco.evaluate(truth, results, backend=backend)
    for ids in (range(len(truth["annotations"])), [0] * len(truth["annotations"])):
        annotations = [
            {**entry, "id": i} for entry, i in zip(truth["annotations"], ids, strict=True)
        ]
        renamed = {**truth, "annotations": annotations}
        assert coco.evaluate(renamed, results, backend=backend) == expected
    for entry in annotations:
        del entry["id"]
    assert coco.evaluate(renamed, results, backend=backend) == expected


def test_a_missing_iscrowd_is_no_crowd(backend):
    truth = make_truth(4)
    results = make_results(truth, 4)
    plain = {**truth, "annotations": [{**e, "iscrowd": 0} for e in truth["annotations"]]}
    bare = copy.deepcopy(plain)
    for entry in bare["annotations"]:
        del entry["iscrowd"]
    expected = coco.evaluate(plain, results, backend=backend)
    assert coco.evaluate(bare, results, backend=backend) == expected


GOOD = {"image_id": 10, "category_id": 3, "bbox": [1.0, 2.0, 3.0, 4.0], "score": 0.5, "area": 12.0}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image_id": 11}, r"has the image_id 11, which is none of the 20 of the annotation file"),
        ({"category_id": 2}, r"has the category_id 2, which is none of the 4 of the annotation"),
        ({"bbox": [1, 2, 3]}, r"has the bbox \[1, 2, 3\]; it must be four numbers: left, top"),
        ({"bbox": [1, 2, float("nan"), 4]}, "it must be four numbers"),
        ({"bbox": "here"}, "has the bbox 'here'; it must be four numbers"),
        ({"bbox": None}, "has the bbox None; it must be four numbers"),
        ({"score": float("nan"), "area": float("nan")}, "nan; it must be a finite"),
        ({"score": None, "area": None}, "None; it must be a finite"),
        ({"image_id": [10]}, r"has the image_id \[10\], which is none of the 20"),
    ],
)
def test_a_bad_entry_is_named(change, message):
    truth = make_truth(5)
    with pytest.raises(ValueError, match=r"detection 1 \(counted from 0\).* " + message) as caught:
        coco.evaluate(truth, [GOOD, {**GOOD, **change}])
    assert "\n" not in str(caught.value)
    truth["annotations"] = [GOOD, {**GOOD, **change}]
    with pytest.raises(ValueError, match=r"annotation 1 \(counted from 0\)"):
        coco.evaluate(truth, [])


@pytest.mark.parametrize("key", ["image_id", "category_id", "bbox", "score"])
def test_a_missing_key_is_named(key):
    entry = {name: value for name, value in GOOD.items() if name != key}
    with pytest.raises(ValueError, match=rf"detection 0 .* has no '{key}'; it has .*area"):
        coco.evaluate(make_truth(6), [entry])


def test_other_refusals(monkeypatch):
    truth = make_truth(7)
    with pytest.raises(ValueError, match="did you mean 'pycocotools'"):
        coco.evaluate(truth, [], backend="cocotools")
    with pytest.raises(ValueError, match=r"number 0 of the categories .* has no 'id'"):
        coco.evaluate({**truth, "categories": [{"name": "x"}]}, [])
    monkeypatch.setitem(sys.modules, "faster_coco_eval", None)
    with pytest.raises(ImportError, match=r"pip install 'sasa_jax\[coco\]'"):
        coco.evaluate(truth, [], backend="faster")


def test_detections_to_results_and_through_a_file(tmp_path):
    detections = Detections(
        boxes=jnp.asarray(
            [[[1, 2, 5, 10], [0, 0, 8, 6]], [[4, 4, 8, 8], [0, 0, 0, 0]], [[0] * 4] * 2],
            jnp.float32,
        ),
        scores=jnp.asarray([[0.75, 0.5], [0.25, 0], [0, 0]], jnp.float32),
        classes=jnp.asarray([[1, 0], [2, -1], [-1, -1]], jnp.int32),
        anchors=jnp.asarray([[5, 3], [0, -1], [-1, -1]], jnp.int32),
        count=jnp.asarray([2, 1, 0], jnp.int32),
    )
    results = coco.to_results(detections, np.array([30, 10, 20]), np.float32([1, 2, 1]), (1, 3, 90))
    assert results == [
        {"image_id": 30, "category_id": 3, "bbox": [2.0, 1.0, 8.0, 4.0], "score": 0.75},
        {"image_id": 30, "category_id": 1, "bbox": [0.0, 0.0, 6.0, 8.0], "score": 0.5},
        {"image_id": 10, "category_id": 90, "bbox": [2.0, 2.0, 2.0, 2.0], "score": 0.25},
    ]
    path = tmp_path / "new" / "results.json"
    coco.write_results(path, results)
    assert coco.read_results(path) == results == json.loads(path.read_text())
    assert [file.name for file in path.parent.iterdir()] == ["results.json"]
