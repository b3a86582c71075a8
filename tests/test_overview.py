"""`python -m sasa_jax` names what there is, all of it and nothing else."""

import os
import subprocess
import sys
import tomllib
from pathlib import Path

import jax
import pytest

import sasa_jax
from sasa_jax import __main__ as overview

ROOT = Path(__file__).resolve().parents[1]
FOR_DEVELOPERS = {"colabs", "docs", "test", "test-gpu"}


def test_it_names_every_module_that_is_a_command():
    guarded = {
        ".".join(file.relative_to(ROOT).with_suffix("").parts)
        for file in (ROOT / "sasa_jax").rglob("*.py")
        if '\nif __name__ == "__main__":' in file.read_text()
        and not file.is_relative_to(ROOT / "sasa_jax" / "export" / "runners")
    }
    commands = {name.removesuffix(".__main__") for name in guarded} - {"sasa_jax"}
    assert set(overview.COMMANDS) == commands


def test_it_names_every_extra_and_how_to_see_it():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    assert set(overview.EXTRAS) == set(extras) - FOR_DEVELOPERS
    for name, (_, modules) in overview.EXTRAS.items():
        required = " ".join(extras[name]).replace("-", "_").replace("jax[tpu]", "libtpu")
        assert all(module in required for module in modules)


@pytest.mark.parametrize("there, said", [(True, "installed"), (False, "[coco]'")])
def test_an_extra_that_is_missing_comes_with_its_command(there, said, monkeypatch, capsys):
    monkeypatch.setattr(
        overview.importlib.util, "find_spec", lambda module: object() if there else None
    )
    overview.main()
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("  coco ")]
    assert line.endswith(said) and ("not installed" in line) != there


def test_it_runs_alone_and_imports_neither_data_nor_figures():
    script = (
        "import runpy, sys; runpy.run_module('sasa_jax', run_name='__main__'); "
        "heavy = {'tensorflow_datasets', 'matplotlib', 'orbax', 'cv2'} & set(sys.modules); "
        "assert not heavy, heavy"
    )
    flags = {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": "--xla_force_host_platform_device_count=3"}
    run = [sys.executable, "-c", script]
    printed = subprocess.run(run, cwd=ROOT, env=os.environ | flags, capture_output=True, text=True)
    assert printed.returncode == 0, printed.stderr
    assert f"sasa_jax {sasa_jax.__version__}, JAX {jax.__version__}" in printed.stdout
    assert "Devices: 3 cpu (cpu)" in printed.stdout
    for name in (*sasa_jax.list_models(), *overview.COMMANDS, *overview.EXTRAS):
        assert name in printed.stdout
    assert max(map(len, printed.stdout.splitlines())) <= 100
