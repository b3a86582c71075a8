"""--format=torch: the weights and a PyTorch module that loads them."""

import shutil
from pathlib import Path
from typing import Any

from sasa_jax.export.folder import describe, write_config, write_weights
from sasa_jax.export.serving import Network
from sasa_jax.models import model_options
from sasa_jax.tasks.image_task import given

SOURCE = Path(__file__).with_name("sasa_torch.py")

# Options of `create_model` that change how and not what is computed, or the random start.
_NOT_IN_TORCH = (
    "name",
    "dtype",
    "param_dtype",
    "implementation",
    "bn_group_size",
    "query_key_init_scale",
    "embedding_init_std",
    "zero_init_last_bn",
)


def write(network: Network, folder: Path) -> None:
    """Writes model.safetensors, config.json and sasa_torch.py; its `load` takes the folder."""
    shutil.copyfile(SOURCE, folder / SOURCE.name)
    write_weights(folder, network, "torch")
    write_config(folder, describe(network, "torch") | {"network": torch_options(network)})


def torch_options(network: Network) -> dict[str, Any]:
    """The arguments of sasa_torch.ResNet."""
    model = network.config["model"]
    options = model_options(model["name"]) | given(model)
    options["num_classes"] = len(network.class_names)
    if isinstance(options["window"], int):
        options["window"] = [options["window"]] * len(options["blocks"])
    return {key: value for key, value in options.items() if key not in _NOT_IN_TORCH}
