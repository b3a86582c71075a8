"""The API reference is built without a warning, and every public name is explained."""

import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("pdoc")

from docs.api import public_packages

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = {package.__name__: package for package in public_packages()}


def explained(documented) -> bool:
    """Whether it has a docstring of its own, not one that `dataclass` or `NamedTuple` made."""
    text = documented.__doc__ or ""
    return bool(text) and not re.match(rf"{documented.__name__}\(", text)


@pytest.mark.parametrize("package", PACKAGES.values(), ids=PACKAGES)
def test_what_a_package_exports_is_explained(package):
    exported = [getattr(package, name) for name in package.__all__]
    callables = [value for value in exported if inspect.isfunction(value) or inspect.isclass(value)]
    methods = [
        value
        for owner in filter(inspect.isclass, callables)
        for name, value in vars(owner).items()
        if inspect.isfunction(value) and not name.startswith("_")
    ]
    assert callables
    assert not [value.__qualname__ for value in (*callables, *methods) if not explained(value)]
    assert explained(package)


# A process of its own: the build puts lazy names into the packages.
def test_the_reference_is_built_and_its_first_page_leads_to_every_package(tmp_path):
    subprocess.run([sys.executable, "-m", "docs.api", str(tmp_path)], cwd=ROOT, check=True)
    first = (tmp_path / "sasa_jax.html").read_text()
    assert "sasa_jax.html" in (tmp_path / "index.html").read_text()
    for name in PACKAGES:
        page = name.replace(".", "/") + ".html"
        assert (tmp_path / page).exists()
        assert name == "sasa_jax" or f'href="{page}"' in first
