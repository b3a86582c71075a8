"""Runs on data with broken records, from end to end."""

import json

import jax
import numpy as np
import pytest

import main
from sasa_jax.tasks import Detection
from sasa_jax.training import data_mesh, put_batch
from tests.data.broken import BROKEN, SIZE, jpeg, write_coco_folder, write_pictures
from tests.training.small_digits import small_digits
from tests.training.small_scenes import small_scenes


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    write_pictures(folder)
    return small_digits(
        folder,
        data__name="pictures",
        data__eval_split="test",
    )


def last_record(workdir) -> dict:
    return json.loads((workdir / "metrics.jsonl").read_text().splitlines()[-1])


def told(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.startswith("corrupt, left out: ")]


def test_classification_names_counts_and_leaves_out(pictures, tmp_path, capsys):
    main.run(pictures, tmp_path, "train")
    captured = capsys.readouterr()
    # Each of the training and of the test split, once, although it was met many times.
    assert len(told(captured.err)) == 2 * len(BROKEN)
    record = last_record(tmp_path)
    assert record["average/images"] == record["raw/images"] == SIZE - len(BROKEN)
    assert record["average/unreadable"] == record["raw/unreadable"] == len(BROKEN)
    headline = captured.out.splitlines()[-1]
    assert headline.endswith(f"/{SIZE - len(BROKEN)}, {len(BROKEN)} unreadable)")
    main.run(pictures, tmp_path, "eval")
    captured = capsys.readouterr()
    assert captured.out.splitlines()[-1] == headline
    assert len(told(captured.err)) == len(BROKEN)


def test_too_many_end_the_run_and_a_larger_share_goes_on(pictures, tmp_path, capsys):
    strict = {**pictures, "data": {**pictures["data"], "max_corrupt_share": 0.0}}
    with pytest.raises(SystemExit) as leave:
        main.run(strict, tmp_path, "train")
    assert leave.value.code == 2
    (error,) = capsys.readouterr().err.splitlines()
    assert error.startswith("error: corrupt examples of pictures:1.0.0 train: 1 of 32, more than")
    main.run({**pictures, "eval_every": 0}, tmp_path, "train")
    assert last_record(tmp_path)["average/unreadable"] == len(BROKEN)

    refused = {**pictures, "data": {**pictures["data"], "max_corrupt_share": 2.0}}
    with pytest.raises(SystemExit) as leave:
        main.run(refused, tmp_path / "never", "train")
    assert leave.value.code == 2
    assert "error: max_corrupt_share is 2.0; expected 0 to 1" in capsys.readouterr().err
    assert not (tmp_path / "never").exists()


def test_detection_leaves_them_out_of_coco_s_metrics(tmp_path, capsys):
    images = {0: b"no image", 5: jpeg(5)[:-20], 9: b""}
    write_coco_folder(tmp_path, images)
    config = small_scenes(tmp_path, data__name="coco_folder", data__eval_split="validation")
    task, mesh = Detection.open(config), data_mesh()
    batches = task.train_batches()
    seen = np.concatenate([next(batches)["index"] for _ in range(2 * SIZE // 8)])
    batches.close()
    assert set(seen.tolist()) == set(range(SIZE)) - set(images)

    variables = jax.jit(task.init)(jax.random.key(0))
    with jax.set_mesh(mesh):
        result = task.evaluate({"average": variables}, lambda batch: put_batch(batch, mesh))()
    assert len(told(capsys.readouterr().err)) == 2 * len(images)
    metrics = result.metrics["average"]
    assert (metrics["images"], metrics["unreadable"]) == (SIZE - 3, 3)
    kept = {100 + i for i in range(SIZE) if i not in images}
    truth, found = (result.files[f"{name}.json"] for name in ("annotations", "detections"))
    assert {image["id"] for image in truth["images"]} == kept
    assert {entry["image_id"] for entry in truth["annotations"]} == kept
    assert {entry["image_id"] for entry in found} == kept
    assert task.headline(result.metrics).endswith(f"({SIZE - 3} images, 3 unreadable)")
