"""The exported networks in PyTorch: needs torch and safetensors, and nothing of JAX.

    import torch, sasa_torch            # beside model.safetensors and config.json
    model = sasa_torch.load("folder")   # eval mode, float32, CPU
    images = model.normalise(uint8_images)              # [B, 3, S, S], RGB, 0..255
    best = model(images).argmax(dim=1)                  # logits [B, classes]
    model.class_names[best[0]]

How a photo becomes S x S pixels is told by `model.preprocessing`, the entry of config.json. Modules
are ordinary ones: `.cuda()`, `.half()`, `torch.compile`, `torch.onnx.export` and training work. A
convolutional network has torchvision's names.

Letters of shapes: B batch, C channels, H W height and width, N heads, D head dimension, K window,
T side of a tile, S of a tile with its halo.
"""

import json
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

TILE = 8  # pixels; of 4 to 14 the fastest on CPU, but for maps that are smaller


def load(folder: str | Path) -> "ResNet":
    """The network of an exported folder, in eval mode, float32, on the CPU.

    Raises:
        FileNotFoundError: there is no config.json or no model.safetensors.
        RuntimeError: the weights are of another network.
    """
    folder = Path(folder)
    description = json.loads((folder / "config.json").read_text())
    model = ResNet(**description["network"])
    model.load_state_dict(load_file(folder / "model.safetensors"))
    model.class_names = tuple(description["class_names"])
    model.preprocessing = description["preprocessing"]
    return model.eval()


def local_attention(
    query: Tensor,
    key: Tensor | None,
    value: Tensor,
    row_embedding: Tensor | None,
    column_embedding: Tensor | None,
    *,
    window: int,
    boundary: str = "zero",
) -> Tensor:
    """Attention of every pixel over the K x K window around it, for each head apart.

        y_ij = sum_ab softmax_ab(q_ij . k_ab + q_ij . concat(row[a - i], column[b - j])) v_ab

    The map is cut into T x T tiles; the queries of one share the S x S keys that their windows
    cover, S = T + K - 1, and two matrix products do the work. Keys of a tile outside a query's own
    window get no probability.

    Args:
        query, key, value: [B, N, D, H, W]; without key the logits are those of position alone.
        row_embedding, column_embedding: [K, D/2] or [K, N, D/2], or both None.
        window: K, odd.
        boundary: outside the image keys and values are "zero", or left out by a "mask".

    Returns:
        [B, N, D, H, W].
    """
    height, width = query.shape[-2:]
    tile, reach = min(TILE, height, width), window // 2
    span = tile + window - 1
    high, wide = -(-height // tile), -(-width // tile)  # tiles
    below, right = high * tile - height, wide * tile - width

    def tiles(x: Tensor) -> Tensor:
        """[B, N, D, H, W] to [B, high, wide, N, T*T, D]."""
        x = F.pad(x, (0, right, 0, below)).unflatten(-1, (wide, tile)).unflatten(-3, (high, tile))
        return x.permute(0, 3, 5, 1, 4, 6, 2).flatten(4, 5)

    def halos(x: Tensor) -> Tensor:
        """[B, N, D, H, W] to [B, high, wide, N, S*S, D]."""
        heads_dim = x.shape[1:3]
        x = F.pad(x.flatten(1, 2), (reach, reach + right, reach, reach + below))
        x = F.unfold(x, span, stride=tile).unflatten(2, (high, wide))
        return x.unflatten(1, (*heads_dim, span * span)).permute(0, 4, 5, 1, 3, 2)

    # Which of the window's slots a key of the halo is to a query of the tile, along one axis.
    place = torch.arange(span, device=query.device)
    slot = place - place[:tile, None]  # [T, S]
    in_window = (slot >= 0) & (slot < window)
    slot = slot.clamp(0, window - 1)

    def mask(tiles: int, pixels: int) -> Tensor:
        """[tiles, T, S], 0 where the key counts for the query."""
        counts = in_window.expand(tiles, tile, span)
        if boundary == "mask":
            pixel = place - reach + tile * torch.arange(tiles, device=place.device)[:, None]
            counts = counts & ((pixel >= 0) & (pixel < pixels))[:, None]
        # Not -inf: a query of the padding may have no key at all, and NaN would spread in training.
        nothing = torch.finfo(value.dtype).min / 4
        return torch.zeros_like(counts, dtype=value.dtype).masked_fill(~counts, nothing)

    query = tiles(query)
    rows = mask(high, height)[:, None, None, :, None]  # over [high, wide, N, T, T, S]
    columns = mask(wide, width)[:, None, None]
    if row_embedding is not None:
        half = query.shape[-1] // 2
        places = query.unflatten(4, (tile, tile))
        tables = (x.view(window, -1, half)[slot] for x in (row_embedding, column_embedding))
        row_table, column_table = (x.expand(-1, -1, query.shape[3], -1) for x in tables)
        rows = rows + torch.einsum("bhwnijd,isnd->bhwnijs", places[..., :half], row_table)
        columns = columns + torch.einsum("bhwnijd,jsnd->bhwnijs", places[..., half:], column_table)
    logits = (rows.unsqueeze(-1) + columns.unsqueeze(-2)).flatten(-2).flatten(-3, -2)
    if key is not None:
        logits = logits + query @ halos(key).transpose(-1, -2)
    weights = logits.softmax(-1, dtype=torch.promote_types(logits.dtype, torch.float32))
    y = weights.to(value.dtype) @ halos(value)  # [B, high, wide, N, T*T, D]
    y = y.unflatten(4, (tile, tile)).permute(0, 3, 6, 1, 4, 2, 5)
    return y.flatten(5, 6).flatten(3, 4)[..., :height, :width]


class Projection(nn.Module):
    """A linear map of the channels without bias: dense [C out, C in], or [N, D out, D in]."""

    def __init__(self, *shape: int):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(shape))
        nn.init.normal_(self.weight, std=shape[-1] ** -0.5)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C in, H, W] to [B, C out, H, W]."""
        if self.weight.ndim == 2:
            return F.conv2d(x, self.weight[:, :, None, None])
        return F.conv2d(x, self.weight.flatten(0, 1)[:, :, None, None], groups=len(self.weight))


class HeadNorm(nn.Module):
    """Divides every head's vector by its root mean square, times a scale for each dimension."""

    def __init__(self, head_dim: int):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(head_dim))

    def forward(self, x: Tensor) -> Tensor:
        """[B, N, D, H, W] to the same."""
        mean_square = x.square().mean(dim=2, keepdim=True)
        return x * torch.rsqrt(mean_square + 1e-6) * self.weight[:, None, None]


