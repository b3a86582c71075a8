"""The loop with a toy task: exact resumption, devices, accumulation, logs, refusals."""

import dataclasses
import gc
import gzip
import json
import pathlib
import re
import shutil
import signal
import time
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sasa_jax.training import (
    Checkpoints,
    Interrupted,
    NotFiniteError,
    WorkdirError,
    check_saved,
    data_mesh,
    digest,
    evaluate,
    make_plan,
    make_program,
    put_batch,
    saved_digest,
    saved_step,
    step_memory,
)
from sasa_jax.training.meter import Meter
from sasa_jax.training.writers import Writers, format_record
from tests.training.toy import ToyBatches, ToyTask, make_config, run


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """An uninterrupted run: its folder and its final state."""
    workdir = tmp_path_factory.mktemp("whole")
    return workdir, run(workdir)


def stop_at_evaluation(count):
    """A task that gets Ctrl-C in the middle of its count-th evaluation."""

    def stop(evaluations):
        if evaluations == count:
            signal.raise_signal(signal.SIGINT)

    return ToyTask(on_evaluate=stop)


def records(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def test_a_run_learns_and_leaves_the_files_it_promises(whole):
    workdir, state = whole
    assert int(state.step) == 20
    assert {path.name for path in workdir.iterdir()} == {
        "checkpoints",
        "metrics.jsonl",
        "tensorboard",
    }
    losses = [r["loss"] for r in records(workdir) if r["kind"] == "train"]
    assert losses[-1] < 0.5 * losses[0]


def test_a_checkpoint_is_state_data_and_config_and_the_newest_are_kept(whole):
    workdir, state = whole
    folder = workdir / "checkpoints"
    assert sorted(path.name for path in folder.iterdir()) == ["16", "20"]
    assert {"state", "arrays", "data", "config"} <= {
        path.name for path in (folder / "20").iterdir()
    }
    with Checkpoints(workdir, read_only=True) as checkpoints:
        assert checkpoints.config(20)["learning_rate"] == 0.1
        assert checkpoints.config(20)["plan"]["total_steps"] == 20
        abstract = make_program(
            ToyTask(), make_config(), make_plan(make_config(), 40), data_mesh()
        ).state
        step, restored, data = checkpoints.restore_newest(abstract, lambda config: None)
    assert step == 20
    assert data == {"position": 160}
    assert jax.tree.structure(restored) == jax.tree.structure(state)
    assert digest(restored) == digest(state)
    assert restored.params["layer"]["kernel"].sharding == state.params["layer"]["kernel"].sharding


def cut_short(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.fixture
def failed_reads():
    """Orbax leaves the event loop of a failed read open; Python says so when it collects it."""
    yield
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize(
    ("pattern", "harm"),
    [
        ("state/manifest.ocdbt", cut_short),
        ("state/d/*", pathlib.Path.unlink),
        ("state/d/*", lambda path: path.write_bytes(bytes(path.stat().st_size))),
        ("data/metadata", cut_short),
        ("arrays/metadata", cut_short),
        ("config/metadata", pathlib.Path.unlink),
    ],
)
def test_a_damaged_checkpoint_is_named_and_the_one_before_it_taken(
    whole, tmp_path, capsys, failed_reads, pattern, harm
):
    workdir = tmp_path / "run"
    shutil.copytree(whole[0], workdir)
    for path in (workdir / "checkpoints" / "20").glob(pattern):
        harm(path)
    state = run(workdir)
    assert digest(state) == digest(whole[1]) == saved_digest(workdir)
    said = capsys.readouterr().err
    assert "checkpoint of step 20 is damaged" in said
    assert "going on from step 16" in said and "up to step 20 is lost" in said
    assert (workdir / "damaged_checkpoints" / "20").is_dir()


def test_a_write_that_was_never_finished_is_passed_over(whole, tmp_path):
    shutil.copytree(whole[0], tmp_path / "run")
    folder = tmp_path / "run" / "checkpoints"
    (folder / "20").rename(folder / "20.orbax-checkpoint-tmp")
    for path in (folder / "20.orbax-checkpoint-tmp" / "state").glob("*/d/*"):
        path.unlink()
    assert saved_step(tmp_path / "run") == 16
    assert digest(run(tmp_path / "run")) == digest(whole[1])
    assert sorted(path.name for path in folder.iterdir()) == ["16", "20"]


class LargeTask(ToyTask):
    """With an array that takes most of a checkpoint's bytes, which orbax does not check."""

    def init(self, key):
        variables = super().init(key)
        variables["params"]["large"] = jax.random.normal(key, (256, 256))
        return variables


def test_one_bit_that_flipped_is_found(tmp_path, capsys):
    state = run(tmp_path, LargeTask())
    path = max((tmp_path / "checkpoints" / "20").rglob("d/*"), key=lambda p: p.stat().st_size)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"1 of \d+ arrays are not those that were saved: .*large"):
        saved_digest(tmp_path)
    assert digest(run(tmp_path, LargeTask())) == digest(state)
    assert "checkpoint of step 20 is damaged: ValueError: 1 of" in capsys.readouterr().err


@pytest.mark.parametrize("harm", [cut_short, pathlib.Path.unlink])
def test_a_damaged_file_of_arrays_is_found(tmp_path, capsys, failed_reads, harm):
    state = run(tmp_path, LargeTask())
    harm(max((tmp_path / "checkpoints" / "20").rglob("d/*"), key=lambda p: p.stat().st_size))
    assert digest(run(tmp_path, LargeTask())) == digest(state)
    assert "checkpoint of step 20 is damaged" in capsys.readouterr().err


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_run_with_damaged_checkpoints_only_is_refused(whole, tmp_path, failed_reads):
    shutil.copytree(whole[0], tmp_path / "run")
    for path in (tmp_path / "run" / "checkpoints").glob("*/state/manifest.ocdbt"):
        path.unlink()
    with pytest.raises(WorkdirError, match=r"all checkpoints .* are damaged \(steps 20, 16\)"):
        run(tmp_path / "run")


@pytest.mark.parametrize(("evaluation", "step"), [(1, 8), (3, 20)])
def test_a_run_stopped_in_an_evaluation_ends_in_the_same_bits(whole, tmp_path, evaluation, step):
    """Also in the last one, when there is nothing left to train."""
    with pytest.raises(Interrupted, match=f"SIGINT after step {step}, which is saved") as stop:
        run(tmp_path, stop_at_evaluation(evaluation))
    assert stop.value.exit_code == 130
    assert saved_step(tmp_path) == step
    assert digest(run(tmp_path)) == digest(whole[1]) == saved_digest(tmp_path)


def test_steps_are_traced_on_request_and_nothing_else_changes(whole, tmp_path, capsys):
    state = run(tmp_path, profile=(3, 5))
    assert digest(state) == digest(whole[1])
    (trace,) = tmp_path.glob("profile/plugins/profile/*/perfetto_trace.json.gz")
    text = gzip.decompress(trace.read_bytes()).decode()
    assert re.findall(r'"step_num": ?"?(\d+)', text) == ["3", "4", "5"]
    assert "traced up to step 5" in capsys.readouterr().out
    with pytest.raises(ValueError, match=r"profile must be \(first, last\)"):
        run(tmp_path / "other", profile=(5, 3))


def test_a_resumed_run_logs_every_step_once(whole, tmp_path):
    with pytest.raises(Interrupted):
        run(tmp_path, stop_at_evaluation(2))
    with (tmp_path / "metrics.jsonl").open("a") as file:
        # What a run killed after step 19 and in the middle of a line would leave.
        file.write('{"kind": "train", "step": 18}\n{"kind": "train", "st')
    run(tmp_path)
    entries = [(r["kind"], r["step"]) for r in records(tmp_path)]
    assert entries == [(r["kind"], r["step"]) for r in records(whole[0])]
    assert len(entries) == len(set(entries))


def test_a_finished_run_is_scored_again_and_not_trained(whole):
    task = ToyTask()
    before = saved_digest(whole[0])
    state = run(whole[0], task)
    assert digest(state) == before == saved_digest(whole[0])
    assert task.evaluations == 1
    assert task.batches.position == 160 and task.batches.closed


def test_evaluate_gives_the_last_results_of_training(whole, capsys):
    config = make_config()
    results = evaluate(ToyTask(), config, make_plan(config, 40), whole[0])
    last = [r for r in records(whole[0]) if r["kind"] == "eval"][-1]
    assert results["average"]["accuracy"] == last["average/accuracy"]
    assert "step 20  average  accuracy" in capsys.readouterr().out


def test_training_goes_on_while_the_host_works_on_an_evaluation(tmp_path):
    """The first evaluation ends only when later batches have been fetched."""
    task = ToyTask()
    score = task.evaluate

    def slow(variables, put):
        finish, first = score(variables, put), task.evaluations == 1

        def wait():
            deadline = time.monotonic() + 20
            while first and task.batches.position < 11 * 8 and time.monotonic() < deadline:
                time.sleep(0.01)
            assert time.monotonic() < deadline, "training waited for the evaluation"
            return finish()

        return wait

    task.evaluate = slow
    run(tmp_path, task, checkpoint_every=16)
    assert [r["step"] for r in records(tmp_path) if r["kind"] == "eval"] == [8, 16, 20]


def test_an_error_in_an_evaluation_ends_the_run(tmp_path):
    task = ToyTask()
    task.evaluate = lambda variables, put: lambda: 1 / 0
    with pytest.raises(ZeroDivisionError):
        run(tmp_path, task)


def poisoned(*steps):
    task = ToyTask()
    task.poisoned = set(steps)
    return task


def test_a_step_that_is_not_finite_changes_nothing_but_the_counts(tmp_path):
    """Also not the averages, the momentum, the batch statistics: it is as if it had not been."""
    one = run(tmp_path / "one", poisoned(5), total_steps=5, eval_every=0)
    # The same 5 steps with step 5 never taken: the first four of them.
    with pytest.raises(Interrupted):
        run(tmp_path / "four", stop_at_evaluation(1), total_steps=5, eval_every=4)
    with Checkpoints(tmp_path / "four", read_only=True) as checkpoints:
        before = checkpoints.arrays(4)
    for name in ("params", "batch_stats", "opt_state", "averages"):
        assert digest(getattr(one, name)) == digest(before[name]), name
    assert int(one.step) == 5
    np.testing.assert_array_equal(one.skipped, [1, 1])


def test_skipped_steps_are_logged_and_left_out_of_the_mean(tmp_path):
    state = run(tmp_path, poisoned(2, 5, 6))
    np.testing.assert_array_equal(state.skipped, [3, 0])
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state))
    train = [r for r in records(tmp_path) if r["kind"] == "train"]
    assert [r["skipped_steps"] for r in train[:3]] == [1, 3, 3]
    assert all(np.isfinite(r["loss"]) for r in train)


