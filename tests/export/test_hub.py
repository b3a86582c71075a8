"""Push to the Hugging Face Hub and load from it, with a server on this machine in its place."""

import json
import sys

import jax
import numpy as np
import pytest

import sasa_jax
from sasa_jax import hub
from sasa_jax.analysis import count
from sasa_jax.export.card import write_card
from sasa_jax.export.command import export_model
from sasa_jax.export.serving import Network
from sasa_jax.prediction import LoadError
from sasa_jax.tasks.pretrained import load_pretrained
from sasa_jax.training import Writers
from tests.export.fake_hub import TOKEN, FakeHub

ACCURACY = {"accuracy": 0.9166667, "top5_accuracy": 1.0, "loss": 0.25, "correct": 55, "images": 60}


def test_without_the_package_the_command_that_installs_it_is_named(workdir, monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)  # as where it is not installed
    for use in (
        lambda: sasa_jax.load("hf://me/digits"),
        lambda: export_model(workdir, "safetensors", push="me/digits"),
    ):
        with pytest.raises(hub.HubError, match=r"pip install 'sasa_jax\[hub\]'"):
            use()
    assert not (workdir / "export").exists()


@pytest.fixture
def server(monkeypatch, tmp_path):
    constants = pytest.importorskip("huggingface_hub.constants", reason="the extra hub")
    server = FakeHub()
    # They were read from the environment when the package was imported.
    monkeypatch.setattr(constants, "ENDPOINT", server.address)
    template = f"{server.address}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="session")
def evaluated(workdir):
    """The run with the evaluation of its only checkpoint, and one of another step."""
    with Writers(workdir) as writers:
        for step, loss in ((1, 0.25), (2, 0.125)):
            scores = {f"average/{name}": value for name, value in ACCURACY.items()}
            scores |= {"average/loss": loss, "raw/accuracy": 0.5}
            writers.write({"kind": "eval", "step": step, **scores})
        writers.image(1, "attention", np.zeros((4, 6, 3), np.uint8))
    return workdir


def test_what_was_pushed_is_loaded(evaluated, server, tmp_path, capsys):
    export_model(evaluated, "safetensors", output=tmp_path / "out", push="me/digits")
    assert "me/digits: pushed; sasa_jax.load('hf://me/digits')" in capsys.readouterr().out
    wanted = {"README.md", "attention.png", "config.json", "model.safetensors"}
    assert server.files["me/digits"].keys() == wanted
    server.files["me/digits"]["model.py"] = b"raise SystemExit"  # nobody asks for it

    run = sasa_jax.load(evaluated)
    for source in ("hf://me/digits", "hf://me/digits@main"):
        model = sasa_jax.load(source)
        assert (model.step, model.class_names) == (run.step, run.class_names)
        both = jax.device_get((model.variables, run.variables))
        jax.tree.map(np.testing.assert_array_equal, *both)
    wanted = run.task.shapes
    begun = load_pretrained("init_from", "hf://me/digits", run.config["model"], wanted)
    jax.tree.map(np.testing.assert_array_equal, begun, jax.device_get(run.variables))
    sent = [line for line in server.requests if line.startswith("GET") and "/resolve/" in line]
    assert {line.rpartition("/")[2] for line in sent} == {"config.json", "model.safetensors"}
    assert len(sent) == 2  # the second time they were in the cache

    server.shutdown()  # no network: from the cache
    server.server_close()
    assert sasa_jax.load("hf://me/digits").step == 1
    with pytest.raises(hub.HubError, match=r"could not be used for me/other: .*refused"):
        sasa_jax.load("hf://me/other")
    with pytest.raises(hub.HubError, match=r"could not be used for me/digits: .*refused"):
        export_model(evaluated, "safetensors", push="me/digits")


