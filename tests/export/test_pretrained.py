"""Weights under torchvision's names, which are timm's: logits, names, and what does not fit."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import nnx

import sasa_jax
from sasa_jax.export import as_safetensors
from sasa_jax.export.serving import Network
from sasa_jax.models import apply, split
from sasa_jax.models.pretrained import from_torch, to_torch
from sasa_jax.tasks import open_task
from sasa_jax.tasks.pretrained import load_pretrained
from tests.export.common import DIGITS
from tests.parity.common import random_variables
from tests.training.small_digits import small_digits

SMALL = {"blocks": (1, 2), "width": 0.25}


def abstract(name: str, **options):
    """The sides of a network without memory."""
    return split(nnx.eval_shape(lambda: sasa_jax.create_model(name, **options, rngs=nnx.Rngs(0))))


def resnet_shapes(
    blocks: Sequence[int], width: int, classes: int
) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Names and shapes as torchvision's bottleneck ResNets have them."""

    def batch_norm(name: str, channels: int) -> Iterator[tuple[str, tuple[int, ...]]]:
        for part in ("weight", "bias", "running_mean", "running_var"):
            yield f"{name}.{part}", (channels,)
        yield f"{name}.num_batches_tracked", ()

    yield "conv1.weight", (width, 3, 7, 7)
    yield from batch_norm("bn1", width)
    inputs = width
    for layer, count in enumerate(blocks, start=1):
        inner = width * 2 ** (layer - 1)
        for block in range(count):
            name = f"layer{layer}.{block}"
            kernels = ((inner, inputs, 1, 1), (inner, inner, 3, 3), (4 * inner, inner, 1, 1))
            for number, shape in enumerate(kernels, start=1):
                yield f"{name}.conv{number}.weight", shape
                yield from batch_norm(f"{name}.bn{number}", shape[0])
            if block == 0:
                yield f"{name}.downsample.0.weight", (4 * inner, inputs, 1, 1)
                yield from batch_norm(f"{name}.downsample.1", 4 * inner)
            inputs = 4 * inner
    yield "fc.weight", (classes, inputs)
    yield "fc.bias", (classes,)


def random_state(*arguments) -> dict[str, np.ndarray]:
    """Weights with which activations stay of order one."""
    rng, state = np.random.default_rng(0), {}
    for name, shape in resnet_shapes(*arguments):
        if len(shape) > 1:
            values = rng.normal(0, np.prod(shape[1:]) ** -0.5, shape)
        elif name.endswith(("bias", "running_mean")):
            values = rng.normal(0, 0.3, shape)
        else:
            values = rng.uniform(0.5, 1.5, shape)
        state[name] = np.asarray(values, np.float32)
    return state


def test_logits_are_those_of_the_torchvision_architecture():
    """Written out with PyTorch's functions, as torchvision's ResNet (v1.5) computes."""
    torch = pytest.importorskip("torch", reason="the reference needs PyTorch")
    F = torch.nn.functional
    state = {name: torch.from_numpy(x) for name, x in random_state((1, 2), 16, 7).items()}
    images = np.random.default_rng(1).normal(size=(2, 45, 64, 3)).astype(np.float32)

    def norm(x, name):
        parts = ("running_mean", "running_var", "weight", "bias")
        return F.batch_norm(x, *(state[f"{name}.{part}"] for part in parts))

    x = torch.from_numpy(images).permute(0, 3, 1, 2)
    x = F.relu(norm(F.conv2d(x, state["conv1.weight"], stride=2, padding=3), "bn1"))
    x = F.max_pool2d(x, 3, stride=2, padding=1)
    for name in ("layer1.0", "layer2.0", "layer2.1"):
        stride = 2 if name == "layer2.0" else 1
        y = F.relu(norm(F.conv2d(x, state[f"{name}.conv1.weight"]), f"{name}.bn1"))
        y = F.conv2d(y, state[f"{name}.conv2.weight"], stride=stride, padding=1)
        y = F.conv2d(F.relu(norm(y, f"{name}.bn2")), state[f"{name}.conv3.weight"])
        y = norm(y, f"{name}.bn3")
        if f"{name}.downsample.0.weight" in state:
            x = F.conv2d(x, state[f"{name}.downsample.0.weight"], stride=stride)
            x = norm(x, f"{name}.downsample.1")
        x = F.relu(x + y)
    expected = F.linear(x.mean((2, 3)), state["fc.weight"], state["fc.bias"]).numpy()

    variables = from_torch(state, "resnet26", **SMALL)
    graphdef, _ = abstract("resnet26", num_classes=7, **SMALL)
    logits = jax.jit(apply, static_argnums=0)(graphdef, variables, images)[0]
    assert np.abs(expected).max() > 1
    np.testing.assert_allclose(logits, expected, atol=1e-5 * np.abs(expected).max())


