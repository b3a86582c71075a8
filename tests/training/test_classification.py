"""The classification task on a part of the digits: loss, evaluation, configs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import digits, resnet50, sa_resnet50
from configs.common import augmentation, model
from sasa_jax.data import MEAN_RGB, STD_RGB, DatasetError, EvalLoader
from sasa_jax.models import apply, model_options
from sasa_jax.tasks import Classification
from sasa_jax.tasks.classification import transform
from sasa_jax.tasks.image_task import normalise
from sasa_jax.training import data_mesh, make_plan, put_batch
from tests.training.small_digits import small_digits


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    return tmp_path_factory.mktemp("data")


def make_task(data_dir, **overrides):
    config = small_digits(data_dir, **overrides)
    return Classification.open(config)


@pytest.fixture(scope="module")
def task(data_dir):
    return make_task(data_dir)


@pytest.fixture(scope="module")
def variables(task):
    return jax.jit(task.init)(jax.random.key(0))


def score(task, **variables):
    mesh = data_mesh()
    with jax.set_mesh(mesh):
        return task.evaluate(variables, lambda batch: put_batch(batch, mesh))().metrics


def all_images(task):
    examples = [task.eval_transform(e, None) for e in task.data.evaluation]
    images = np.stack([e["image"] for e in examples])
    return images, np.array([e["label"] for e in examples])


def test_normalise_is_per_channel():
    image = np.arange(12, dtype=np.uint8).reshape(1, 2, 2, 3)
    expected = (image.astype(np.float64) - MEAN_RGB) / STD_RGB
    np.testing.assert_allclose(normalise(jnp.asarray(image)), expected, rtol=1e-6)


def test_loss_is_cross_entropy_with_smoothed_labels(task, variables):
    batches = task.train_batches()
    batch = next(batches)
    batches.close()
    assert batch.keys() >= task.batch_shapes().keys()
    assert all(batch[k].dtype == s.dtype for k, s in task.batch_shapes().items())
    loss, (new_stats, scalars) = jax.jit(task.loss)(variables, batch, jax.random.key(0))
    images = normalise(jnp.asarray(batch["image"]))
    forward = jax.jit(lambda v, x: apply(task.graphdef, v, x, train=True))
    logits, stats = forward(variables, images)
    logits = np.asarray(logits, np.float64)
    log_p = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    picked = log_p[np.arange(16), batch["label"]]
    assert float(loss) == pytest.approx(-(0.9 * picked + 0.1 * log_p.mean(axis=1)).mean(), rel=1e-5)
    assert float(scalars["accuracy"]) == (logits.argmax(axis=1) == batch["label"]).mean()
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), new_stats, stats
    )


def test_evaluation_scores_every_image_once(task, variables):
    """150 images in batches of 60 on 4 devices, against all of them at once."""
    images, labels = all_images(task)
    logits = np.asarray(jax.jit(task.predict)(variables, images), np.float64)
    correct = int((logits.argmax(axis=1) == labels).sum())
    top5 = (np.argsort(-logits, axis=1)[:, :5] == labels[:, None]).any(axis=1).mean()
    log_p = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    results = score(task, average=variables, raw=jax.tree.map(jnp.zeros_like, variables))
    average = results["average"]
    assert (average["correct"], average["images"]) == (correct, 150)
    assert average["accuracy"] == correct / 150
    assert average["top5_accuracy"] == pytest.approx(top5)
    assert average["loss"] == pytest.approx(-log_p[np.arange(150), labels].mean(), rel=1e-5)
    # A network of zeros says 0 to everything, and pays the entropy of ten classes.
    assert results["raw"]["correct"] == (labels == 0).sum()
    assert results["raw"]["loss"] == pytest.approx(np.log(10), rel=1e-6)
    assert task.headline(results) == f"test accuracy {correct / 150:.4f} ({correct}/150)"


def test_the_size_of_the_evaluation_batch_changes_nothing(data_dir, task, variables):
    other = make_task(data_dir, eval_batch_size=7)  # made 8 on 4 devices; the last is half full
    assert score(other, average=variables)["average"] == pytest.approx(
        score(task, average=variables)["average"], rel=1e-6
    )


def test_a_lost_image_is_an_error(task, variables, monkeypatch):
    monkeypatch.setattr(EvalLoader, "__len__", lambda self: 2)
    with pytest.raises(RuntimeError, match="scored 120 images of 150"):
        score(task, average=variables)


def test_a_held_out_part_of_the_training_images_is_validation(data_dir):
    task = make_task(data_dir, data__train_split="train[:1200]", data__eval_split="train[1200:]")
    assert (task.train_size, len(task.data.evaluation)) == (1200, 237)
    results = {"average": {"accuracy": 0.98765, "correct": 234, "images": 237}}
    assert task.headline(results) == "validation accuracy 0.9877 (234/237)"


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (dict(model__name="sa_resnet25"), "sa_resnet25.*did you mean 'sa_resnet"),
        (dict(model__bn_group_size=5), "bn_group_size 5 does not divide the 16 images"),
        (dict(data__image_size=34), "multiples of 4, got 34x34"),
        (dict(data__augmentation__kind="shift_rotat"), "did you mean 'shift_rotate'"),
    ],
)
def test_what_the_network_or_the_data_cannot_take_is_refused(data_dir, overrides, message):
    with pytest.raises(ValueError, match=message):
        make_task(data_dir, **overrides)


def test_a_wrong_option_in_a_config_suggests_the_nearest():
    with pytest.raises(AttributeError, match="window"):
        model("sa_resnet26", windwo=5)
    config = digits.get_config().lock()
    with pytest.raises(AttributeError, match="learning_rate"):
        config.learning_rat = 1.0


def test_config_holds_every_option_of_the_model_and_leaves_it_to_the_model():
    config = model("sa_resnet38")
    assert set(config) == {"name", *model_options("sa_resnet38")}
    assert all(config[key] is None for key in config if key != "name")


def test_options_of_another_augmentation_have_no_effect(data_dir):
    config = small_digits(data_dir, data__augmentation__kind="none")
    assert config["data"]["augmentation"]["rotation"] == 12.0
    assert type(transform(config, train=True)).__name__ == "Plain"
    assert augmentation("crop_flip").area is None


def test_the_paper_s_settings():
    config = sa_resnet50.get_config()
    plan = make_plan(config, 1_281_167)
    assert (plan.total_steps, plan.warmup_steps, plan.learning_rate) == (40_662, 3128, 1.6)
    assert config.average_decay == 0.9999 and config.batch_size == 4096
    baseline = resnet50.get_config()
    baseline.model.name = config.model.name
    assert baseline.to_dict() == config.to_dict()


def test_absent_data_is_refused_but_not_by_a_dry_run(tmp_path):
    config = sa_resnet50.get_config().to_dict()
    config["data"]["dir"] = str(tmp_path)
    with pytest.raises(DatasetError, match=r"data.prepare imagenet2012 --data_dir"):
        Classification.open(config)
    data = Classification.open(config, allow_absent=True).data
    assert (len(data.train), len(data.evaluation), data.train.num_classes) == (
        1_281_167,
        50_000,
        1000,
    )
    assert "imagenet2012 is not prepared" in data.missing
    config["data"]["name"] = "imagenet2021"
    with pytest.raises(DatasetError, match="imagenet2012"):
        Classification.open(config, allow_absent=True)
