"""The training step of a convolutional ResNet-50 as a PyTorch user would have it.

Channels last, bfloat16 by autocast on a GPU (float32 on CPU), compiled there, Nesterov momentum,
label smoothing: what the step of configs/resnet50.py does, but for the average of the weights. On
the GPU if JAX computes there, else on the CPU.
"""

from collections.abc import Callable

import jax

from benchmarks.common import cores
from benchmarks.torch_peers import compiled
from sasa_jax.training.memory import Memory

try:
    import torch
    from torch import nn
except ImportError:
    torch = None

NAME = "pytorch_resnet50"
GROUPS = ((64, 3), (128, 4), (256, 6), (512, 3))  # inner channels, blocks


def missing() -> str | None:
    """Why the step cannot be run, or None."""
    if torch is None:
        return "PyTorch is not installed"
    if jax.default_backend() == "gpu" and not torch.cuda.is_available():
        return "this PyTorch has no CUDA"
    return None


def step(batch: int, size: int, steps: int) -> tuple[Callable[[], None], Callable[[], Memory]]:
    """(a call that takes so many steps and returns when they are done, the memory it then took)."""
    torch.set_num_threads(cores())
    device = "cuda" if jax.default_backend() == "gpu" else "cpu"
    torch.manual_seed(0)
    model = _resnet50().to(device, memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(
        model.parameters(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=1e-4
    )
    loss_of = nn.CrossEntropyLoss(label_smoothing=0.1)
    images = torch.randn(batch, 3, size, size, device=device)
    images = images.to(memory_format=torch.channels_last)
    labels = torch.randint(1000, (batch,), device=device)
    network = compiled(model) if device == "cuda" else model

    def call() -> None:
        for _ in range(steps):
            with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
                loss = loss_of(network(images), labels)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        if device == "cuda":
            torch.cuda.synchronize()

    def memory() -> Memory:
        state = 2 * sum(x.nbytes for x in model.parameters())  # with the momentum
        peak = torch.cuda.max_memory_allocated() if device == "cuda" else state
        return Memory(arguments=state, temporaries=peak - state, new_outputs=0)

    return call, memory


def _resnet50() -> "nn.Module":
    layers = [
        nn.Conv2d(3, 64, 7, stride=2, padding=3, bias=False),
        nn.BatchNorm2d(64),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(3, stride=2, padding=1),
    ]
    channels = 64
    for group, (inner, blocks) in enumerate(GROUPS):
        for block in range(blocks):
            stride = 2 if group > 0 and block == 0 else 1
            layers.append(_block(channels, inner, stride))
            channels = 4 * inner
    layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 1000)]
    return nn.Sequential(*layers)


def _block(channels: int, inner: int, stride: int) -> "nn.Module":
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Sequential(
                nn.Conv2d(channels, inner, 1, bias=False),
                nn.BatchNorm2d(inner),
                nn.ReLU(inplace=True),
                nn.Conv2d(inner, inner, 3, stride=stride, padding=1, bias=False),
                nn.BatchNorm2d(inner),
                nn.ReLU(inplace=True),
                nn.Conv2d(inner, 4 * inner, 1, bias=False),
                nn.BatchNorm2d(4 * inner),
            )
            self.shortcut = nn.Identity()
            if channels != 4 * inner:
                self.shortcut = nn.Sequential(
                    nn.Conv2d(channels, 4 * inner, 1, stride=stride, bias=False),
                    nn.BatchNorm2d(4 * inner),
                )

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.relu(self.inner(x) + self.shortcut(x))

    return Block()