class LocalSelfAttention(nn.Module):
    """Projections around `local_attention`; options as in the JAX layer of that name."""

    def __init__(
        self,
        features: int,
        *,
        num_heads: int,
        window: int,
        position: str,
        content: bool,
        boundary: str,
        logit_scale: str,
        per_head_embeddings: bool,
        grouped_projections: bool,
        query_key_norm: str,
    ):
        super().__init__()
        dim = features // num_heads
        self.num_heads, self.window, self.boundary = num_heads, window, boundary
        self.sinusoidal = position == "sinusoidal"
        self.scale = dim**-0.5 if logit_scale == "inverse_sqrt" else 1.0
        shape = (num_heads, dim, dim) if grouped_projections else (features, features)
        self.query, self.value = Projection(*shape), Projection(*shape)
        self.key = Projection(*shape) if content else None
        normed = query_key_norm == "rms"
        self.query_norm = HeadNorm(dim) if normed else nn.Identity()
        self.key_norm = HeadNorm(dim) if normed and content else nn.Identity()
        if position == "relative":
            table = (window, num_heads, dim // 2) if per_head_embeddings else (window, dim // 2)
            self.row_embedding = nn.Parameter(torch.randn(table))
            self.column_embedding = nn.Parameter(torch.randn(table))
        else:
            self.row_embedding = self.column_embedding = None

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] to [B, C, H, W]."""
        if self.sinusoidal:
            x = x + sinusoidal_position(*x.shape[1:]).to(x)

        def heads(projection: Projection) -> Tensor:
            return projection(x).unflatten(1, (self.num_heads, -1))

        # The scale is that of all logits, and each has the query as a factor.
        query = self.query_norm(heads(self.query)) * self.scale
        key = None if self.key is None else self.key_norm(heads(self.key))
        tables = self.row_embedding, self.column_embedding
        options = dict(window=self.window, boundary=self.boundary)
        return local_attention(query, key, heads(self.value), *tables, **options).flatten(1, 2)


def sinusoidal_position(channels: int, height: int, width: int) -> Tensor:
    """Sines and cosines of the row, then of the column: float64 [C, H, W]."""

    def encode(length: int) -> Tensor:
        exponent = torch.arange(channels // 4, dtype=torch.float64) / (channels // 4)
        angle = torch.arange(length) * 10_000.0 ** -exponent[:, None]
        return torch.cat([angle.sin(), angle.cos()])

    rows = encode(height)[:, :, None].expand(-1, -1, width)
    columns = encode(width)[:, None].expand(-1, height, -1)
    return torch.cat([rows, columns])


class AttentionStem(nn.Module):
    """Attention inside every aligned 4x4 block of the image (paper, appendix A)."""

    def __init__(
        self, features: int, *, num_heads: int, values: str, mixtures: int, relative: bool
    ):
        super().__init__()
        dim = features // num_heads
        self.num_heads, self.values = num_heads, values
        self.query, self.key = Projection(features, 3), Projection(features, 3)
        self.row_embedding = self.column_embedding = None
        if relative:
            self.row_embedding = nn.Parameter(torch.randn(7, dim // 2))
            self.column_embedding = nn.Parameter(torch.randn(7, dim // 2))
        if values == "spatial":
            self.value = Projection(mixtures, features, 3)
            self.mixture_row = nn.Parameter(torch.randn(4, dim))
            self.mixture_column = nn.Parameter(torch.randn(4, dim))
            self.mixture = nn.Parameter(torch.randn(mixtures, dim))
        elif values == "plain":
            self.value = Projection(features, 3)
        else:
            self.value = nn.Conv2d(3, features, 4, bias=False)

    def forward(self, images: Tensor) -> Tensor:
        """[B, 3, H, W] to [B, C, H, W]."""
        query, key = self._blocks(self.query(images)), self._blocks(self.key(images))
        logits = query @ key.transpose(-1, -2)
        if self.row_embedding is not None:
            row, column = torch.arange(16).div(4, rounding_mode="floor"), torch.arange(16) % 4
            # From the query's pixel to the key's, shifted to start at 0.
            by_row = self.row_embedding[row - row[:, None] + 3]
            by_column = self.column_embedding[column - column[:, None] + 3]
            relative = torch.cat([by_row, by_column], dim=-1)  # [16, 16, D]
            logits = logits + torch.einsum("bpqnid,ijd->bpqnij", query, relative)
        y = logits.softmax(-1, dtype=torch.promote_types(logits.dtype, torch.float32))
        y = y.to(images.dtype) @ self._blocks(self._values(images))
        y = y.unflatten(4, (4, 4)).permute(0, 3, 6, 1, 4, 2, 5)
        return y.flatten(5, 6).flatten(3, 4).flatten(1, 2)

    def _values(self, images: Tensor) -> Tensor:
        if self.values == "plain":
            return self.value(images)
        if self.values == "conv":  # an even kernel: one row and column more behind than before
            return self.value(F.pad(images, (1, 2, 1, 2)))
        place = self.mixture_row[:, None] + self.mixture_column
        share = torch.softmax(place @ self.mixture.T, dim=-1)  # [4, 4, M]
        kernel = torch.einsum("abm,moc->aboc", share, self.value.weight)
        blocks = images.unflatten(3, (-1, 4)).unflatten(2, (-1, 4))
        y = torch.einsum("bcpxqy,xyoc->bopxqy", blocks, kernel)
        return y.flatten(4, 5).flatten(2, 3)

    def _blocks(self, x: Tensor) -> Tensor:
        """[B, C, H, W] to [B, H/4, W/4, N, 16, D], the pixels of a block row by row."""
        x = x.unflatten(3, (-1, 4)).unflatten(2, (-1, 4)).unflatten(1, (self.num_heads, -1))
        return x.permute(0, 3, 5, 1, 4, 6, 2).flatten(4, 5)


class Bottleneck(nn.Module):
    """1x1, 3x3 convolution or attention, 1x1, with a BN after each, and a shortcut around all."""

    def __init__(
        self, inputs: int, features: int, stride: int, attention: dict[str, Any] | None, norm: Any
    ):
        super().__init__()
        self.stride = stride
        self.conv1, self.bn1 = nn.Conv2d(inputs, features, 1, bias=False), norm(features)
        if attention is None:
            self.conv2 = nn.Conv2d(features, features, 3, stride, padding=1, bias=False)
        else:
            self.attention = LocalSelfAttention(features, **attention)
        self.bn2 = norm(features)
        self.conv3, self.bn3 = nn.Conv2d(features, 4 * features, 1, bias=False), norm(4 * features)
        self.downsample = None
        if stride != 1 or inputs != 4 * features:
            projection = nn.Conv2d(inputs, 4 * features, 1, stride, bias=False)
            self.downsample = nn.Sequential(projection, norm(4 * features))

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] to [B, 4 features, H/stride, W/stride]."""
        y = F.relu(self.bn1(self.conv1(x)))
        if hasattr(self, "attention"):
            y = self.attention(y)
            y = F.avg_pool2d(y, 2) if self.stride == 2 else y
        else:
            y = self.conv2(y)
        y = self.bn3(self.conv3(F.relu(self.bn2(y))))
        return F.relu(y + (x if self.downsample is None else self.downsample(x)))


