"""An exported folder, run in its own runtime in a fresh process, against the network in JAX."""

import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from sasa_jax.export.errors import CheckFailedError, ExportError
from sasa_jax.export.serving import Network, detections, raw_outputs
from sasa_jax.models import Variables

TOLERANCE = 1e-4  # absolute, of logits and box codes; see Agreement
RUNNERS = Path(__file__).with_name("runners")


class Agreement(NamedTuple):
    """How far an export is from the network.

    Attributes:
        difference: the largest of the raw outputs, absolute.
        rounding: how far the network's own outputs move when every weight is rounded once more.
            Float32 cannot promise less: it is above 1e-4 in some networks of many layers, where
            even two programs of the same XLA differ by as much.
    """

    difference: float
    rounding: float

    @property
    def allowed(self) -> float:
        """1e-4, or twice what rounding does where that is more."""
        return max(TOLERANCE, 2 * self.rounding)

    def __str__(self) -> str:
        text = f"{self.difference:.1e}, allowed {self.allowed:.1e}"
        if self.allowed > TOLERANCE:
            text += f", because rounding the weights once more moves them by {self.rounding:.1e}"
        return text


def check(
    network: Network, folder: Path, format: str, inputs: Mapping[str, np.ndarray]
) -> Agreement:
    """Compares what the folder gives for some images with what JAX computes here.

    The raw outputs are compared with the network's, in float32 and with the operator that is the
    best on this machine; the boxes of a detector with what its own raw outputs decode to, because
    rounding may swap neighbours of equal score.

    Args:
        network: what was exported.
        folder: to check.
        format: that it was exported in.
        inputs: arguments of `serving_function` by name.

    Raises:
        CheckFailedError: they differ by more than is allowed, or by NaN, or detections differ.
        ExportError: the runtime could not run the folder.
    """
    with jax.default_matmul_precision("highest"):
        predict = jax.jit(network.task().predict)
        ours, moved = (
            jax.device_get(raw_outputs(predict(variables, inputs["images"])))
            for variables in (network.variables, _rounded(network.variables))
        )
    theirs = run(folder, format, inputs)
    agreement = Agreement(_difference(theirs, ours), _difference(moved, ours))
    if not agreement.difference <= agreement.allowed:  # nor NaN
        raise CheckFailedError(
            f"the export as {format} differs from the network by {agreement}: this is a fault of "
            "the exporter; nothing was left at --output"
        )
    if "boxes" in theirs:
        decoded = jax.device_get(detections(network.task(), theirs, inputs["sizes"]))
        if not _difference(theirs, decoded) <= 1e-2:  # pixels
            raise CheckFailedError(
                f"the export as {format} decodes its outputs otherwise than the network: this is a "
                "fault of the exporter; nothing was left at --output"
            )
    return agreement


def run(folder: Path, format: str, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """What the folder gives in its own runtime, on the CPU, in a fresh process."""
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "TF_CPP_MIN_LOG_LEVEL": "3"}
    # The accelerator is this process's, which JAX does not share.
    environment["CUDA_VISIBLE_DEVICES"] = ""
    if format == "safetensors":  # its runtime is this package, which may not be installed
        paths = [str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")]
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
    with tempfile.TemporaryDirectory() as scratch:
        files = [str(Path(scratch) / name) for name in ("inputs.npz", "outputs.npz")]
        np.savez(files[0], **inputs)
        script = str(RUNNERS / f"run_{format}.py")
        process = subprocess.run(
            [sys.executable, script, str(folder.absolute()), *files],
            env=environment,
            capture_output=True,
            text=True,
        )
        if process.returncode:
            reason = process.stderr.strip().splitlines()[-1:] or [f"exit {process.returncode}"]
            raise ExportError(f"the export as {format} does not run: {reason[0]}")
        with np.load(files[1]) as outputs:
            return dict(outputs)


def _rounded(variables: Variables) -> Variables:
    """Every number replaced by one of its two neighbours in float32."""
    rng = np.random.default_rng(0)

    def neighbour(x: np.ndarray) -> np.ndarray:
        return np.nextafter(x, rng.choice(np.float32([-np.inf, np.inf]), x.shape))

    return jax.tree.map(neighbour, variables)


def _difference(theirs: Mapping[str, np.ndarray], ours: Mapping[str, np.ndarray]) -> float:
    """The largest absolute one of all that `ours` names; NaN if there is any."""
    differences = [
        np.abs(theirs[name].astype(np.float64) - x).max(initial=0)
        if theirs[name].shape == x.shape
        else np.inf
        for name, x in ours.items()
    ]
    return float(np.max(differences))
