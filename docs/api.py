"""Builds the API reference from the docstrings of what the packages export.

    python -m docs.api build/docs   # `make docs`: then open build/docs/index.html

Only what a package names in `__all__` is a promise to users, so only that has a page. Any warning
fails the build.
"""

import importlib
import sys
import warnings
from pathlib import Path
from types import ModuleType

import pdoc
import pdoc.render

import sasa_jax

ROOT = Path(sasa_jax.__file__).parent
# Operators are packages of `ops`; what lies deeper are implementations, chosen by name.
PLACES = ("__init__.py", "*/__init__.py", "ops/*/__init__.py")


def public_packages() -> list[ModuleType]:
    """The packages that declare `__all__`, imported, `sasa_jax` first."""
    files = [file for place in PLACES for file in sorted(ROOT.glob(place))]
    names = [".".join(file.parent.relative_to(ROOT.parent).parts) for file in files]
    packages = [importlib.import_module(name) for name in names]
    return [package for package in packages if hasattr(package, "__all__")]


def build(output: Path) -> None:
    """Writes the pages into the folder `output`; raises at the first warning."""
    packages = public_packages()
    for package in packages:  # pdoc sees only what is in a module already: import the lazy names
        for name in package.__all__:
            vars(package).setdefault(name, getattr(package, name))
    pdoc.render.configure(docformat="google", footer_text=f"sasa_jax {sasa_jax.__version__}")
    with warnings.catch_warnings(action="error"):
        pdoc.pdoc(*(package.__name__ for package in packages), output_directory=output)


if __name__ == "__main__":
    build(Path(sys.argv[1]))
    print(Path(sys.argv[1]) / "index.html")
