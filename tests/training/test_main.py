"""main.py from end to end on a shrunk configs/digits.py."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

import main
import sasa_jax
from configs import sa_resnet50
from sasa_jax import training
from sasa_jax.data import TrainLoader
from sasa_jax.tasks import open_task
from tests.training.small_digits import small_digits

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    return tmp_path_factory.mktemp("data")


@pytest.fixture(scope="module")
def whole(data_dir, tmp_path_factory):
    """An uninterrupted run."""
    workdir = tmp_path_factory.mktemp("whole")
    main.run(small_digits(data_dir), workdir, "train")
    return workdir


def refusal(capsys, config, workdir, mode="train"):
    with pytest.raises(SystemExit) as leave:
        main.run(config, workdir, mode)
    assert leave.value.code == 2
    return capsys.readouterr().err


def test_training_learns_and_draws_attention(whole):
    records = [json.loads(line) for line in (whole / "metrics.jsonl").read_text().splitlines()]
    losses = [r["loss"] for r in records if r["kind"] == "train"]
    assert len(losses) == 6 and losses[-1] < losses[0] - 0.1
    evaluations = [r for r in records if r["kind"] == "eval"]
    assert [r["step"] for r in evaluations] == [12, 24]
    assert all(r["average/images"] == r["raw/images"] == 150 for r in evaluations)
    assert (whole / "attention.png").read_bytes().startswith(b"\x89PNG")


def test_a_run_is_loaded_without_its_data(whole):
    model = sasa_jax.load(whole)
    assert model.step == 24 and model.class_names == tuple("0123456789")


def test_eval_repeats_the_last_line_of_training(data_dir, whole, capsys):
    config = small_digits(data_dir)
    main.run(config, whole, "eval")
    scored = capsys.readouterr().out.splitlines()
    main.run(config, whole, "train")  # finished: nothing to train, scored again
    trained = capsys.readouterr().out.splitlines()
    assert scored[-1] == trained[-1]
    match = re.fullmatch(r"test accuracy (0\.\d{4}) \((\d+)/150\)", scored[-1])
    assert float(match[1]) == pytest.approx(int(match[2]) / 150, abs=5e-5)


def test_the_first_screen_says_what_will_be_trained(data_dir, whole, capsys):
    main.run(small_digits(data_dir), whole, "eval")
    screen = capsys.readouterr().out
    for part in (
        r"devices +4 x cpu \(cpu\), 1 process; mesh: data=4",
        r"train data +digits:1\.0\.0 train: 1,437 images, 10 classes",
        r"eval data .*150 images",
        r"steps +24 \(0\.3 epochs\), warm-up 1\n",
        r"batch +16, 4 a device",
        r"learning rate +0\.3 at its peak",
        r"precision +float32 computation",
        r"workdir +.*, holds step 24",
        r"total +[\d,]+ ",
    ):
        assert re.search(part, screen), part


def test_ctrl_c_and_the_same_command_end_in_the_same_digest(
    data_dir, whole, tmp_path, capsys, monkeypatch
):
    config = small_digits(data_dir)
    fetch, fetched = TrainLoader.__next__, []

    def interrupt_at_7(self):
        fetched.append(1)
        if len(fetched) == 7:
            signal.raise_signal(signal.SIGINT)
        return fetch(self)

    with monkeypatch.context() as patch:
        patch.setattr(TrainLoader, "__next__", interrupt_at_7)
        with pytest.raises(SystemExit) as leave:
            main.run(config, tmp_path, "train")
    assert leave.value.code == 130
    assert "stopped by SIGINT after step 7, which is saved" in capsys.readouterr().out
    main.run(config, tmp_path, "train")
    digests = []
    for workdir in (tmp_path, whole):
        capsys.readouterr()
        main.run(config, workdir, "digest")
        digests.append(capsys.readouterr().out)
    assert digests[0] == digests[1]
    assert re.fullmatch(r"[0-9a-f]{64}\n", digests[0])


def test_a_run_is_fine_tuned_on_other_classes(data_dir, whole, tmp_path, capsys):
    """Twelve instead of ten: all but the classifier begins as it ended."""
    config = small_digits(data_dir, init_from=str(whole), model__num_classes=12, total_steps=2)
    task = open_task(config)
    mesh = training.data_mesh()
    with jax.set_mesh(mesh):
        program = training.make_program(task, config, training.make_plan(config, 100), mesh)
        state = jax.device_get(program.init(task.pretrained()))
    with training.Checkpoints(whole, read_only=True) as checkpoints:
        source = checkpoints.arrays(24)["averages"]
    assert source["params"].pop("classifier")["bias"].shape == (10,)
    for variables in (state.raw, state.averages):
        variables = {kind: dict(tree) for kind, tree in variables.items()}
        assert variables["params"].pop("classifier")["bias"].shape == (12,)
        jax.tree.map(np.testing.assert_array_equal, variables, source)

    main.run(config, tmp_path, "train")
    screen = capsys.readouterr().out
    assert f"weights        from {whole}; a new classifier for 12 classes\n" in screen
    assert sasa_jax.load(tmp_path).network(np.zeros((1, 32, 32, 3), np.float32)).shape == (1, 12)
    for overrides, message in (
        (dict(model__window=5), "window is 3 there and 5 here"),
        (dict(init_from="/nowhere"), "init_from /nowhere: there is no such file or folder"),
    ):
        refused = small_digits(data_dir, **{"init_from": str(whole)} | overrides)
        error = refusal(capsys, refused, tmp_path / "new")
        assert message in error


def test_dry_run_counts_and_touches_nothing(data_dir, tmp_path, capsys):
    workdir = tmp_path / "never"
    main.run(small_digits(data_dir), workdir, "dry_run")
    out = capsys.readouterr().out
    assert not workdir.exists()
    assert re.search(r"stem/value/kernel +\| \(4, 3, 16\)", out)
    assert re.search(r"memory of one step on each device, as XLA plans it for cpu: [\d,]+ MiB", out)
    assert out.splitlines()[-1] == "dry run: no step was taken"


def test_dry_run_of_the_paper_s_network_needs_no_imagenet(tmp_path, capsys):
    """One block of the real one, to compile fast; the real count is in the models' tests."""
    config = sa_resnet50.get_config().lock()
    config.update_from_flattened_dict(
        {"data.dir": str(tmp_path), "data.image_size": 32, "batch_size": 16}
    )
    config.model.update(blocks=(1,), attention_groups=(1,), window=3)
    main.run(config.to_dict(), tmp_path / "never", "dry_run")
    out = capsys.readouterr().out
    assert "data: not found here. imagenet2012 is not prepared" in out
    assert "python -m sasa_jax.data.prepare imagenet2012" in out
    assert "train: 1,281,167 images, 1,000 classes" in out
    assert "0.00625 at its peak = 1.6 x 16 / 4096" in out
    assert re.search(r"([\d,]+) parameters = [\d,]+ \+ 112 of the relative term in the stem", out)
    assert list(tmp_path.iterdir()) == []