def test_too_many_in_a_row_end_the_run(tmp_path):
    with pytest.raises(NotFiniteError) as error:
        run(tmp_path, poisoned(6, 7, 8))
    message = str(error.value)
    assert "steps 6 to 8" in message and re.search("the last checkpoint is step [48]", message)
    assert "learning rate 0." in message and "loss nan" in message
    # What was saved is sound: the run goes on once the data is.
    assert np.isfinite(run(tmp_path).params["layer"]["kernel"]).all()


def test_another_config_is_refused_with_its_first_differences(whole):
    with pytest.raises(WorkdirError, match=r"learning_rate was 0\.1 and is 0\.2") as error:
        run(whole[0], learning_rate=0.2)
    assert "another --workdir" in str(error.value)
    with pytest.raises(WorkdirError, match="a run cannot be extended"):
        run(whole[0], total_steps=30)


def test_another_network_is_refused_with_its_first_differences(whole, tmp_path):
    """Under the same config, as after a change of the code; its checkpoints stay where they are."""
    shutil.copytree(whole[0], tmp_path / "run")
    with pytest.raises(WorkdirError, match="the state of another network") as error:
        run(tmp_path / "run", LargeTask())
    assert "averages/params/large was absent and is float32[256,256]" in str(error.value)
    assert saved_step(tmp_path / "run") == 20


