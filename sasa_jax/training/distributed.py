"""Processes joined into one run, one mesh over all their devices, batches split over it."""

import contextlib
import os
import socket
import sys
import threading
import traceback
from collections.abc import Iterator, Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from orbax.checkpoint.multihost import get_barrier_sync_fn

_HOW = "--coordinator=HOST:PORT --process=INDEX/COUNT on each host"
# What launchers tell each of several processes that they start together.
_TASKS = {"SLURM": "SLURM_STEP_NUM_TASKS", "Open MPI": "OMPI_COMM_WORLD_SIZE"}


def connect(
    coordinator: str,
    process: str | None = None,
    *,
    seconds: float = 300.0,
    dead_after: float = 60.0,
) -> None:
    """Joins the processes of a run; before anything else of JAX is used.

    If they have not all come in time, the process says what it could and could not reach, and
    exits with 1. When one dies later on, JAX names it and aborts the others.

    Args:
        coordinator: HOST:PORT of process 0, where it listens; or "auto" on Cloud TPU and under
            SLURM, Open MPI and Kubernetes, which tell each process all of this.
        process: "INDEX/COUNT", e.g. "0/4"; None with "auto".
        seconds: to wait for the others.
        dead_after: seconds without a sign of life.

    Raises:
        ValueError: an argument that cannot be understood, or "auto" where nothing is told.
    """
    address, index, count = None, None, None
    if coordinator != "auto":
        address, index, count = _parse(coordinator, process)
    elif process is not None:
        raise ValueError(f"--process={process} goes with --coordinator=HOST:PORT, not with auto")
    # StopGuard notes SIGTERM; JAX's own service would take the signal away from it.
    jax.config.update("jax_enable_preemption_service", False)
    # JAX would abort the process with a stack of C++; this is a little earlier.
    late = threading.Timer(seconds, _leave, (address, index, count, seconds))
    late.daemon = True
    late.start()
    try:
        jax.distributed.initialize(
            address,
            count,
            index,
            initialization_timeout=round(seconds) + 60,
            heartbeat_timeout_seconds=round(dead_after),
            cluster_detection_method="deactivate" if address else None,
        )
    except ValueError as error:
        raise ValueError(
            f"--coordinator=auto finds no Cloud TPU, SLURM, Open MPI or Kubernetes ({error}): "
            f"give {_HOW}"
        ) from error
    finally:
        late.cancel()


@contextlib.contextmanager
def failing_alone() -> Iterator[None]:
    """Of several processes, one that fails in here exits at once, with the code it would have had.

    On the orderly way out JAX waits for the others, and they for this one.
    """
    try:
        yield
    except BaseException as error:
        together = isinstance(error, SystemExit) and error.code in (None, 0, 130, 143)
        if not jax.distributed.is_initialized() or together:
            raise
        if not isinstance(error, SystemExit):
            traceback.print_exc()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(error.code if isinstance(error, SystemExit) else 1)


def check_connected(environment: Mapping[str, str] = os.environ) -> None:
    """Raises ValueError if this process is one of several that do not know of one another."""
    if jax.distributed.is_initialized():
        return
    for launcher, variable in _TASKS.items():
        if int(environment.get(variable) or 1) > 1:
            raise ValueError(
                f"{launcher} started {environment[variable]} processes, which would each train "
                "alone: add --coordinator=auto, or start one"
            )
    if jax.process_count() > 1:
        raise ValueError(
            f"the devices belong to {jax.process_count()} hosts: start the same command on all of "
            "them, with --coordinator=auto"
        )


def _parse(coordinator: str, process: str | None) -> tuple[str, int, int]:
    host, _, port = coordinator.rpartition(":")
    index, _, count = (process or "").partition("/")
    if not (host and port.isdecimal() and index.isdecimal() and count.isdecimal()):
        raise ValueError(
            f"got --coordinator={coordinator} --process={process}: expected auto, or {_HOW}, "
            "e.g. --coordinator=10.0.0.2:8482 --process=0/4"
        )
    if int(index) >= int(count):
        raise ValueError(
            f"--process={process}: of {count} processes the last is {int(count) - 1}/{count}"
        )
    return coordinator, int(index), int(count)


def _leave(address: str | None, index: int | None, count: int | None, seconds: float) -> None:
    """Says why the others may be missing and ends the process, which is stuck in JAX."""
    who, others = f"process {index} of {count}", "the others"
    if address is None:
        who, reached = "this process", "and the cluster told its address"
    elif index == 0:
        reached = "which is this process"
    else:
        others = "process 0, or not all of the others,"
        host, port = address.rsplit(":", 1)
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()
            reached = "which answers: another process is missing"
        except OSError as error:
            reached = f"which does not answer ({error})"
    at = f"at {address}" if address else "at process 0"
    print(
        f"error: {who} waited {seconds:g} s and {others} did not come to the coordinator {at}, "
        f"{reached}. On every host: does the same command run, with its own index? Does it name "
        "the same coordinator? From there, does `nc -vz HOST PORT` reach it, or does a firewall "
        "close the port?",
        file=sys.stderr,
        flush=True,
    )
    os._exit(1)


def data_mesh() -> Mesh:
    """All devices of all processes along one axis, "data"."""
    return jax.make_mesh((jax.device_count(),), ("data",), axis_types=(AxisType.Auto,))


def wait_for_all(name: str, seconds: int = 1800) -> None:
    """Returns when every process is here.

    The devices' first collective would wait, too, but on CPUs for 30 seconds only, and a busy host
    may compile for longer than another by more than that.

    Args:
        name: of the place, once in a run.
        seconds: until it is given up with an error of JAX's.
    """
    get_barrier_sync_fn()(key=name, timeout_ms=1000 * seconds)


def replicated(mesh: Mesh) -> NamedSharding:
    """The whole array on every device."""
    return NamedSharding(mesh, PartitionSpec())


def split_by_batch(mesh: Mesh) -> NamedSharding:
    """The first axis split over the devices."""
    return NamedSharding(mesh, PartitionSpec("data"))


def put_batch(batch: dict[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """Global arrays from the part of the batch that each process holds."""
    sharding = split_by_batch(mesh)
    return {
        name: jax.make_array_from_process_local_data(sharding, value)
        for name, value in batch.items()
    }


class Agreement:
    """A number that any process may raise, and that all learn of at the same call.

    The processes must call it equally often. It waits for nothing: a call gives what was raised
    up to the call before, which the devices have compared meanwhile. One process learns at once.
    """

    def __init__(self, mesh: Mesh):
        self._sharding = split_by_batch(mesh)
        self._largest = jax.jit(jnp.max, out_shardings=replicated(mesh))
        self._pending: jax.Array | None = None

    def __call__(self, number: int) -> int:
        """The largest number of all processes; 0 is none."""
        if jax.process_count() == 1:
            return number
        own = np.full(jax.local_device_count(), number, np.int32)
        previous = self._pending
        self._pending = self._largest(jax.make_array_from_process_local_data(self._sharding, own))
        return 0 if previous is None else int(previous)
