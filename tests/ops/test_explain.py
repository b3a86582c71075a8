"""`python -m sasa_jax.ops.local_attention --explain`: the reasons behind the choice."""

import runpy
import sys

import pytest

from sasa_jax.ops.local_attention.registry import IMPLEMENTATIONS


def explain(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, *arguments: str) -> str:
    monkeypatch.setattr(sys, "argv", ["local_attention", "--explain", *arguments])
    runpy.run_module("sasa_jax.ops.local_attention", run_name="__main__")
    return capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments, picked, reason",
    [
        (
            "--shape 56,56,8,8 --dtype bfloat16 --platform tpu",
            "tpu_matrix",
            "25% of the vector unit",
        ),
        ("--shape 56,56,8,8 --batch 128 --platform tpu", "tpu_lanes", "3136 keys for every"),
        ("--shape 56,56,8,8 --dtype float16 --platform tpu", "rows", "dtype float16; it takes"),
        ("--shape 200,200,8,32 --platform tpu", "rows", "MiB of fast memory, more than"),
        ("--shape 7,7,8,64 --platform cpu", "dense", "written for TPU; on cpu"),
        ("--shape 14,14,8,128 --platform gpu", "rows", "head dimension 128; it takes up to 64"),
    ],
)
def test_explain(arguments: str, picked: str, reason: str, monkeypatch, capsys) -> None:
    found = explain(monkeypatch, capsys, *arguments.split())
    (line,) = [line for line in found.splitlines() if line.endswith(" picked")]
    assert line.split()[0] == picked
    assert reason in found
    assert all(name in found for name in IMPLEMENTATIONS)


@pytest.mark.parametrize(
    "arguments, error",
    [
        ("--shape 56,56,8", "expected 4 sizes such as 56,56,8,8"),
        ("--shape 56,56,8,0", "expected a positive integer"),
        ("--shape 56,56,8,8 --window 4", "window: got 4, expected an odd positive integer"),
    ],
)
def test_bad_arguments(arguments: str, error: str, monkeypatch, capsys) -> None:
    with pytest.raises(SystemExit):
        explain(monkeypatch, capsys, *arguments.split())
    assert error in capsys.readouterr().err
