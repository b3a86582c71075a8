"""--format=onnx: for ONNX Runtime and the other runtimes of the format.

The converter is PyTorch's, on our PyTorch module: those of JAX do not take the network as it is
(jax2onnx 0.17.1: its patches of jax.nn and flax refuse a softmax over two axes and the pool's
arguments, and it gives concatenations wrong shapes).
"""

import logging
import tempfile
import warnings
from pathlib import Path

from sasa_jax.export import as_torch
from sasa_jax.export.folder import describe, write_config
from sasa_jax.export.serving import Network

MODEL = "model.onnx"


def write(network: Network, folder: Path) -> None:
    """Writes model.onnx and config.json.

        session = onnxruntime.InferenceSession("model.onnx")
        logits = session.run(["logits"], {"images": images})[0]   # uint8 [B, S, S, 3]

    The parameters are inside.
    """
    import torch  # an extra, which sasa_torch imports too

    from sasa_jax.export import sasa_torch

    class Serving(torch.nn.Module):
        def __init__(self, model: torch.nn.Module):
            super().__init__()
            self.model = model

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return self.model(self.model.normalise(images.permute(0, 3, 1, 2)))

    with tempfile.TemporaryDirectory() as scratch:
        as_torch.write(network, Path(scratch))
        model = Serving(sasa_torch.load(scratch)).eval()
    (shape,) = network.input_shapes(2).values()
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # it names what torchvision would add
    with warnings.catch_warnings(action="ignore", category=FutureWarning):  # PyTorch's of its own
        torch.onnx.export(
            model,
            (torch.zeros(shape.shape, dtype=torch.uint8),),
            folder / MODEL,
            input_names=["images"],
            output_names=["logits"],
            dynamic_shapes=({0: torch.export.Dim("b")},),
            external_data=False,
            dynamo=True,
            verbose=False,
        )
    write_config(folder, describe(network, "onnx"))