def test_keys_that_change_nothing_may_differ(whole):
    run(whole[0], log_every=7, data={"dir": "there"})


def test_no_checkpoint_is_said(tmp_path):
    with pytest.raises(WorkdirError, match="holds no checkpoint"):
        check_saved(tmp_path)
    assert not list(tmp_path.iterdir())


def one_step(noise=0.0, **overrides):
    """The state after one step, and the compiled program."""
    config = make_config(**overrides)
    task, mesh = ToyTask(config["batch_size"], noise=noise), data_mesh()
    with jax.set_mesh(mesh):
        program = make_program(task, config, make_plan(config, 40), mesh)
        step = program.step.lower(program.state, program.batch).compile()
        batch = put_batch(next(ToyBatches(config["batch_size"], 0.0)), mesh)
        state, scalars = step(program.init({}), batch)
    return state, scalars, step


def test_accumulation_equals_the_large_batch():
    options = dict(batch_size=24, warmup_epochs=0.0)
    at_once, scalars, _ = one_step(**options)
    in_turn, scalars_in_turn, step = one_step(**options, accumulation_steps=3)
    for name in ("params", "opt_state"):
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-6, atol=1e-7),
            getattr(at_once, name),
            getattr(in_turn, name),
        )
    assert float(scalars["loss"]) == pytest.approx(float(scalars_in_turn["loss"]), rel=1e-6)
    # Three micro-batches move the running mean three times; every device keeps its examples.
    assert not np.allclose(at_once.batch_stats["mean"], in_turn.batch_stats["mean"])
    assert not re.search("all-to-all|all-gather|collective-permute", step.as_text())


