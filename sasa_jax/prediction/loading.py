"""From a run, an export or the Hub to a network that is ready to use.

What is read are JSON and arrays: nothing that is stored is executed.
"""

import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import jax

from sasa_jax.checks import check_choice, nearest
from sasa_jax.hub import download, on_hub
from sasa_jax.models import Variables, shape_differences
from sasa_jax.prediction.classification import ClassificationPredictor
from sasa_jax.prediction.detection import DetectionPredictor
from sasa_jax.prediction.predictor import Predictor
from sasa_jax.tasks import numbered_classes, task_without_data
from sasa_jax.training import Checkpoints, saved_step

Which = Literal["average", "raw"]

_PREDICTORS = {"classification": ClassificationPredictor, "detection": DetectionPredictor}


class LoadError(ValueError):
    """A folder from which no network can be loaded; says why and what to do."""


def load(source: str | os.PathLike[str], *, variables: Which = "average") -> Predictor:
    """Loads a trained network with its preprocessing; needs no data set.

        model = sasa_jax.load("runs/digits")
        for result in model(["a.png", "b.png"], top_k=3):
            print(result.names[0], result.scores[0])

    A classifier's result has `names`, `indices` and `scores` of the `top_k` best classes; a
    detector's has them and `boxes` (top, left, bottom, right), in pixels of the image that was
    given, of all that it found. Images are files, their contents, or uint8 pixels [H, W, 1 or 3].

    The network itself, S = `model.image_size`:

        batch = model.preprocess("a.png")["image"][None]         # uint8 [1, S, S, 3]
        logits = model.network(sasa_jax.tasks.normalise(batch))  # float32 [1, classes]

    Args:
        source: a run's folder, its --workdir; or what --mode=export wrote with
            --format=safetensors or torch; or such an export on the Hugging Face Hub,
            hf://OWNER/NAME or hf://OWNER/NAME@REVISION, which needs the extra `hub`.
        variables: the averages over the training, which a run's last line reports, or the weights
            as they were after its last step.

    Returns:
        A `ClassificationPredictor` or a `DetectionPredictor`, with the newest whole checkpoint.
        A warning names newer ones that are damaged. Where a run is older than the storing of class
        names, they are "0", "1", ...

    Raises:
        LoadError: no such folder, no checkpoint in it, none that is whole, or one of an
            incompatible version.
        HubError: the Hub cannot be reached, or has no such repository.
    """
    check_choice("variables", variables, Which)
    exported = on_hub(source)
    source = _from_hub(str(source)) if exported else Path(source)
    if exported or (source / "config.json").is_file():
        if variables == "raw":
            raise LoadError(f"{source} is an export, which holds the averages only: load the run")
        return _load_export(source)
    _check_folder(source)
    config, state, step = _newest_whole(source)
    arrays = state.get("averages", {}) if variables == "average" else state
    arrays = {kind: arrays.get(kind, {}) for kind in ("params", "batch_stats")}
    return make_predictor(config, arrays, step=step, source=str(source))


def _newest_whole(source: Path) -> tuple[dict[str, Any], dict[str, Any], int]:
    """Config, state and step of the newest checkpoint that can be read."""
    damaged = []
    with Checkpoints(source, read_only=True) as checkpoints:
        for step in checkpoints.steps():
            try:
                config, state = checkpoints.config(step), checkpoints.arrays(step)
                break
            # Orbax, TensorStore and the JSON parser each have errors of their own.
            except Exception as error:
                reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
                damaged.append(f"the checkpoint of step {step} is damaged: {reason}")
        else:
            raise LoadError(
                f"all checkpoints in {source} are damaged; {damaged[0]}. The training command with "
                "another --workdir makes new ones"
            )
    if damaged:
        warnings.warn(f"{source}: {'; '.join(damaged)}; step {step} is loaded", stacklevel=3)
    return config, state, step


