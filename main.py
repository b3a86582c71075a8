"""Trains, evaluates or inspects one experiment.

    python main.py --config=configs/digits.py --workdir=runs/digits [--mode=MODE] [--config.KEY=...]

Modes:
    train    from the newest checkpoint in workdir, if there is one; the same command resumes
    eval     scores the newest checkpoint
    dry_run  everything but the step: tables, shapes, memory; leaves workdir alone
    digest   prints one SHA-256 over the newest checkpoint's state

Exit codes: 0 done; 2 refused, with what to do about it on stderr; 130 or 143 stopped by Ctrl-C or
SIGTERM, after saving; 3 too many steps in a row were not finite; 1 anything else, a hang too.
`--verbosity=1` shows the traceback of a refusal.
"""

import platform
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NoReturn

import flax
import jax
from absl import app, flags, logging
from clu import parameter_overview
from ml_collections import config_flags

from sasa_jax import training
from sasa_jax.analysis import count, format_table
from sasa_jax.tasks import Classification, Detection, open_task

Task = Classification | Detection

_CONFIG = config_flags.DEFINE_config_file("config", None, "The experiment; configs/digits.py.")
_WORKDIR = flags.DEFINE_string("workdir", None, "The run's folder; runs/<name of the config>.")
_MODE = flags.DEFINE_enum("mode", "train", ["train", "eval", "dry_run", "digest"], "What to do.")


def main(argv: list[str]) -> None:
    if not logging.level_debug():
        logging.set_verbosity(logging.WARNING)  # Orbax reports every file it writes.
    if len(argv) > 1:
        _refuse(ValueError(f"unexpected argument {argv[1]!r}: flags are written --name=value"))
    run(_CONFIG.value.to_dict(), Path(_WORKDIR.value or _default_workdir()), _MODE.value)


def run(config: dict[str, Any], workdir: Path, mode: str) -> None:
    """Does what the command line asks for; leaves by SystemExit where that is not to be."""
    try:
        if mode == "digest":
            print(training.saved_digest(workdir))
            return
        task, plan = _prepare(config, workdir, mode)
    except (ValueError, TypeError, OSError) as error:
        _refuse(error)

    if jax.process_index() == 0:
        print(_first_screen(task, config, plan, workdir), flush=True)
    try:
        match mode:
            case "dry_run":
                print(_dry_run(task, config, plan))
                return
            case "eval":
                results = training.evaluate(task, config, plan, workdir)
            case "train":
                _, results = training.train(task, config, plan, workdir)
    except training.WorkdirError as error:
        _refuse(error)
    except training.NotFiniteError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(3)
    except training.Interrupted as stop:
        print(stop)
        sys.exit(stop.exit_code)
    except KeyboardInterrupt:
        print("stopped at once: nothing was saved but the checkpoints that stand")
        sys.exit(130)
    if jax.process_index() == 0:
        print(task.headline(results))


def _prepare(config: dict[str, Any], workdir: Path, mode: str) -> tuple[Task, training.Plan]:
    """All that can be refused is refused here: before any compilation."""
    training.check_division(config["batch_size"], config["accumulation_steps"], jax.device_count())
    if mode == "eval":
        training.check_saved(workdir)
    task = open_task(config, allow_absent=mode == "dry_run")
    plan = training.make_plan(config, task.train_size)
    if mode == "train":
        _check_writable(workdir)
    return task, plan


def _check_writable(workdir: Path) -> None:
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=workdir).close()
    except OSError as error:
        raise ValueError(
            f"--workdir {workdir} cannot be written to ({error.strerror}): name another folder"
        ) from error