def test_state_is_replicated_donated_and_averaged():
    state, _, step = one_step(warmup_epochs=0.0)
    assert all(leaf.sharding.is_fully_replicated for leaf in jax.tree.leaves(state))
    assert len(state.step.sharding.device_set) == jax.device_count() == 4
    # Everything but the logged scalars is written over the old state.
    memory = step_memory(step)
    assert memory.new_outputs < 200 and memory.total > memory.arguments
    # decay 1/10 at the first step: nine tenths of the new value.
    init = make_program(ToyTask(), make_config(), make_plan(make_config(), 40), data_mesh()).init(
        {}
    )
    expected = 0.1 * init.params["layer"]["kernel"] + 0.9 * state.params["layer"]["kernel"]
    np.testing.assert_allclose(state.averages["params"]["layer"]["kernel"], expected, rtol=1e-5)
    mean = state.averages["batch_stats"]["mean"]
    np.testing.assert_allclose(mean, 0.9 * state.batch_stats["mean"], rtol=1e-5)


def test_every_step_has_its_own_random_key(tmp_path):
    final = run(tmp_path, total_steps=2)
    still = run(tmp_path / "still", ToyTask(noise=0.0), total_steps=2)
    assert digest(final.params) != digest(still.params)


def test_digest_sees_every_part_of_every_leaf(whole):
    state = whole[1]
    leaves, tree = jax.tree.flatten(state)
    seen = {digest(state)}
    for index, leaf in enumerate(leaves):
        one = np.asarray(leaf).copy()
        one.reshape(-1)[-1] += 1
        seen.add(digest(jax.tree.unflatten(tree, [*leaves[:index], one, *leaves[index + 1 :]])))
    assert len(seen) == len(leaves) + 1
    zeros = np.zeros(2, np.float32)
    variants = [{"a": zeros}, {"b": zeros}, {"a": zeros.reshape(2, 1)}, {"a": zeros.view(np.int32)}]
    assert len({digest(v) for v in variants}) == 4
    assert digest({"a": zeros, "b": 1}) == digest({"b": 1, "a": zeros})


def test_scalars_are_read_one_interval_late():
    meter = Meter(batch_size=8, devices=4, start_step=0, total_steps=10)
    for step in range(1, 5):
        meter.add({"loss": jnp.float32(step), "learning_rate": jnp.float32(0.1 * step)})
        if step == 2:
            assert meter.cut(2) is None
    record = meter.cut(4)
    assert (record["step"], record["loss"]) == (2, 1.5)
    assert record["learning_rate"] == pytest.approx(0.2)
    assert record["images_per_second"] == pytest.approx(4 * record["images_per_second_per_chip"])
    assert meter.read()["loss"] == 3.5
    assert meter.read() is None


def test_the_log_line_has_what_a_person_watches():
    line = format_record(
        {
            "kind": "train",
            "step": 100,
            "total_steps": 2000,
            "loss": 1.23456,
            "learning_rate": 0.3,
            "images_per_second": 812.34,
            "images_per_second_per_chip": 203.085,
            "data_wait_share": 0.0123,
            "seconds_left": 3725.2,
        }
    )
    assert line == (
        "step 100/2000  loss 1.2346  learning rate 0.3  812.3 images/s (203.1 a chip)  "
        "data wait 1.2%  left 1:02:05"
    )


def test_pictures_reach_tensorboard(tmp_path):
    with Writers(tmp_path) as writers:
        writers.image(3, "attention", np.zeros((4, 6, 3), np.uint8))
        writers.write({"kind": "eval", "step": 3, "average/accuracy": 0.5})
    (events,) = (tmp_path / "tensorboard").iterdir()
    assert (tmp_path / "attention.png").read_bytes().startswith(b"\x89PNG")
    content = events.read_bytes()
    assert b"attention" in content and b"eval/average/accuracy" in content


def test_only_the_first_process_writes(tmp_path):
    with Writers(tmp_path / "nowhere", active=False) as writers:
        writers.write({"kind": "eval", "step": 3, "average/accuracy": 0.5})
    assert not (tmp_path / "nowhere").exists()


def test_training_imports_nothing_of_ours():
    import ast

    import sasa_jax.training

    for path in pathlib.Path(sasa_jax.training.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module.startswith("sasa_jax"):
                assert node.module.startswith("sasa_jax.training"), path


def test_the_state_is_plain_dicts(whole):
    for field in dataclasses.fields(whole[1]):
        if field.name in ("params", "batch_stats", "averages"):
            assert type(getattr(whole[1], field.name)) is dict
