"""The detection task on a few scenes of digits: evaluation, classes, backbone, from end to end."""

import copy
import dataclasses
import json
import re
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import main
import sasa_jax
from configs import retinanet
from sasa_jax import training
from sasa_jax.data import Category, DatasetError, TrainLoader
from sasa_jax.detection import evaluate
from sasa_jax.detection.boxes import encode, iou
from sasa_jax.tasks import Detection, coco_scores
from sasa_jax.tasks.category_logits import CategoryLogits
from sasa_jax.tasks.coco_scores import Found
from sasa_jax.training import data_mesh, make_plan, put_batch
from tests.training.small_digits import small_digits
from tests.training.small_scenes import BACKBONE, small_scenes


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    return tmp_path_factory.mktemp("data")


@pytest.fixture(scope="module")
def whole(data_dir, tmp_path_factory):
    """An uninterrupted run."""
    workdir = tmp_path_factory.mktemp("whole")
    main.run(small_scenes(data_dir), workdir, "train")
    return workdir


@pytest.fixture(scope="module")
def task(data_dir):
    return Detection.open(small_scenes(data_dir))


def score(task, variables):
    mesh = data_mesh()
    with jax.set_mesh(mesh):
        return task.evaluate({"average": variables}, lambda batch: put_batch(batch, mesh))()


def records(workdir, kind):
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    return [record for record in map(json.loads, lines) if record["kind"] == kind]


def test_a_run_learns_and_leaves_numbers_files_and_pictures(whole):
    losses = [record["loss"] for record in records(whole, "train")]
    assert len(losses) == 4 and losses[-1] < losses[0]
    scored = records(whole, "eval")
    assert [record["step"] for record in scored] == [4, 8]
    for name in ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100"):
        assert f"average/{name}" in scored[0] and f"raw/{name}" in scored[0]
    assert scored[0]["average/images"] == 30
    for picture in ("detections.png", "attention.png"):
        assert (whole / picture).read_bytes().startswith(b"\x89PNG")


def test_a_run_is_loaded_without_its_data(whole):
    model = sasa_jax.load(whole)
    assert model.step == 8 and model.class_names == tuple("0123456789")


def test_the_files_scored_by_the_command_give_the_logged_numbers(whole, capsys):
    files = {name: str(whole / f"{name}.json") for name in ("annotations", "detections")}
    arguments = [f"--{name}={path}" for name, path in files.items()]
    assert evaluate.main(arguments) == 0
    printed = capsys.readouterr().out
    logged = records(whole, "eval")[-1]
    for name in ("AP", "AR100"):
        (line,) = re.findall(rf"^{name}\b.*$", printed, re.MULTILINE)
        assert float(line.split()[-1]) == pytest.approx(logged[f"average/{name}"], abs=1e-3)


def test_eval_ends_with_the_last_line_of_training(data_dir, whole, capsys):
    main.run(small_scenes(data_dir), whole, "eval")
    scored = capsys.readouterr().out
    main.run(small_scenes(data_dir), whole, "train")
    last = capsys.readouterr().out.splitlines()[-1]
    assert scored.splitlines()[-1] == last
    assert re.fullmatch(r"COCO AP -?[01]\.\d{3} AP50 -?[01]\.\d{3} \(30 images\)", last)
    assert re.search(r"anchors +[\d,]+ an image, 6 a place", scored)
    assert re.search(r"fpn ", scored) and re.search(r"total +[\d,]+ ", scored)


def test_stopped_and_taken_up_it_ends_in_the_same_bits(data_dir, whole, tmp_path, monkeypatch):
    fetch, fetched = TrainLoader.__next__, []

    def interrupt_at_3(self):
        fetched.append(1)
        if len(fetched) == 3:
            signal.raise_signal(signal.SIGINT)
        return fetch(self)

    with monkeypatch.context() as patch:
        patch.setattr(TrainLoader, "__next__", interrupt_at_3)
        with pytest.raises(SystemExit) as leave:
            main.run(small_scenes(data_dir), tmp_path, "train")
    assert leave.value.code == 130
    main.run(small_scenes(data_dir), tmp_path, "train")
    assert training.saved_digest(tmp_path) == training.saved_digest(whole)