class ResNet(nn.Module):
    """Convolutional or attention ResNet; the arguments are the entry "network" of config.json.

    Attributes:
        class_names: in the order of the logits.
        preprocessing: how an image becomes the network's input, in words and numbers.
    """

    def __init__(
        self,
        *,
        num_classes: int,
        blocks: list[int],
        width: float,
        stem: str,
        attention_groups: list[int],
        window: list[int],
        stem_heads: int,
        stem_values: str,
        stem_mixtures: int,
        stem_relative: bool,
        bn_epsilon: float,
        bn_decay: float,
        **attention: Any,
    ):
        super().__init__()
        self.class_names: tuple[str, ...] = ()
        self.preprocessing: dict[str, Any] = {}

        def norm(features: int) -> nn.BatchNorm2d:
            return nn.BatchNorm2d(features, bn_epsilon, 1 - bn_decay)

        features = round(64 * width)
        if stem == "conv":
            self.conv1 = nn.Conv2d(3, features, 7, stride=2, padding=3, bias=False)
            self.pool = nn.MaxPool2d(3, stride=2, padding=1)
        else:
            self.stem = AttentionStem(
                features,
                num_heads=stem_heads,
                values=stem_values,
                mixtures=stem_mixtures,
                relative=stem_relative,
            )
            self.pool = nn.MaxPool2d(4)
        self.bn1 = norm(features)
        self.groups = len(blocks)
        for group, count in enumerate(blocks, start=1):
            options = None
            if group in attention_groups:
                options = attention | {"window": window[group - 1]}
            inner = round(64 * width) * 2 ** (group - 1)
            layer = nn.Sequential()
            for index in range(count):
                stride = 2 if group > 1 and index == 0 else 1
                layer.append(Bottleneck(features, inner, stride, options, norm))
                features = 4 * inner
            self.add_module(f"layer{group}", layer)
        self.fc = nn.Linear(features, num_classes)

    def normalise(self, images: Tensor) -> Tensor:
        """uint8 [B, 3, H, W], RGB, to what `forward` takes: ImageNet's mean 0 and deviation 1."""
        mean, std = (
            torch.tensor(self.preprocessing[name], device=images.device)[:, None, None]
            for name in ("mean", "std")
        )
        return ((images - mean) / std).to(self.fc.weight.dtype)

    def forward(self, x: Tensor) -> Tensor:
        """Normalised images [B, 3, H, W] to logits [B, classes]."""
        x = self.stem(x) if hasattr(self, "stem") else self.conv1(x)
        x = self.pool(F.relu(self.bn1(x)))
        for group in range(1, self.groups + 1):
            x = self.get_submodule(f"layer{group}")(x)
        return self.fc(x.mean(dim=(2, 3)))
