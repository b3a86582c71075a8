"""The operator as a PyTorch user would have it: unfold, and FlexAttention where it takes the shape.

On the GPU if JAX computes there, else on the CPU. Images lie channels-first, as PyTorch has them.
"""

import os
from collections.abc import Callable

import jax

from benchmarks.common import cores, repeats
from sasa_jax.ops.local_attention.workloads import Workload

try:
    import torch
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention
except ImportError:
    torch = None

Call = Callable[[], object]


def compiled(function: Callable) -> Callable:
    """By PyTorch's compiler, which fails on the empty setting that jax-triton leaves behind."""
    if os.environ.get("TRITON_CACHE_DIR") == "":
        del os.environ["TRITON_CACHE_DIR"]
    return torch.compile(function)


def peers(workload: Workload, batch: int, dtype: str) -> dict[str, Callable[[], dict[str, Call]]]:
    """By name: makes {direction: a call that returns when it is done}.

    Making raises, or its calls do, where PyTorch cannot run the shape.
    """
    if torch is None:
        return {}
    torch.set_num_threads(cores())
    return {
        "pytorch_unfold": lambda: _calls(_unfold(workload, batch), workload, batch, dtype),
        "flex_attention": lambda: _calls(_flex(workload, batch), workload, batch, dtype),
    }


def unfold_bytes(workload: Workload, batch: int, dtype: str) -> int:
    """Roughly what unfold's forward and backward pass hold: six arrays of all windows' keys."""
    pixels = batch * workload.height * workload.width * workload.channels
    return 6 * workload.window**2 * pixels * getattr(torch, dtype).itemsize


def _device() -> str:
    return "cuda" if jax.default_backend() == "gpu" else "cpu"


def _calls(attend: Callable, workload: Workload, batch: int, dtype: str) -> dict[str, Call]:
    device, real = _device(), getattr(torch, dtype)
    generator = torch.Generator(device).manual_seed(0)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator, device=device, dtype=real)

    image = batch, workload.channels, workload.height, workload.width
    query, key, value, cotangent = (random(*image) for _ in range(4))
    half = workload.channels // workload.heads // 2
    tables = [random(workload.window, half) for _ in range(2)]
    inputs = [x.requires_grad_() for x in (query, key, value, *tables)]

    def wait() -> None:
        if device == "cuda":
            torch.cuda.synchronize()

    def forward() -> None:
        with torch.no_grad():
            for _ in range(repeats()):
                attend(*inputs)
        wait()

    def forward_backward() -> None:
        for _ in range(repeats()):
            torch.autograd.grad(attend(*inputs), inputs, cotangent)
        wait()

    return {"forward": forward, "forward_backward": forward_backward}


def _unfold(workload: Workload, batch: int) -> Callable:
    heads, window = workload.heads, workload.window
    dim, pixels = workload.channels // heads, workload.height * workload.width

    def attend(query, key, value, rows, columns):
        def windows(x: torch.Tensor) -> torch.Tensor:
            unfolded = torch.nn.functional.unfold(x, window, padding=window // 2)
            return unfolded.view(batch, heads, dim, window**2, pixels)

        relative = torch.cat(
            [rows[:, None].expand(-1, window, -1), columns[None].expand(window, -1, -1)], dim=-1
        ).view(1, 1, window**2, dim, 1)
        keys = windows(key) + relative.transpose(2, 3)
        logits = (query.view(batch, heads, dim, 1, pixels) * keys).sum(dim=2)
        weights = logits.softmax(dim=2)
        return (weights[:, :, None] * windows(value)).sum(dim=3).view(query.shape)

    return attend


def _flex(workload: Workload, batch: int) -> Callable:
    """Without the padding's share of the softmax, which it cannot express: somewhat less work."""
    if _device() == "cpu":
        raise NotImplementedError("FlexAttention has no backward pass on CPU")
    heads, window, width = workload.heads, workload.window, workload.width
    pixels, reach = workload.height * width, workload.window // 2

    def offsets(q, k):
        return k // width - q // width + reach, k % width - q % width + reach

    def inside(b, h, q, k):
        row, column = offsets(q, k)
        return (row >= 0) & (row < window) & (column >= 0) & (column < window)

    mask = create_block_mask(inside, None, None, pixels, pixels, device=_device())

    def attend(query, key, value, rows, columns):
        query, key, value = (
            x.view(batch, heads, -1, pixels).mT.contiguous() for x in (query, key, value)
        )
        by_row, by_column = (
            half @ table.T for half, table in zip(query.chunk(2, -1), (rows, columns), strict=True)
        )  # [B, N, H*W, K]

        def add_relative(score, b, h, q, k):
            row, column = (x.clamp(0, window - 1) for x in offsets(q, k))
            return score + by_row[b, h, q, row] + by_column[b, h, q, column]

        output = flex_attention(query, key, value, add_relative, block_mask=mask, scale=1.0)
        return output.mT.reshape(batch, workload.channels, workload.height, width)

    return compiled(attend)