def _from_hub(source: str) -> Path:
    # Here, as exporting a run loads it with this module.
    from sasa_jax.export.folder import CONFIG, WEIGHTS

    return download(source, (CONFIG, WEIGHTS))


def _load_export(source: Path) -> Predictor:
    # Here, as exporting a run loads it with this module.
    from sasa_jax.export import read_safetensors

    try:
        config, class_names, step, arrays = read_safetensors(source)
    except ValueError as error:
        raise LoadError(str(error)) from error
    config = {**config, "class_names": list(class_names)}
    return make_predictor(config, arrays, step=step, source=str(source))


def make_predictor(
    config: Mapping[str, Any], variables: Variables, *, step: int, source: str
) -> Predictor:
    """A predictor from a stored config and arrays, wherever they were stored.

    Args:
        config: of the run, with "class_names".
        variables: {"params", "batch_stats"}, NumPy arrays.
        step: of the training.
        source: for messages.

    Raises:
        LoadError: the config is not one of this version, or the arrays are of another network.
    """
    try:
        names = config.get("class_names") or _numbered(config, variables)
        task = task_without_data(_portable(config), names)
    except (KeyError, TypeError, ValueError) as error:
        what = f"it lacks {error}" if isinstance(error, KeyError) else str(error)
        raise LoadError(
            f"the config in {source} is not one that this version of sasa_jax understands: {what}. "
            "Use the version that trained it, or train anew"
        ) from error
    _check_shapes(task.shapes, variables, source)
    return _PREDICTORS[config["task"]](task, config, jax.device_put(variables), step)


def _check_folder(source: Path) -> None:
    """Raises LoadError if there is no checkpoint, with what was perhaps meant."""
    if not source.is_dir():
        if source.exists():
            raise LoadError(f"{source} is a file: give the run's folder")
        beside = [path.name for path in source.parent.glob("*") if path.is_dir()]
        raise LoadError(f"there is no folder {source}{nearest(source.name, beside)}")
    if saved_step(source):
        return
    for run in (source.absolute().parent, source.absolute().parent.parent):
        if saved_step(run):
            raise LoadError(f"{source} lies inside a run's folder: give {run}")
    runs = [path.name for path in sorted(source.glob("*")) if path.is_dir() and saved_step(path)]
    inside = f"; there are checkpoints in its {', '.join(runs[:5])}" if runs else ""
    raise LoadError(
        f"{source} holds no checkpoint{inside}: give the --workdir of a training, which saves "
        "every checkpoint_every steps and at its end"
    )


def _portable(config: Mapping[str, Any]) -> dict[str, Any]:
    """A config that was JSON has lists for tuples; the machine that trained is no matter here."""

    def tuples(tree: Any) -> Any:
        if isinstance(tree, Mapping):
            return {key: tuples(value) for key, value in tree.items()}
        return tuple(map(tuples, tree)) if isinstance(tree, list) else tree

    config = tuples(config)
    for part in ("model", "detector"):
        if part in config:
            config[part]["implementation"] = None
    return config


def _numbered(config: Mapping[str, Any], variables: Variables) -> tuple[str, ...]:
    """Names for the classes of a network that was stored without: one for each logit."""
    params = variables["params"]
    if config["task"] == "classification":
        return numbered_classes(params["classifier"]["bias"].size)
    # Each anchor has a logit for every class, and four numbers for its box.
    logits, codes = (params[head]["output"]["bias"].size for head in ("class_head", "box_head"))
    return numbered_classes(4 * logits // codes)


def _check_shapes(wanted: Variables, found: Variables, source: str) -> None:
    """Raises LoadError unless the arrays are those of the network that the config describes."""
    differences = shape_differences(wanted, found, "in the config")
    if differences:
        more = f" and {len(differences) - 3} more" if len(differences) > 3 else ""
        raise LoadError(
            f"the arrays in {source} are not those of its config's network: "
            f"{'; '.join(differences[:3])}{more}. Use the version that trained it, or train anew"
        )