def test_refusals_come_before_the_export(evaluated, server, tmp_path, monkeypatch):
    def refusal(push, **options):
        with pytest.raises(ValueError) as refused:
            export_model(evaluated, **{"format": "safetensors", **options}, push=push)
        assert "\n" not in str(refused.value)
        return str(refused.value)

    assert "'digits' is not OWNER/NAME on the Hub" in refusal("digits")
    assert "'a b/c' is not OWNER/NAME on the Hub" in refusal("a b/c")
    assert "--push needs --format=safetensors" in refusal("me/digits", format="stablehlo")
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    assert "HF_TOKEN environment variable is invalid" in refusal("me/digits")
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "none"))
    assert "not logged in to the Hub: `hf auth login`" in refusal("me/digits")
    assert not (evaluated / "export").exists()


def test_what_is_not_there_is_named(server, tmp_path):
    server.files["me/text"] = {"a.txt": b"hello", "config.json": b"{}"}
    for source, message in (
        ("hf://me/digits", "me/digits is not on the Hub, or not for everyone: `hf auth login`"),
        ("hf://me/text@v2", "me/text on the Hub has no such branch, tag or commit"),
        ("hf://digits", "'digits' is not OWNER/NAME"),
    ):
        with pytest.raises(hub.HubError, match=message):
            sasa_jax.load(source)
    with pytest.raises(LoadError, match=r"config\.json is damaged, or not of an export"):
        sasa_jax.load("hf://me/text")
    (tmp_path / "a").write_text("hello")
    with pytest.raises(hub.HubError, match=r"could not be used for other/digits: .*not your name"):
        hub.upload(tmp_path, "other/digits")
    with pytest.raises(ValueError, match="--output is missing"):
        export_model("hf://me/digits", "safetensors")


def read(folder):
    huggingface_hub = pytest.importorskip("huggingface_hub", reason="the extra hub")
    card = huggingface_hub.ModelCard.load(folder / "README.md")
    table = card.text.partition("|---|---|\n")[2].partition("\n\n")[0]
    rows = [line.strip("| ").split(" | ") for line in table.splitlines()]
    return card, dict(rows)


def test_the_card_tells_the_run_s_own_figures(classifier, evaluated, tmp_path):
    pytest.importorskip("huggingface_hub", reason="the extra hub")
    network = Network.of(classifier)
    write_card(
        tmp_path,
        Network(network.config, network.class_names, 1, network.variables),
        evaluated,
        "me/digits",
    )
    card, rows = read(tmp_path)
    assert card.data.library_name == "sasa_jax" and "sa_resnet26" in card.data.tags
    assert card.data.pipeline_tag == "image-classification"
    results = {result.metric_type: result for result in card.data.eval_results}
    assert {name: result.metric_value for name, result in results.items()} == {
        "accuracy": 0.9166667,
        "top5_accuracy": 1.0,
        "loss": 0.25,
    }
    assert (results["accuracy"].dataset_name, results["accuracy"].dataset_split) == (
        "digits",
        "test[:150]",
    )
    assert rows["accuracy (digits test[:150], 60 images)"] == "0.9167"
    parameters = sum(x.size for x in jax.tree.leaves(classifier.variables["params"]))
    assert rows["parameters"] == f"{parameters:,}"
    flops = count(classifier.task.build_model, 32).flops.plain
    assert rows["FLOPS of one image of 32x32, a multiply-add as two"] == f"{flops:,}"
    assert rows["trained on"] == "digits train, 1 steps"
    assert "![The last evaluation](attention.png)" in card.text
    assert (tmp_path / "attention.png").read_bytes() == (evaluated / "attention.png").read_bytes()
    shown = json.loads(card.text.partition("```json\n")[2].partition("```")[0])
    assert shown["model"]["window"] == 3 and shown["learning_rate"] == 0.3
    assert "dir" not in shown["data"]  # of the machine that trained


def test_the_card_of_what_was_not_evaluated_says_so(detector, tmp_path):
    pytest.importorskip("huggingface_hub", reason="the extra hub")
    write_card(tmp_path, Network.of(detector), tmp_path / "nowhere", "me/scenes")
    card, rows = read(tmp_path)
    assert card.data.eval_results is None and card.data.pipeline_tag == "object-detection"
    assert rows["evaluation"] == "not run at this step"
    assert "result.boxes" in card.text and ".png" not in card.text
