"""What can be loaded, and what is said of what cannot."""

import functools
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest

import sasa_jax
from sasa_jax.data import Category
from sasa_jax.prediction import LoadError, make_predictor
from sasa_jax.tasks import task_without_data
from sasa_jax.tasks.category_logits import CategoryLogits
from sasa_jax.training import Checkpoints


def test_a_run_gives_its_network_names_and_config(digits_run, digits_model):
    assert digits_model.task_name == "classification"
    assert digits_model.class_names == tuple("0123456789")
    assert digits_model.image_size == 32 and digits_model.step == 2
    assert digits_model.config["model"]["name"] == digits_run.config["model"]["name"]
    images = np.zeros((2, 32, 32, 3), np.float32)
    explain = functools.partial(sasa_jax.models.apply, train=False, return_attention=True)
    explain = functools.partial(explain, digits_model.graphdef)
    (logits, weights), _ = jax.eval_shape(explain, digits_model.variables, images)
    assert logits.shape == (2, 10) and "stem" in weights


def test_average_and_raw_are_different_networks(digits_run, digits_model):
    raw = sasa_jax.load(digits_run.workdir, variables="raw")
    (a, b) = (jax.tree.leaves(m.variables["params"])[0] for m in (digits_model, raw))
    assert a.shape == b.shape and not np.array_equal(a, b)
    with pytest.raises(ValueError, match="did you mean 'average'"):
        sasa_jax.load(digits_run.workdir, variables="averages")


def test_a_wrong_folder_is_told_from_the_right_one(digits_run, tmp_path):
    shutil.copytree(digits_run.workdir / "checkpoints", tmp_path / "digits" / "checkpoints")
    (tmp_path / "notes.txt").touch()
    for path, message in (
        (tmp_path / "digit", "there is no folder .*digit \\(did you mean 'digits'\\?\\)"),
        (tmp_path / "notes.txt", "notes.txt is a file: give the run's folder"),
        (tmp_path, "holds no checkpoint; there are checkpoints in its digits: give"),
        (tmp_path / "digits" / "checkpoints", "inside a run's folder: give .*/digits$"),
        (tmp_path / "digits" / "checkpoints" / "2", "inside a run's folder: give .*/digits$"),
    ):
        with pytest.raises(LoadError, match=message):
            sasa_jax.load(path)
    assert sasa_jax.load(str(tmp_path / "digits")).step == 2


def damage(workdir, step):
    files = [f for f in (workdir / "checkpoints" / str(step)).rglob("*") if f.is_file()]
    for file in files:
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def test_of_damaged_checkpoints_the_newest_whole_one_is_loaded(digits_run, tmp_path):
    workdir = tmp_path / "digits"
    shutil.copytree(digits_run.workdir, workdir)
    damage(workdir, 2)
    with pytest.warns(UserWarning, match="step 2 is damaged: .*; step 1 is loaded"):
        assert sasa_jax.load(workdir).step == 1
    damage(workdir, 1)
    with pytest.raises(LoadError, match=r"all checkpoints in .* are damaged; .*another --workdir"):
        sasa_jax.load(workdir)
    assert (workdir / "checkpoints" / "2").is_dir()  # loading moves nothing


def test_what_is_wrong_with_an_export_is_a_load_error(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(LoadError, match=r"config\.json"):
        sasa_jax.load(tmp_path)
    with pytest.raises(LoadError, match="is an export, which holds the averages only"):
        sasa_jax.load(tmp_path, variables="raw")


def stored(run):
    with Checkpoints(run.workdir, read_only=True) as checkpoints:
        step = checkpoints.latest_step()
        return checkpoints.config(step), checkpoints.arrays(step)["averages"]


@pytest.mark.parametrize("run", ["digits_run", "scenes_run"])
def test_a_run_without_names_has_numbers(request, run):
    config, arrays = stored(request.getfixturevalue(run))
    assert config.pop("class_names") == list("0123456789")
    model = make_predictor(config, arrays, step=2, source="here")
    assert model.class_names == tuple("0123456789")


def test_a_config_or_arrays_of_another_version_are_refused(digits_run):
    config, arrays = stored(digits_run)
    without = {key: value for key, value in config.items() if key != "data"}
    other = {**config, "model": {**config["model"], "hat": 1}}
    wide = {**config, "model": {**config["model"], "width": 0.5}}
    odd = {**config, "task": "segmentation"}
    with pytest.raises(LoadError, match=r"bn1/mean is absent there and \[16\] in"):
        make_predictor(config, {"params": {}}, step=1, source="here")
    for wrong, message in (
        (without, "the config in here is not one .*: it lacks 'data'"),
        (other, "has no option 'hat'"),
        (odd, "task must be one of"),
        (wide, r"arrays in here are not those .*: batch_stats/.* is \[.*\] there and \[.*\] in"),
    ):
        with pytest.raises(LoadError, match=message):
            make_predictor(wrong, arrays, step=1, source="here")


def test_the_form_of_the_operator_is_this_machine_s(digits_run):
    config, arrays = stored(digits_run)
    tpu = {**config, "model": {**config["model"], "implementation": "tpu_matrix"}}
    assert make_predictor(tpu, arrays, step=1, source="here").config is tpu


def test_a_logit_that_no_category_uses_has_no_name(scenes_run):
    categories = (Category(2, "dog"), Category(5, "cat"))
    assert CategoryLogits(categories, 0).names == ("dog", "cat")
    names = CategoryLogits(categories, 6).names
    assert names == ("", "dog", "", "", "cat", "")
    config = {**scenes_run.config, "category_ids": 6}
    assert task_without_data(config, names).class_names == names


def run_python(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)


def test_the_import_is_light_and_loading_needs_no_tensorflow(digits_run):
    heavy = ("matplotlib", "tensorflow_datasets", "orbax", "grain", "cv2")
    done = run_python(
        f"import sys, sasa_jax\n"
        f"assert not set({heavy!r}) & set(sys.modules), set({heavy!r}) & set(sys.modules)\n"
        f"sasa_jax.load({str(digits_run.workdir)!r})\n"
        f"assert 'tensorflow' not in sys.modules"
    )
    assert done.returncode == 0, done.stderr