def test_resnet50_has_torchvisions_names_and_goes_there_and_back():
    state = {
        name: np.full(shape, number, np.float32)
        for number, (name, shape) in enumerate(resnet_shapes((3, 4, 6, 3), 64, 1000))
    }
    tensors = to_torch(from_torch(state, "resnet50"))
    assert len(tensors) == 267
    assert tensors.keys() == {name for name in state if "num_batches" not in name}
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(tensor, state[name])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("layer1.0.conv2.weight"), r"layer1\.0\.conv2\.weight is missing"),
        (lambda s: s.update({"layer2.2.bn1.bias": 0}), r"layer2\.2\.bn1\.bias belongs to no part"),
        (
            lambda s: s.update({"fc.weight": np.zeros((7, 9))}),
            r"fc\.weight is \[7, 9\] and should be \[7, 128\]",
        ),
    ],
)
def test_another_network_is_refused(change, message):
    state = random_state((1, 2), 16, 7)
    change(state)
    with pytest.raises(ValueError, match=message):
        from_torch(state, "resnet26", **SMALL)


def test_backbone_of_a_detector(tmp_path: Path):
    """backbone_from takes a file of such weights; the classifier is left out."""
    safetensors = pytest.importorskip("safetensors.numpy", reason="the file's format")
    file = tmp_path / "resnet.safetensors"
    state = random_state((1, 2), 16, 7)
    safetensors.save_file(state, file)
    _, wanted = abstract("resnet26", num_classes=None, **SMALL)
    model = {"name": "resnet26", "dtype": None, **SMALL}
    loaded = to_torch(load_pretrained("backbone_from", str(file), model, wanted))
    assert set(state) - set(loaded) == {"fc.weight", "fc.bias"} | {
        name for name in state if "num_batches" in name
    }
    np.testing.assert_array_equal(loaded["layer2.1.conv2.weight"], state["layer2.1.conv2.weight"])
    with pytest.raises(ValueError, match=r"backbone_from .* another network: .* config\.model"):
        load_pretrained("backbone_from", str(file), model | {"blocks": (2, 2)}, wanted)
    (tmp_path / "resnet.pth").write_bytes(b"")
    for name, message in {
        "none.safetensors": "there is no such file",
        "none": "there is no such file or folder",
        "resnet.pth": r"no \.safetensors file; .*save_file",
        "": r"neither a checkpoint nor model\.safetensors",
    }.items():
        with pytest.raises(ValueError, match=rf"backbone_from .*: .*{message}"):
            load_pretrained("backbone_from", str(tmp_path / name), model, wanted)


@pytest.mark.parametrize("inside", [".", "model.safetensors"])
def test_an_export_is_where_training_begins(classifier, data_dir, tmp_path, inside):
    as_safetensors.write(Network.of(classifier), tmp_path)
    options = DIGITS | {"init_from": str(tmp_path / inside)}
    task = open_task(small_digits(data_dir, **options))
    jax.tree.map(
        np.testing.assert_array_equal, task.pretrained(), jax.device_get(classifier.variables)
    )
    assert task.description()["weights"] == f"from {tmp_path / inside}"
    # No shape tells it.
    with pytest.raises(ValueError, match=r"init_from .*boundary is 'zero' there and 'mask' here"):
        open_task(small_digits(data_dir, **options, model__boundary="mask"))
    (tmp_path / "config.json").write_text("{}")  # as beside timm's weights
    assert "classifier" in open_task(small_digits(data_dir, **options)).pretrained()["params"]


def test_attention_goes_there_and_back():
    options = {"blocks": (1, 1, 1), "width": 0.125, "num_heads": 2, "per_head_embeddings": True}
    options |= {"attention_groups": (1, 2), "grouped_projections": True, "query_key_norm": "rms"}
    _, shapes = abstract("sa_resnet26", **options)
    variables = jax.tree.map(np.float32, random_variables(shapes, seed=0))
    back = from_torch(to_torch(variables), "sa_resnet26", **options)
    jax.tree.map(np.testing.assert_array_equal, back, variables)
