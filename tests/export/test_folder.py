"""Exported folders that are damaged, or something else."""

import json
import shutil

import numpy as np
import pytest

pytest.importorskip("safetensors", reason="exports of weights need safetensors")

import jax
from safetensors import numpy as safetensors

from sasa_jax.export import ExportError, as_safetensors, read_safetensors
from sasa_jax.export.serving import Network


@pytest.fixture(scope="module")
def exported(detector, tmp_path_factory):
    folder = tmp_path_factory.mktemp("exported")
    as_safetensors.write(Network.of(detector), folder)
    return folder


@pytest.fixture
def folder(exported, tmp_path):
    return shutil.copytree(exported, tmp_path / "copy")


def test_round_trip(detector, exported):
    config, class_names, step, variables = read_safetensors(exported)
    assert class_names == detector.class_names and step == detector.step
    assert config["anchors"]["size"] == detector.config["anchors"]["size"]
    jax.tree.map(np.testing.assert_array_equal, variables, jax.device_get(detector.variables))


def rewrite(folder, change):
    path = folder / "model.safetensors"
    tensors = safetensors.load_file(path)
    change(tensors)
    safetensors.save_file(tensors, path)


def reconfigure(folder, change):
    description = json.loads((folder / "config.json").read_text())
    change(description)
    (folder / "config.json").write_text(json.dumps(description))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / "config.json").unlink(), "is no exported folder: it has no config.json"),
        (lambda f: (f / "config.json").write_text("{"), "config.json is damaged"),
        (lambda f: (f / "config.json").write_text("[]"), "config.json is damaged"),
        (lambda f: (f / "model.safetensors").unlink(), "holds no model.safetensors: it is an"),
        (lambda f: (f / "model.safetensors").write_bytes(b"{}"), "model.safetensors is damaged"),
        (
            lambda f: (f / "model.safetensors").write_bytes(
                (f / "model.safetensors").read_bytes()[:-100]
            ),
            "model.safetensors is damaged",
        ),
        (
            lambda f: rewrite(f, lambda t: t.pop("fpn.p3.weight")),
            r"fpn\.p3\.weight is missing .* Export again",
        ),
        (
            lambda f: rewrite(f, lambda t: t.update(extra=np.zeros(3, np.float32))),
            "extra belongs to no part of the network",
        ),
        (
            lambda f: rewrite(f, lambda t: t.update({"fpn.p3.weight": np.zeros((3, 2))})),
            r"fpn\.p3\.weight is \[3, 2\] and should be \[16, 16, 3, 3\]",
        ),
        (lambda f: reconfigure(f, lambda d: d.update(format_version=9)), "has version 9 of the"),
        (lambda f: reconfigure(f, lambda d: d.pop("step")), r"lacks \['step'\]"),
        (
            lambda f: reconfigure(f, lambda d: d["config"].pop("model")),
            "config.json lacks 'model'",
        ),
        (
            lambda f: reconfigure(f, lambda d: d["config"]["model"].update(name="resnet5")),
            "no model is named 'resnet5'",
        ),
    ],
)
def test_damage_is_named(folder, damage, message):
    damage(folder)
    with pytest.raises(ExportError, match=message):
        read_safetensors(folder)
