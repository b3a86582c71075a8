"""Prints what the tests are about to run on."""

import importlib.metadata
import platform


def version(package: str) -> str:
    try:
        return f"{package} {importlib.metadata.version(package)}"
    except importlib.metadata.PackageNotFoundError:
        return f"no {package}"


packages = ("jax", "flax", "optax", "orbax-checkpoint", "grain", "tensorflow-datasets", "torch")
print(f"Python {platform.python_version()},", ", ".join(map(version, packages)), flush=True)
