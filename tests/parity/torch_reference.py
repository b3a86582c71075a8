"""Independent PyTorch reference of the paper's layers, in float64.

Written from the equations of the paper (arXiv 1906.05909, sections 3.1, 3.2 and the appendix),
never from the JAX code: it materialises every window with `unfold`, slow and easy to check. Layout
is channels first. Attributes and parameters carry the names of the JAX variable tree, so
`load_variables` needs no table of names. Parameters start as NaN: one that was forgotten shows.
"""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn


def parameter(*shape: int) -> nn.Parameter:
    """A float64 parameter of the given shape that holds NaN until it is loaded."""
    return nn.Parameter(torch.full(shape, math.nan, dtype=torch.float64))


def local_attention(
    query: Tensor,
    key: Tensor | None,
    value: Tensor,
    row_embedding: Tensor | None = None,
    column_embedding: Tensor | None = None,
    *,
    window: int = 7,
    boundary: str = "zero",
    scale: float | None = None,
) -> tuple[Tensor, Tensor]:
    """The equation of section 1: y_ij = sum_ab softmax_ab(q_ij . k_ab + q_ij . r_ab) v_ab.

    Args: query, key, value [B, N, D, H, W]; embeddings [K, D/2] or, per head, [K, N, D/2].
    Returns: output [B, N, D, H, W] and weights [B, N, K, K, H, W].
    """
    batch, heads, dim, height, width = query.shape

    def windows(x: Tensor) -> Tensor:
        """The K x K zero-padded neighbourhood of every pixel, [B, N, D, K, K, H, W]."""
        image = x.reshape(batch, -1, height, width)
        patches = F.unfold(image, window, padding=window // 2)
        return patches.view(batch, heads, -1, window, window, height, width)

    logits = query.new_zeros(batch, heads, window, window, height, width)
    if key is not None:
        logits = logits + torch.einsum("bndhw,bndklhw->bnklhw", query, windows(key))
    if row_embedding is not None:
        per_head = (window, heads, dim // 2)
        row = (
            row_embedding.unsqueeze(-2).expand(per_head)
            if row_embedding.ndim == 2
            else row_embedding
        )
        column = (
            column_embedding.unsqueeze(-2).expand(per_head)
            if column_embedding.ndim == 2
            else column_embedding
        )
        # r_ab = concat(row[a - i], column[b - j]): [K, K, N, D].
        relative = torch.stack(
            [
                torch.stack([torch.cat([row[a], column[b]], -1) for b in range(window)])
                for a in range(window)
            ]
        )
        logits = logits + torch.einsum("bndhw,klnd->bnklhw", query, relative)
    if scale is not None:
        logits = logits * scale
    if boundary == "mask":
        inside = windows(torch.ones_like(query[:, :, :1]))[:, :, 0]
        logits = logits.masked_fill(inside == 0, -math.inf)
    weights = torch.softmax(logits.flatten(2, 3), dim=2).view_as(logits)
    return torch.einsum("bnklhw,bndklhw->bndhw", weights, windows(value)), weights


def sinusoidal_encoding(channels: int, height: int, width: int) -> Tensor:
    """Absolute encoding [C, H, W]: half of the channels the row, half the column, sines first."""
    if channels % 4:
        raise ValueError(f"channels must be divisible by 4, got {channels}")
    quarter = channels // 4
    encoding = torch.zeros(channels, height, width, dtype=torch.float64)
    for i in range(quarter):
        frequency = 10000.0 ** (-i / quarter)
        for a in range(height):
            encoding[i, a, :] = math.sin(a * frequency)
            encoding[quarter + i, a, :] = math.cos(a * frequency)
        for b in range(width):
            encoding[2 * quarter + i, :, b] = math.sin(b * frequency)
            encoding[3 * quarter + i, :, b] = math.cos(b * frequency)
    return encoding


class Projection(nn.Module):
    """Bias-free 1x1 map of channels: dense [C_in, C_out], or one [D, D] matrix per head."""

    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.kernel = parameter(*shape)

    def forward(self, x: Tensor) -> Tensor:
        if self.kernel.ndim == 2:
            return torch.einsum("bihw,io->bohw", x, self.kernel)
        heads = x.unflatten(1, self.kernel.shape[:2])
        return torch.einsum("bnihw,nio->bnohw", heads, self.kernel).flatten(1, 2)


class HeadNorm(nn.Module):
    """Vectors [B, N, D, H, W] over their root mean square, times a scale for each dimension."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.scale = parameter(dim)

    def forward(self, x: Tensor) -> Tensor:
        length = torch.linalg.vector_norm(x, dim=2, keepdim=True)
        mean_square = length**2 / x.shape[2]
        return x / torch.sqrt(mean_square + 1e-6) * self.scale[:, None, None]


class LocalSelfAttention(nn.Module):
    """The layer of section 1 with its open points as options; `stride` 2 averages 2x2 after it."""

    def __init__(
        self,
        channels: int,
        *,
        num_heads: int = 8,
        window: int = 7,
        stride: int = 1,
        position: str = "relative",
        content: bool = True,
        boundary: str = "zero",
        logit_scale: str = "none",
        per_head_embeddings: bool = False,
        grouped_projections: bool = False,
        query_key_norm: str = "none",
    ) -> None:
        super().__init__()
        dim = channels // num_heads
        shape = (num_heads, dim, dim) if grouped_projections else (channels, channels)
        self.num_heads, self.window, self.stride = num_heads, window, stride
        self.position, self.boundary = position, boundary
        self.scale = dim**-0.5 if logit_scale == "inverse_sqrt" else None
        self.query = Projection(*shape)
        self.key = Projection(*shape) if content else None
        self.value = Projection(*shape)
        self.query_norm = HeadNorm(dim) if query_key_norm == "rms" else None
        self.key_norm = HeadNorm(dim) if query_key_norm == "rms" and content else None
        self.row_embedding = self.column_embedding = None
        if position == "relative":
            table = (window, num_heads, dim // 2) if per_head_embeddings else (window, dim // 2)
            self.row_embedding, self.column_embedding = parameter(*table), parameter(*table)

    def forward(self, x: Tensor) -> Tensor:
        if self.position == "sinusoidal":
            x = x + sinusoidal_encoding(*x.shape[1:])

        def split(y: Tensor) -> Tensor:
            return y.unflatten(1, (self.num_heads, -1))

        query, key = split(self.query(x)), None if self.key is None else split(self.key(x))
        if self.query_norm is not None:
            query = self.query_norm(query)
        if self.key_norm is not None:
            key = self.key_norm(key)
        output, self.weights = local_attention(
            query,
            key,
            split(self.value(x)),
            self.row_embedding,
            self.column_embedding,
            window=self.window,
            boundary=self.boundary,
            scale=self.scale,
        )
        output = output.flatten(1, 2)
        return F.avg_pool2d(output, 2) if self.stride == 2 else output


class Convolution(nn.Module):
    """Bias-free convolution; the kernel is [C_out, C_in, K, K]. `padding` is (before, after)."""

    def __init__(self, inputs: int, outputs: int, size: int, stride: int, padding: tuple[int, int]):
        super().__init__()
        self.kernel = parameter(outputs, inputs, size, size)
        self.stride, self.padding = stride, padding

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(F.pad(x, (*self.padding, *self.padding)), self.kernel, stride=self.stride)


class BatchNorm(nn.Module):
    """Batch normalisation with biased variances, over groups of `group_size` examples in training.

    Running statistics: decay * old + (1 - decay) * mean over the groups.
    """

    def __init__(
        self,
        channels: int,
        *,
        decay: float = 0.9,
        epsilon: float = 1e-5,
        group_size: int | None = None,
    ) -> None:
        super().__init__()
        self.decay, self.epsilon, self.group_size = decay, epsilon, group_size
        self.scale, self.bias = parameter(channels), parameter(channels)
        self.register_buffer("mean", parameter(channels).data)
        self.register_buffer("var", parameter(channels).data)

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return self.normalise(x, self.mean, self.var)
        groups = x.split(self.group_size or len(x))
        means = [group.mean((0, 2, 3)) for group in groups]
        variances = [group.var((0, 2, 3), correction=0) for group in groups]
        for running, batch in ((self.mean, means), (self.var, variances)):
            running.mul_(self.decay).add_((1 - self.decay) * torch.stack(batch).mean(0).detach())
        return torch.cat(
            [self.normalise(*each) for each in zip(groups, means, variances, strict=True)]
        )

    def normalise(self, x: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
        """(x - mean) / sqrt(variance + epsilon), scaled and shifted per channel."""
        factor = self.scale / torch.sqrt(variance + self.epsilon)
        return (x - mean[:, None, None]) * factor[:, None, None] + self.bias[:, None, None]


def load_variables(module: nn.Module, variables: Mapping[str, Any]) -> None:
    """Copy the JAX variables {"params": ..., "batch_stats": ...} into `module`.

    The nested path "group1", "block1", "conv1", "kernel" is torch's "group1.block1.conv1.kernel".
    Convolution kernels (the only 4-D parameters) go from HWIO to OIHW, the rest is alike.
    Raises: ValueError if a name or shape has no counterpart on the other side.
    """
    source: dict[str, Tensor] = {}

    def flatten(tree: Mapping[str, Any], prefix: str) -> None:
        for name, leaf in tree.items():
            if isinstance(leaf, Mapping):
                flatten(leaf, f"{prefix}{name}.")
            elif prefix + name in source:
                raise ValueError(f"{prefix + name} appears twice")
            else:
                array = torch.from_numpy(np.array(leaf, np.float64))
                source[prefix + name] = array.permute(3, 2, 0, 1) if array.ndim == 4 else array

    for collection in variables.values():
        flatten(collection, "")
    target = module.state_dict()
    if source.keys() != target.keys():
        raise ValueError(f"on one side only: {sorted(source.keys() ^ target.keys())}")
    for name, tensor in source.items():
        if tensor.shape != target[name].shape:
            raise ValueError(f"{name}: {tuple(tensor.shape)} and {tuple(target[name].shape)}")
        target[name].copy_(tensor)


def jax_layout(tensors: Mapping[str, Tensor]) -> dict[str, np.ndarray]:
    """Dotted torch name -> array laid out as in JAX: convolution kernels OIHW to HWIO."""
    return {
        name: (tensor.permute(2, 3, 1, 0) if tensor.ndim == 4 else tensor).detach().numpy()
        for name, tensor in tensors.items()
    }