def test_true_boxes_as_predictions_are_perfect(data_dir, monkeypatch):
    """From the network's outputs on: codes, decoding, suppression, scale, ids, metric."""
    # All 30 scenes in one batch, so that the predictions can be given beforehand.
    task = Detection.open(small_scenes(data_dir, eval_batch_size=32))
    anchors = jnp.asarray(task._anchor_boxes)
    logits = np.full((32, len(anchors), task._logits.number), -20.0, np.float32)
    codes = np.zeros((32, len(anchors), 4), np.float32)
    for row, original in enumerate(task.data.evaluation):
        boxes = jnp.asarray(original["boxes"])  # scenes are stored at the network's size
        overlaps = np.array(iou(boxes, anchors))
        for box, label, overlap in zip(boxes, original["classes"], overlaps, strict=True):
            place = overlap.argmax()
            overlaps[:, place] = -1  # one box an anchor
            logits[row, place, label] = 20.0
            codes[row, place] = encode(box, anchors[place])
    monkeypatch.setattr(task, "predict", lambda variables, images: variables)
    metrics = score(task, (logits, codes)).metrics["average"]
    assert metrics["AP"] == pytest.approx(1.0, abs=1e-6)
    assert metrics["images"] == 30


def test_the_size_of_the_evaluation_batch_changes_nothing(data_dir, task, whole):
    with training.Checkpoints(whole, read_only=True) as checkpoints:
        variables = checkpoints.arrays(8)["averages"]
    one = score(task, variables).files["detections.json"]
    other = score(Detection.open(small_scenes(data_dir, eval_batch_size=7)), variables)
    assert len(one) == 30 * 20

    def best(results):
        scores = {}
        for result in results:
            key = result["image_id"]
            scores[key] = max(scores.get(key, 0), result["score"])
        return scores

    assert best(one) == pytest.approx(best(other.files["detections.json"]), rel=1e-4)


def test_a_logit_for_every_category_id():
    categories = [Category(2, "b"), Category(5, "e"), Category(9, "i")]
    with_gaps = CategoryLogits(categories, 9)
    assert with_gaps.number == 9
    np.testing.assert_array_equal(with_gaps.of_class, [1, 4, 8])
    np.testing.assert_array_equal(with_gaps.classes, [-1, 0, -1, -1, 1, -1, -1, -1, 2])
    np.testing.assert_array_equal(with_gaps.ids, [-1, 2, -1, -1, 5, -1, -1, -1, 9])
    without = CategoryLogits(categories, 0)
    assert without.number == 3
    np.testing.assert_array_equal(without.of_class, [0, 1, 2])
    np.testing.assert_array_equal(without.ids, [2, 5, 9])


def test_the_losses_and_results_use_those_logits(data_dir, task):
    """A network with two logits that nothing uses: what they find is in no result."""
    gaps = Detection.open(small_scenes(data_dir, category_ids=12))
    assert (task._logits.number, gaps._logits.number) == (10, 12)
    variables = jax.jit(gaps.init)(jax.random.key(0))
    results = score(gaps, variables).files["detections.json"]
    assert {result["category_id"] for result in results} <= set(range(1, 11))
    assert 0 < len(results) <= 30 * 20


@pytest.fixture(scope="module")
def classified(data_dir, tmp_path_factory):
    """A classification run of the same backbone."""
    workdir = tmp_path_factory.mktemp("classified")
    model = {key.replace(".", "__"): value for key, value in BACKBONE.items()}
    config = small_digits(
        data_dir,
        **model,
        model__name="sa_resnet26_conv_stem",
        model__num_heads=2,
        model__window=3,
        total_steps=2,
    )
    main.run(config, workdir, "train")
    return workdir


