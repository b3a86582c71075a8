"""What goes wrong in an export."""

import importlib.util
from collections.abc import Iterable


class ExportError(ValueError):
    """An export that cannot be made or read; says why and what to do."""


class CheckFailedError(Exception):
    """What was exported does not compute what the network does."""


def check_installed(modules: Iterable[str], extra: str) -> None:
    """Raises ExportError with the command that installs them unless all modules are there."""
    for module in modules:
        if importlib.util.find_spec(module) is None:
            raise ExportError(f"{module} is not installed: pip install 'sasa_jax[{extra}]'")
