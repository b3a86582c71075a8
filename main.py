#!/usr/bin/env python
"""Trains, evaluates, inspects or uses one experiment.

    python main.py [--mode=MODE] --config=configs/digits.py --workdir=runs/digits [--config.KEY=...]

Modes of an experiment. They need its config, and all but digest its data; --workdir is by default
runs/NAME OF THE CONFIG; docs/config.md has every KEY:
  train     from the newest checkpoint in workdir, if there is one: the same command resumes
  eval      scores the newest checkpoint
  dry_run   everything but the step: tables, shapes, memory; leaves workdir alone
  digest    prints one SHA-256 over the newest checkpoint's state

Modes that use a trained network, which brings its config along. --workdir is a run's folder, an
export as safetensors, or hf://OWNER/NAME on the Hugging Face Hub:
  predict   classes of or objects in --images=GLOB; [--output=x.csv|json|jsonl]
            [--pictures=FOLDER] [--top_k=5] [--min_score=0.3]
  explain   a page to look at its attention to --image=FILE in; [--output=x.html]
  export    for other runtimes, --format=safetensors|torch|stablehlo|savedmodel|onnx;
            [--output=FOLDER] [--images=GLOB to check it on] [--push=OWNER/NAME, to the Hub]

Examples:
  python main.py --config=configs/digits.py --config.seed=1 --workdir=runs/seed1
  python main.py --mode=predict --workdir=runs/seed1 --images='photos/*.jpg' --output=x.csv
  python main.py --mode=explain --workdir=runs/seed1 --image=photo.jpg
  python main.py --mode=export --workdir=runs/seed1 --format=safetensors --push=me/digits

In bash, flags and modes of ./main.py are completed after
  words=$(./main.py --help | grep -oE '^ +(--[a-z_]+:|[a-z_]+  )' | tr : =)
  complete -o default -o nospace -W "$words" main.py

Exit codes: 0 done; 2 refused, or too much of the data is corrupt, with what to do about it on
stderr; 130 or 143 stopped by Ctrl-C or SIGTERM, after saving; 3 too many steps in a row were not
finite; 4 the disk is full, or a checkpoint could not be written; 1 anything else, a hang too.
`--verbosity=1` shows the traceback of a refusal.
"""

import errno
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import jax
from absl import app, flags, logging
from ml_collections import config_flags

from sasa_jax import training
from sasa_jax.checks import check_choice
from sasa_jax.data import CorruptDataError
from sasa_jax.explorer.command import explain_file
from sasa_jax.export.command import export_model
from sasa_jax.prediction.command import predict_files
from sasa_jax.tasks import Task, dry_run, first_screen, open_task

_CONFIG = config_flags.DEFINE_config_file("config", None, "The experiment; configs/digits.py.")
_WORKDIR = flags.DEFINE_string("workdir", None, "The run's folder; runs/NAME OF THE CONFIG.")
_COORDINATOR = flags.DEFINE_string(
    "coordinator",
    None,
    "Several processes: auto on Cloud TPU and under SLURM, Open MPI or Kubernetes; elsewhere "
    "HOST:PORT of the first, with --process. None is one process.",
)
_PROCESS = flags.DEFINE_string("process", None, "INDEX/COUNT of this one, e.g. 0/4.")
_IMAGES = flags.DEFINE_multi_string(
    "images", [], "predict, export: a file, folder or quoted glob; may be given several times."
)
_FORMAT = flags.DEFINE_string(
    "format", None, "export: safetensors, torch, stablehlo, savedmodel or onnx."
)
_IMAGE = flags.DEFINE_string("image", None, "explain: a photo.")
_OUTPUT = flags.DEFINE_string(
    "output",
    None,
    "predict: a .csv, .json or .jsonl; else the screen. explain: a .html. export: a folder.",
)
_PUSH = flags.DEFINE_string("push", None, "export: OWNER/NAME on the Hugging Face Hub.")
_PICTURES = flags.DEFINE_string("pictures", None, "predict: a folder for a picture of each image.")
_TOP_K = flags.DEFINE_integer("top_k", 5, "predict: classes of an image.")
_MIN_SCORE = flags.DEFINE_float("min_score", 0.3, "predict: least score of a box.")
_PREDICT_BATCH = flags.DEFINE_integer("predict_batch", 32, "predict: images at a time.")

# What a trained network is used for, by mode; each raises ValueError or OSError to refuse.
_USES: dict[str, Callable[[str | Path], None]] = {
    "predict": lambda source: predict_files(
        source,
        _IMAGES.value,
        output=_path(_OUTPUT.value),
        pictures=_path(_PICTURES.value),
        top_k=_TOP_K.value,
        min_score=_MIN_SCORE.value,
        batch_size=_PREDICT_BATCH.value,
    ),
    "export": lambda source: export_model(
        source,
        _FORMAT.value,
        images=_IMAGES.value,
        output=_path(_OUTPUT.value),
        push=_PUSH.value,
    ),
    "explain": lambda source: explain_file(source, _IMAGE.value, output=_path(_OUTPUT.value)),
}
_MODES = ("train", "eval", "dry_run", "digest", *_USES)
_MODE = flags.DEFINE_string("mode", "train", f"What to do: {', '.join(_MODES)}.")


def main(argv: list[str]) -> None:
    if not logging.level_debug():
        logging.set_verbosity(logging.WARNING)  # Orbax reports every file it writes.
    if len(argv) > 1:
        hint = "flags are written --name=value, and a glob is quoted"
        _refuse(ValueError(f"unexpected argument {argv[1]!r}: {hint}"))
    try:
        check_choice("--mode", _MODE.value, _MODES)
        if _COORDINATOR.value or _PROCESS.value:
            training.connect(_COORDINATOR.value or "", _PROCESS.value)
        training.check_connected()
    except ValueError as error:
        _refuse(error)
    workdir = _WORKDIR.value or _default_workdir()
    with training.failing_alone():
        if _MODE.value in _USES:
            use(workdir, _MODE.value)
        else:
            run(_CONFIG.value.to_dict(), Path(workdir), _MODE.value)


def use(source: str | Path, mode: str) -> None:
    """Does something with what `sasa_jax.load` takes; leaves by SystemExit if it is refused."""
    try:
        _USES[mode](source)
    except (ValueError, OSError) as error:
        _refuse(error)
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        sys.exit(130)


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
        print(first_screen(task, config, plan, workdir), flush=True)
    try:
        match mode:
            case "dry_run":
                print(dry_run(task, config, plan))
                return
            case "eval":
                results = training.evaluate(task, config, plan, workdir)
            case "train":
                _, results = training.train(task, config, plan, workdir)
    except (training.WorkdirError, training.WandbError, CorruptDataError) as error:
        _refuse(error)
    except training.NotFiniteError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(3)
    except training.SaveError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(4)
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        saved = training.saved_step(workdir)
        print(
            f"error: the disk of {workdir} is full ({error}); saved: step {saved}", file=sys.stderr
        )
        sys.exit(4)
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
    if mode == "train":
        training.check_wandb(config["wandb"])
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


def _path(value: str | None) -> Path | None:
    return Path(value) if value else None


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
