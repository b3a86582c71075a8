"""The command: what it writes, checks, refuses and leaves behind."""

import dataclasses
import re

import jax
import numpy as np
import pytest

pytest.importorskip("safetensors", reason="the command is tested on this format")

import sasa_jax
from sasa_jax.export import ExportError, as_safetensors, export, exporting
from sasa_jax.export.check import Agreement
from sasa_jax.export.command import export_model
from sasa_jax.models.pretrained import to_torch


def test_command_writes_what_load_reads(workdir, tmp_path, capsys):
    output = tmp_path / "digits"
    export_model(workdir, "safetensors", output=output)
    screen = capsys.readouterr().out
    assert f"{output}: step 1 as safetensors" in screen
    assert "model.safetensors" in screen
    match = re.search(r"on 8 images of digits:1\.0\.0 test\[:150\]: largest .* JAX (\S+), ", screen)
    assert float(match[1]) <= 1e-4
    assert [path.name for path in tmp_path.iterdir()] == ["digits"]

    run, exported = sasa_jax.load(workdir), sasa_jax.load(output)
    assert exported.class_names == run.class_names == tuple("0123456789")
    assert exported.step == 1 and exported.config == run.config
    jax.tree.map(
        np.testing.assert_array_equal,
        jax.device_get(exported.variables),
        jax.device_get(run.variables),
    )


def test_wrong_weights_are_found_and_removed(workdir, tmp_path, capsys, monkeypatch):
    def tampered(network, folder):
        params = dict(network.variables["params"])
        bias = params["classifier"]["bias"]
        params["classifier"] = params["classifier"] | {"bias": bias + np.float32(2e-4)}
        variables = network.variables | {"params": params}
        as_safetensors.write(dataclasses.replace(network, variables=variables), folder)

    wrong = exporting.Format(tampered, ("safetensors",))
    monkeypatch.setitem(exporting.FORMATS, "safetensors", wrong)
    with pytest.raises(SystemExit) as leave:
        export_model(workdir, "safetensors", output=tmp_path / "digits")
    assert leave.value.code == 1
    assert re.search(
        r"differs from the network by 2\.0e-04, allowed 1\.0e-04: this is", capsys.readouterr().err
    )
    assert not list(tmp_path.iterdir())


def test_a_runtime_that_fails_says_why(classifier, tmp_path, monkeypatch):
    def broken(network, folder):
        (folder / "model.stablehlo").write_bytes(b"nothing")

    monkeypatch.setitem(exporting.FORMATS, "stablehlo", exporting.Format(broken, ()))
    with pytest.raises(ExportError, match=r"the export as stablehlo does not run: \w+"):
        export(classifier, "stablehlo", tmp_path / "digits")
    assert not list(tmp_path.iterdir())


def test_refusals(classifier, detector, workdir, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match=r"--format is missing: one of safetensors, torch, stab"):
        export_model(workdir, None)
    with pytest.raises(ValueError, match=r"--format must be .* \(did you mean 'safetensors'\?\)"):
        export(classifier, "safetensor", tmp_path / "x")
    needs = exporting.Format(as_safetensors.write, ("no_such_module",), "onnx")
    monkeypatch.setitem(exporting.FORMATS, "onnx", needs)
    with pytest.raises(ExportError, match=r"no_such_module .* pip install 'sasa_jax\[onnx\]'"):
        export(classifier, "onnx", tmp_path / "x")
    only = exporting.Format(as_safetensors.write, (), detection=False)
    monkeypatch.setitem(exporting.FORMATS, "torch", only)
    with pytest.raises(ExportError, match=r"detection has safetensors, stablehlo, savedmodel"):
        export(detector, "torch", tmp_path / "x")
    (tmp_path / "mine.txt").touch()
    with pytest.raises(ExportError, match="holds something that is no export"):
        export(classifier, "safetensors", tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_noise_where_the_data_is_absent(classifier, tmp_path, monkeypatch):
    """And an older export is replaced by one that has passed."""

    def absent(config):
        raise sasa_jax.data.DatasetError("not here")

    monkeypatch.setattr(exporting, "open_task", absent)
    monkeypatch.setattr(exporting, "check", lambda *_: Agreement(0.0, 3e-3))
    for _ in range(2):
        text = export(classifier, "safetensors", tmp_path / "out")
        assert "on 8 images of noise: largest difference of logits" in text
        assert "0.0e+00, allowed 6.0e-03, because rounding the weights once more moves" in text
        (tmp_path / "out" / "stale").touch()
    assert "stale" not in text
    names = set(to_torch(classifier.variables))
    assert {"layer1.0.attention.query.weight", "layer2.0.conv2.weight", "fc.weight"} <= names
