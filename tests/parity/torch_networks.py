"""Independent float64 PyTorch reference of the paper's stems and networks (see torch_reference)."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.parity.torch_reference import (
    BatchNorm,
    Convolution,
    LocalSelfAttention,
    Projection,
    parameter,
)

# The 16 pixels of a 4x4 block, in the order in which `unfold` lays them out.
PIXELS = [(a, b) for a in range(4) for b in range(4)]


class ConvStem(nn.Module):
    """7x7 stride 2 convolution, BN, ReLU, 3x3 stride 2 max pool."""

    def __init__(self, channels: int, **norm: float | int | None) -> None:
        super().__init__()
        self.conv = Convolution(3, channels, 7, 2, (3, 3))
        self.bn = BatchNorm(channels, **norm)

    def forward(self, x: Tensor) -> Tensor:
        return F.max_pool2d(F.relu(self.bn(self.conv(x))), 3, stride=2, padding=1)


class AttentionStem(nn.Module):
    """Attention inside aligned 4x4 blocks, BN, ReLU, 4x4 max pool with stride 4."""

    def __init__(
        self,
        channels: int,
        *,
        num_heads: int = 4,
        values: str = "spatial",
        mixtures: int = 4,
        relative: bool = True,
        **norm: float | int | None,
    ) -> None:
        super().__init__()
        dim = channels // num_heads
        self.num_heads, self.values, self.relative = num_heads, values, relative
        self.query, self.key = Projection(3, channels), Projection(3, channels)
        if relative:
            self.row_embedding, self.column_embedding = (
                parameter(7, dim // 2),
                parameter(7, dim // 2),
            )
        if values == "conv":
            # A 4x4 kernel has no centre: one row and column of padding before, two after.
            self.value_conv = Convolution(3, channels, 4, 1, (1, 2))
        elif values == "plain":
            self.value = Projection(3, channels)
        else:
            self.value = nn.Module()
            self.value.kernel = parameter(mixtures, 3, channels)
            self.mixture_row, self.mixture_column = parameter(4, dim), parameter(4, dim)
            self.mixture = parameter(mixtures, dim)
        self.bn = BatchNorm(channels, **norm)

    def spatial_values(self, x: Tensor) -> Tensor:
        """v_ab = (sum_m p(a, b, m) W_V^m) x_ab with (a, b) the place inside the block."""
        output = x.new_zeros(len(x), self.value.kernel.shape[-1], *x.shape[2:])
        for a, b in PIXELS:
            p = torch.softmax(self.mixture @ (self.mixture_row[a] + self.mixture_column[b]), dim=0)
            kernel = (p[:, None, None] * self.value.kernel).sum(0)
            pixels = x[:, :, a::4, b::4]
            output[:, :, a::4, b::4] = torch.einsum("bihw,io->bohw", pixels, kernel)
        return output

    def forward(self, x: Tensor) -> Tensor:
        if self.values == "conv":
            value = self.value_conv(x)
        else:
            value = self.value(x) if self.values == "plain" else self.spatial_values(x)

        def blocks(y: Tensor) -> Tensor:
            """[B, N, D, 16, L]: the 16 pixels of each of the L blocks."""
            return F.unfold(y, 4, stride=4).unflatten(1, (self.num_heads, -1, 16))

        query = blocks(self.query(x))
        logits = torch.einsum("bndql,bndkl->bnqkl", query, blocks(self.key(x)))
        if self.relative:
            rows = torch.tensor([[a - i + 3 for a, _ in PIXELS] for i, _ in PIXELS])
            columns = torch.tensor([[b - j + 3 for _, b in PIXELS] for _, j in PIXELS])
            tables = torch.cat([self.row_embedding[rows], self.column_embedding[columns]], -1)
            logits = logits + torch.einsum("bndql,qkd->bnqkl", query, tables)
        self.weights = torch.softmax(logits, dim=3)
        output = torch.einsum("bnqkl,bndkl->bndql", self.weights, blocks(value))
        output = F.fold(output.flatten(1, 3), x.shape[2:], 4, stride=4)
        return F.max_pool2d(F.relu(self.bn(output)), 4)


class Bottleneck(nn.Module):
    """1x1, the spatial operation, 1x1, each with BN; plus the shortcut. Version 1.5."""

    def __init__(
        self,
        inputs: int,
        channels: int,
        stride: int,
        attention: dict | None,
        **norm: float | int | None,
    ) -> None:
        super().__init__()
        outputs = 4 * channels
        self.conv1 = Convolution(inputs, channels, 1, 1, (0, 0))
        self.bn1 = BatchNorm(channels, **norm)
        if attention is None:
            self.spatial = Convolution(channels, channels, 3, stride, (1, 1))
        else:
            self.spatial = LocalSelfAttention(channels, stride=stride, **attention)
        self.bn2 = BatchNorm(channels, **norm)
        self.conv3 = Convolution(channels, outputs, 1, 1, (0, 0))
        self.bn3 = BatchNorm(outputs, **norm)
        self.projects = stride != 1 or inputs != outputs
        if self.projects:
            self.shortcut_conv = Convolution(inputs, outputs, 1, stride, (0, 0))
            self.shortcut_bn = BatchNorm(outputs, **norm)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        y = F.relu(self.bn2(self.spatial(y)))
        y = self.bn3(self.conv3(y))
        return F.relu(y + (self.shortcut_bn(self.shortcut_conv(x)) if self.projects else x))


class ResNet(nn.Module):
    """Bottleneck ResNet of section 3; takes the overrides of `sasa_jax.create_model`."""

    def __init__(
        self,
        *,
        num_classes: int | None = 1000,
        blocks: Sequence[int] = (3, 4, 6, 3),
        width: float = 1.0,
        stem: str = "attention",
        stem_heads: int = 4,
        stem_values: str = "spatial",
        stem_mixtures: int = 4,
        stem_relative: bool = True,
        attention_groups: Sequence[int] = (1, 2, 3, 4),
        window: int | Sequence[int] = 7,
        bn_decay: float = 0.9,
        bn_epsilon: float = 1e-5,
        bn_group_size: int | None = None,
        **attention: object,
    ) -> None:
        super().__init__()
        norm = {"decay": bn_decay, "epsilon": bn_epsilon, "group_size": bn_group_size}
        channels = int(64 * width)
        if stem == "conv":
            self.stem = ConvStem(channels, **norm)
        else:
            self.stem = AttentionStem(
                channels,
                num_heads=stem_heads,
                values=stem_values,
                mixtures=stem_mixtures,
                relative=stem_relative,
                **norm,
            )
        self.groups = len(blocks)
        for group, count in enumerate(blocks, start=1):
            size = window if isinstance(window, int) else window[group - 1]
            options = {**attention, "window": size} if group in attention_groups else None
            stage = nn.Sequential()
            for block in range(1, count + 1):
                inner = int(64 * width) * 2 ** (group - 1)
                stride = 2 if block == 1 and group > 1 else 1
                stage.add_module(
                    f"block{block}", Bottleneck(channels, inner, stride, options, **norm)
                )
                channels = 4 * inner
            self.add_module(f"group{group}", stage)
        if num_classes is not None:
            self.classifier = nn.Module()
            self.classifier.kernel = parameter(channels, num_classes)
            self.classifier.bias = parameter(num_classes)

    def forward(self, x: Tensor) -> Tensor:
        pooled = self.features(x)[-1].mean((2, 3))
        return pooled @ self.classifier.kernel + self.classifier.bias

    def features(self, x: Tensor) -> list[Tensor]:
        """What each group puts out."""
        maps = [self.stem(x)]
        for group in range(1, self.groups + 1):
            maps.append(self.get_submodule(f"group{group}")(maps[-1]))
        return maps[1:]
