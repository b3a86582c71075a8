"""Strict numerics for every test: no silent promotion, four CPU devices, warnings as errors.

One compilation cache lives as long as one run, so that tests which share a computation compile it
once; it is never kept, so that no test passes on yesterday's program.
"""

import atexit
import os
import shutil
import tempfile
from pathlib import Path

# Before JAX is imported, and in the environment so that subprocesses of a test share it.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    cache = tempfile.mkdtemp(prefix="sasa_jax_test_cache_")
    os.environ["JAX_COMPILATION_CACHE_DIR"] = cache
    atexit.register(shutil.rmtree, cache, ignore_errors=True)
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.5"
os.environ["JAX_PLATFORMS"] = os.environ.get("JAX_PLATFORMS", "cpu")
if os.environ["JAX_PLATFORMS"] == "cpu":
    os.environ["TRITON_INTERPRET"] = "1"  # read when Triton is imported, where it is installed
os.environ["MPLBACKEND"] = "agg"

import jax
import pytest

jax.config.update("jax_num_cpu_devices", 4)
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")
# Accelerators would round what tests compare with; the kernels see to themselves.
if os.environ["JAX_PLATFORMS"] != "cpu":
    jax.config.update("jax_default_matmul_precision", "highest")

SHARED = Path(__file__).resolve().parents[2] / "shared"


@pytest.fixture
def x64():
    """Double precision for one test."""
    with jax.enable_x64(True):
        yield


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real images beside the repository."""
    if not (SHARED / "data").is_dir():
        pytest.skip("../shared/data is absent: no real images to test with")
    return SHARED / "data"
