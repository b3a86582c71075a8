"""`python -m sasa_jax.detection.evaluate`."""

import json
import re

import pytest

from sasa_jax.detection import coco
from sasa_jax.detection.evaluate import main
from tests.detection.test_coco import make_results, make_truth


@pytest.fixture
def files(tmp_path):
    truth = make_truth(0)
    paths = {"annotations": tmp_path / "instances.json", "detections": tmp_path / "found.json"}
    paths["annotations"].write_text(json.dumps(truth))
    coco.write_results(paths["detections"], make_results(truth, 0))
    return paths


def call(files, *more) -> int:
    arguments = [part for name, path in files.items() for part in (f"--{name}", str(path))]
    return main([*arguments, *more])


@pytest.mark.parametrize("backend", ["pycocotools", "faster"])
def test_the_twelve_numbers_are_printed(files, backend, capsys):
    if backend == "faster":
        pytest.importorskip("faster_coco_eval", reason="faster-coco-eval is not installed")
    assert call(files, "--backend", backend) == 0
    first, *lines = capsys.readouterr().out.splitlines()
    expected = coco.evaluate(make_truth(0), coco.read_results(files["detections"]))
    assert re.fullmatch(r"20 images, \d+ detections", first)
    assert [line.split() for line in lines] == [
        [name, f"{value:.4f}"] for name, value in expected.items()
    ]


@pytest.mark.parametrize(
    ("which", "text", "message"),
    [
        ("annotations", None, "No such file"),
        ("detections", None, "No such file"),
        ("annotations", "", "instances.json is not JSON"),
        ("detections", "[{]", "found.json is not JSON"),
        ("detections", b"\xff\xfe", "found.json is not JSON"),
        ("annotations", "[]", "instances.json must hold an object with the lists images, "),
        ("annotations", '{"images": []}', "instances.json must have the list 'annotations'"),
        ("detections", '{"images": []}', "found.json must hold a list of detections"),
        ("detections", "[7]", "detection 0 (counted from 0) must be an object"),
        ("detections", '[{"image_id": 0}]', "has no 'category_id'"),
        (
            "detections",
            '[{"image_id": 1, "category_id": 1, "bbox": [0, 0, 1, 1], "score": 1}]',
            "has the image_id 1, which is none of the 20",
        ),
        (
            "detections",
            '[{"image_id": 0, "category_id": 2, "bbox": [0, 0, 1, 1], "score": 1}]',
            "has the category_id 2, which is none of the 4",
        ),
    ],
)
def test_a_bad_file_is_refused_in_one_line(files, which, text, message, capsys):
    if text is None:
        files[which].unlink()
    elif isinstance(text, bytes):
        files[which].write_bytes(text)
    else:
        files[which].write_text(text)
    assert call(files) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: ") and message in err and err.count("\n") == 1


def test_an_absent_argument_is_refused(capsys):
    with pytest.raises(SystemExit) as caught:
        main(["--annotations", "x.json"])
    assert caught.value.code == 2
    assert "--detections" in capsys.readouterr().err