def test_the_backbone_of_a_classification_run_is_where_training_begins(data_dir, classified):
    config = small_scenes(data_dir, backbone_from=str(classified))
    task = Detection.open(config)
    mesh = data_mesh()
    with jax.set_mesh(mesh):
        program = training.make_program(task, config, make_plan(config, task.train_size), mesh)
        state = program.init(task.pretrained())
    with training.Checkpoints(classified, read_only=True) as checkpoints:
        averages = checkpoints.arrays(2)["averages"]
    for kind in ("params", "batch_stats"):
        expected = {k: v for k, v in averages[kind].items() if k != "classifier"}
        for variables in (state.raw, state.averages):
            jax.tree.map(np.testing.assert_array_equal, variables[kind]["backbone"], expected)
    assert "classifier" not in state.params["backbone"]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (dict(model__window=5), "window is 3 there and 5 here"),
        (dict(model__width=0.25), "width is 0.125 there and 0.25 here"),
        (dict(model__stem="attention"), "stem is 'conv' there and 'attention' here"),
    ],
)
def test_a_backbone_of_another_network_is_refused(data_dir, classified, overrides, message):
    with pytest.raises(ValueError, match=message):
        Detection.open(small_scenes(data_dir, backbone_from=str(classified), **overrides))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (dict(backbone_from="/nowhere"), "backbone_from /nowhere: there is no such file or folder"),
        (dict(category_ids=9), "category_ids is 9, and the data has category 10"),
        (dict(metric="pycoco"), "did you mean 'pycocotools'"),
        (dict(data__image_size=90), "multiples of"),
        (dict(detector__heads="atention"), "did you mean 'attention'"),
        (dict(task="detecton"), "did you mean 'detection'"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_compiled(
    data_dir, tmp_path, overrides, message, capsys
):
    with pytest.raises(SystemExit) as leave:
        main.run(small_scenes(data_dir, **overrides), tmp_path / "run", "train")
    assert leave.value.code == 2
    assert re.search(message, capsys.readouterr().err)


def test_other_categories_in_the_evaluation_split_are_refused(task):
    evaluation = copy.copy(task.data.evaluation)
    evaluation.categories = (*evaluation.categories[:-1], Category(10, "ten"))
    data = dataclasses.replace(task.data, evaluation=evaluation)
    with pytest.raises(DatasetError, match=r"differ: 1 0, 2 1, .* and 5 more and 1 0"):
        Detection(task._config, data)


def test_an_image_seen_twice_is_an_error():
    batch = Found({}, np.array([0, 1, 1]), np.ones(3), np.ones(3, bool))
    with pytest.raises(RuntimeError, match="scored 3 images, 2 different ones, of 3"):
        coco_scores.score(
            [batch], {"images": [{"id": n} for n in range(3)]}, np.arange(1), backend="pycocotools"
        )


def test_the_paper_s_settings():
    config = retinanet.get_config()
    plan = make_plan(config, 118_287)
    assert (plan.learning_rate, plan.warmup_steps) == (0.12, 1848)
    assert round(plan.epochs) == 150


@pytest.mark.slow
def test_dry_run_without_the_data(tmp_path, capsys):
    config = retinanet.get_config().lock()
    # The paper's network is described in full; only the step is compiled small.
    config.update_from_flattened_dict(
        {
            "data.dir": str(tmp_path),
            "data.image_size": 64,
            "batch_size": 4,
            "model.blocks": (1, 1, 1, 1),
            "model.width": 0.125,
            "model.num_heads": 2,
            "model.window": 3,
            "detector.features": 16,
            "detector.fpn": "conv",
            "detector.heads": "conv",
            "detector.tower_depth": 1,
        }
    )
    main.run(config.to_dict(), tmp_path / "run", "dry_run")
    out = capsys.readouterr().out
    assert "coco/2017 is not prepared" in out and "118,287 images, 80 classes" in out
    assert "dry run: no step was taken" in out
    assert not (tmp_path / "run").exists()