def _first_screen(task: Task, config: dict[str, Any], plan: training.Plan, workdir: Path) -> str:
    devices, model = jax.devices(), config["model"]
    size, batch = task.image_size, config["batch_size"]
    saved = training.saved_step(workdir)
    counts = count(task.build_model, size)
    lines = {
        "devices": f"{len(devices)} x {devices[0].device_kind} ({jax.default_backend()}), "
        f"{jax.process_count()} process; mesh: data={len(devices)}",
        "versions": f"Python {platform.python_version()}, jax {jax.__version__}, "
        f"flax {flax.__version__}",
        "train data": task.data.train.description,
        "eval data": task.data.evaluation.description,
        "images": f"{size}x{size}",
        **task.description(),
        "steps": f"{plan.total_steps:,} ({plan.epochs:.1f} epochs), warm-up {plan.warmup_steps:,}",
        "batch": f"{batch}, {batch // len(devices)} a device"
        + f", in {config['accumulation_steps']} micro-batches" * (config["accumulation_steps"] > 1),
        "learning rate": f"{plan.learning_rate:g} at its peak"
        + f" = {config['learning_rate']:g} x {batch} / {config['reference_batch_size']}"
        * (config["reference_batch_size"] is not None),
        "precision": f"{model['dtype'] or 'float32'} computation; "
        f"{model['param_dtype'] or 'float32'} parameters; float32 statistics, softmax and loss",
        "workdir": f"{workdir}" + (f", holds step {saved}" if saved else ""),
    }
    text = [f"{name:14} {line}" for name, line in lines.items()]
    if task.data.missing:
        text.append(f"data: not found here. {task.data.missing}")
    text += ["", f"{task.name}, one image of {size}x{size}:", format_table(counts)]
    return "\n".join([*text, ""])


def _dry_run(task: Task, config: dict[str, Any], plan: training.Plan) -> str:
    mesh = training.data_mesh()
    with jax.set_mesh(mesh):
        program = training.make_program(task, config, plan, mesh)
        begin = time.perf_counter()
        compiled = program.step.lower(program.state, program.batch).compile()
    seconds = time.perf_counter() - begin
    overview = parameter_overview.get_parameter_overview(program.state.params, include_stats=False)
    memory = training.step_memory(compiled)
    text = [overview, "", f"compiled the training step in {seconds:.1f} s"]
    if memory is not None:
        text.append(
            f"memory of one step on each device, as XLA plans it for {jax.default_backend()}: "
            f"{_size(memory.total)} = {_size(memory.arguments)} state and batch + "
            f"{_size(memory.temporaries)} activations and other temporaries + "
            f"{_size(memory.new_outputs)} new results"
        )
    text.append(task.describe_parameters())
    return "\n".join([*text, "dry run: no step was taken"])


def _size(number: int) -> str:
    return f"{number / 2**20:,.0f} MiB" if number < 2**33 else f"{number / 2**30:,.1f} GiB"


def _default_workdir() -> str:
    config_file = config_flags.get_config_filename(flags.FLAGS["config"])
    return f"runs/{Path(config_file.replace('.py:', '_').removesuffix('.py')).name}"


def _refuse(error: Exception) -> NoReturn:
    if logging.level_debug():
        raise error
    print(f"error: {error}", file=sys.stderr)
    sys.exit(2)


def _parse_flags(argv: list[str]) -> list[str]:
    """As absl does, but a wrong config or key is one line like every other refusal."""
    try:
        return flags.FLAGS(argv)
    except (flags.Error, AttributeError, KeyError) as error:
        if "--verbosity=1" in argv:
            raise
        print(f"error: {_flag_reason(error)}", file=sys.stderr)
        sys.exit(2)


def _flag_reason(error: Exception) -> str:
    reason: Any = error
    while "Error whilst parsing config file" in str(reason) and reason.__context__:
        reason = reason.__context__
    while isinstance(reason, BaseException):
        reason = reason.args[0]
    if isinstance(error, flags.Error):
        return str(reason)
    return f"no such config key: {' '.join(str(reason).split())}"


def _config_first(argv: list[str]) -> list[str]:
    """The arguments with --config, or its default, before the overrides of its keys."""
    name, *rest = argv
    configs = Path(__file__).parent / "configs"
    chosen = [arg for arg in rest if arg.startswith("--config=")]
    chosen = chosen or [f"--config={configs / 'digits.py'}"]
    file = chosen[-1].removeprefix("--config=").split(":")[0]
    if not Path(file).is_file():
        there = ", ".join(
            f"configs/{path.name}"
            for path in sorted(configs.glob("*.py"))
            if path.name != "common.py"
        )
        _refuse(ValueError(f"--config: there is no file {file}; there are {there}"))
    return [name, *chosen, *(arg for arg in rest if arg not in chosen)]


if __name__ == "__main__":
    sys.argv = _config_first(sys.argv)  # config_flags reads them there
    app.run(main, flags_parser=_parse_flags)