def test_refusals_say_what_to_do(data_dir, whole, tmp_path, capsys):
    config = small_digits(data_dir)
    file = tmp_path / "file"
    file.touch()
    for refused, workdir, mode, message in (
        (small_digits(data_dir, batch_size=18), whole, "train", "multiple of 4, e.g. 16"),
        (small_digits(data_dir, learning_rate=0.1), whole, "train", "learning_rate was 0.3"),
        (small_digits(data_dir, model__window=5), whole, "eval", "model.window was 3 and is 5"),
        (small_digits(data_dir, data__name="cifar10"), file, "dry_run", "data.prepare cifar10"),
        (config, file, "train", "cannot be written to"),
        (config, tmp_path, "eval", "holds no checkpoint"),
        (config, tmp_path, "digest", "holds no checkpoint"),
    ):
        error = refusal(capsys, refused, workdir, mode)
        assert error.startswith("error: ") and message in error
    assert list(tmp_path.iterdir()) == [file]


def command_line(*arguments):
    environment = {**os.environ, "PYTHONPATH": ""}
    return subprocess.run(
        [sys.executable, str(ROOT / "main.py"), *arguments],
        capture_output=True,
        text=True,
        env=environment,
        timeout=120,
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config.model.windwo=5"], 'Did you mean "window"'),
        (["--config=configs/digit.py"], "there are configs/digit_scenes.py, configs/digits.py"),
    ],
)
def test_the_command_line_refuses_in_one_line(arguments, message):
    done = command_line(*arguments)
    assert done.returncode == 2, done
    assert message in done.stderr and done.stderr.count("\n") == 1
    assert done.stderr.startswith("error: ") and done.stdout == ""


def test_the_command_line_prints_the_digest(whole):
    done = command_line("--mode=digest", f"--workdir={whole}")
    assert done.returncode == 0, done.stderr
    assert done.stdout == training.saved_digest(whole) + "\n"


@pytest.mark.slow
def test_the_command_line_trains(data_dir, tmp_path):
    """The default config with overrides before --config, as a process of its own, on one device."""
    done = command_line(
        f"--workdir={tmp_path}",
        f"--config.data.dir={data_dir}",
        "--config.model.blocks=(1,)",
        "--config.model.attention_groups=1",
        "--config.model.width=0.25",
        "--config.model.window=3",
        "--config.batch_size=8",
        "--config.total_steps=2",
        f"--config={ROOT / 'configs' / 'digits.py'}",
    )
    assert done.returncode == 0, done.stderr
    assert re.fullmatch(r"test accuracy 0\.\d{4} \(\d+/360\)", done.stdout.splitlines()[-1])
