"""The training loop, read from top to bottom."""

import contextlib
import dataclasses
import time
from pathlib import Path
from typing import Any

import jax

from sasa_jax.training.checkpoints import Checkpoints, open_saved
from sasa_jax.training.distributed import Agreement, data_mesh, put_batch, wait_for_all
from sasa_jax.training.guards import Interrupted, StopGuard, Watchdog, check_finite
from sasa_jax.training.meter import Meter
from sasa_jax.training.plan import Plan
from sasa_jax.training.profiling import Profiler
from sasa_jax.training.scoring import Scorer, eval_record
from sasa_jax.training.state import TrainState, make_program
from sasa_jax.training.task import Results, Task
from sasa_jax.training.workdir import check_same_config, check_space
from sasa_jax.training.writers import Record, Writers, format_record, write_json


def train(
    task: Task, config: dict[str, Any], plan: Plan, workdir: Path
) -> tuple[TrainState, Results]:
    """Trains `task`, from the newest checkpoint under `workdir` if there is one.

    Killed at any time, the same call goes on from the newest checkpoint and ends in bit-identical
    state. The logged losses are means over the steps of an interval that this process ran.

    Args:
        task: what to train.
        config: plain nested dicts; stored with every checkpoint.
        plan: the config's derived values.
        workdir: gets checkpoints/, metrics.jsonl, tensorboard/, the task's pictures and profile/.

    Returns:
        The last state, and its evaluation: of the variables "average" and "raw".

    Raises:
        WorkdirError: `workdir` holds a run of another config, or too little disk is free.
        WandbError: the config asks for Weights & Biases, which cannot be used.
        SaveError: a checkpoint could not be written.
        Interrupted: SIGINT or SIGTERM came; the state is saved.
        NotFiniteError: `max_skipped_steps` in a row gave no finite loss and gradient.
    """
    mesh = data_mesh()
    main_process = jax.process_index() == 0
    stored_config = _stored_config(task, config, plan)

    def due(step: int, every: int) -> bool:
        return step == plan.total_steps or (every > 0 and step > 0 and step % every == 0)

    with contextlib.ExitStack() as stack:
        stack.enter_context(jax.set_mesh(mesh))
        checkpoints = stack.enter_context(Checkpoints(workdir, keep=config["keep_checkpoints"]))

        # ---- Abstract: shapes and shardings. No array exists yet. ----
        program = make_program(task, config, plan, mesh)
        check_space(workdir, program.state, config["keep_checkpoints"])

        # ---- Where does the run stand? Another config is refused before anything is compiled. ----
        def check_config(stored: dict[str, Any]) -> None:
            check_same_config(workdir, stored, stored_config, task.free_keys)

        restored = checkpoints.restore_newest(program.state, check_config)
        start = restored.step if restored else 0

        # ---- Writers. The evaluation of the restored step is done again: the run may have ended
        # in the middle of it. What an earlier process logged beyond that step is taken back. ----
        evaluate_again = start > 0 and due(start, config["eval_every"])

        def keep(record: Record) -> bool:
            again = evaluate_again and record["kind"] == "eval"
            return record["step"] < start or (record["step"] == start and not again)

        writers = stack.enter_context(
            Writers(
                workdir,
                start_step=start,
                keep=keep,
                active=main_process,
                wandb=config["wandb"],
                config=stored_config,
            )
        )

        # ---- The compiled step. ----
        train_step = None
        if start < plan.total_steps:
            begin = time.perf_counter()
            train_step = program.step.lower(program.state, program.batch).compile()
            if main_process:
                seconds = time.perf_counter() - begin
                print(f"compiled the training step in {seconds:.1f} s", flush=True)
            wait_for_all("the training step is compiled")

        # ---- State and data: from scratch, or where the checkpoint left them. ----
        batches = stack.enter_context(contextlib.closing(task.train_batches()))
        if restored:
            state = restored.state
            batches.set_state(restored.data)
            del restored  # the first step takes the state's memory
        else:
            state = program.init(task.pretrained())

        meter = Meter(
            batch_size=config["batch_size"],
            devices=jax.device_count(),
            start_step=start,
            total_steps=plan.total_steps,
        )

        # ---- The loop. From here on a signal lets the step end, and a hang ends the process. ----
        guard = stack.enter_context(StopGuard(Agreement(mesh)))
        watchdog = stack.enter_context(Watchdog(config["hang_seconds"]))

        def put_evaluated(batch: dict[str, Any]) -> dict[str, jax.Array]:
            watchdog.progress()
            guard.drop()
            return put_batch(batch, mesh)

        scorer = Scorer(task, put_evaluated, writers)
        profiler = stack.enter_context(Profiler(workdir / "profile", config["profile"]))
        step = start
        scalars: dict[str, jax.Array] = {}
        if evaluate_again:
            with guard.droppable():
                scorer.begin(step, state)
        while step < plan.total_steps and not guard.stop():
            watchdog.progress()
            # Fetched, and sent to the devices, while they are busy with the step before.
            with meter.waiting():
                fetched = next(batches)
                batch = put_batch({name: fetched[name] for name in program.batch}, mesh)
            previous = scalars
            with profiler.step(step + 1):
                state, scalars = train_step(state, batch)
            step += 1
            profiler.after(step, scalars)
            meter.add(scalars)
            # Wait for the step before this one, never for this one: the devices always have a
            # step ahead of them, and batches do not pile up there.
            jax.block_until_ready(previous)
            check_finite(previous, step - 1, config["max_skipped_steps"], checkpoints.latest_step())
            if due(step, config["log_every"]):
                scorer.settle(wait=False)
                if record := meter.cut(step):
                    writers.write(record)

            # Save and evaluate before the next batch is fetched: the iterator then stands where
            # this state left it. What is logged so far is written before, so that a run taken up
            # from here misses no line.
            save_now = due(step, config["checkpoint_every"])
            score_now = due(step, config["eval_every"])
            if (save_now or score_now) and (record := meter.read()):
                writers.write(record)
            with meter.pausing():
                if save_now or score_now:
                    # One evaluation at a time; and a run taken up from here repeats none before.
                    scorer.settle()
                if save_now:
                    checkpoints.save(step, state, batches.get_state(), stored_config)
                if score_now and not guard.stop():
                    with guard.droppable():
                        scorer.begin(step, state)

        # ---- The end, or a signal. ----
        check_finite(scalars, step, config["max_skipped_steps"], checkpoints.latest_step())
        if not guard.stop():
            with guard.droppable():
                scorer.wait()
        if signum := guard.stop():
            if record := meter.read():
                writers.write(record)
            checkpoints.save(step, state, batches.get_state(), stored_config)
        checkpoints.wait()
        results = scorer.settle()
        if signum:
            raise Interrupted(signum, step)
        return state, results


def evaluate(task: Task, config: dict[str, Any], plan: Plan, workdir: Path) -> Results:
    """Scores the newest checkpoint under `workdir`, as the last evaluation of `train` does.

    Raises:
        WorkdirError: `workdir` holds no checkpoint, or a run of another config.
    """
    mesh = data_mesh()
    with jax.set_mesh(mesh), open_saved(workdir) as checkpoints:
        stored_config = _stored_config(task, config, plan)
        step, state, _ = checkpoints.restore_newest(
            make_program(task, config, plan, mesh).state,
            lambda stored: check_same_config(workdir, stored, stored_config, task.free_keys),
        )
        evaluation = task.evaluate(state.evaluated, lambda batch: put_batch(batch, mesh))()
    if jax.process_index() == 0:
        print(format_record(eval_record(step, evaluation.metrics)))
        for name, content in evaluation.files.items():
            write_json(workdir / name, content)
    return evaluation.metrics


def _stored_config(task: Task, config: dict[str, Any], plan: Plan) -> dict[str, Any]:
    """What a checkpoint says of the run: enough to use the network where the data is not."""
    return config | {"plan": dataclasses.asdict(plan), "class_names": list(task.class_names)}
