"""What the page must know of a network: its attention layers, and how places lead to places.

The reach of a place is computed in the page by attention rollout (Abnar and Zuidema 2020,
"Quantifying Attention Flow in Transformers"), carried over to networks with strides. One unit of
mass starts at the place and is passed back, layer by layer, to the places that it was made of:

* Attention passes mass on by its weights, averaged over the heads. What falls on padding is lost;
  the page says how much.
* A layer with a shortcut around it (every block of the backbone; pyramid and heads only with
  `residual`) keeps half of its mass where it is, as in the paper on rollout: two summands of like
  size. One without a shortcut keeps none.
* Where a block halves the map, its attention is followed by a 2x2 average pool: a quarter to each
  of four queries; and its shortcut is a 1x1 convolution that reads the first of the four.
* 1x1 convolutions, normalisation and ReLU do not move anything.
* A 3x3 convolution has no weights that belong to one image: a ninth to each place.
* A sum of the pyramid gives half to the backbone's map and half to the coarser one that was
  doubled.

It ends at the stem's map. A place of that is the image's 4x4 block in the attention stem; the
convolution stem reads 11x11 pixels around it.

Rollout follows where values could have come from. It knows nothing of what they say: no value, no
sign, no class.
"""

from typing import Any, NamedTuple

import jax
import numpy as np
from flax import nnx

from sasa_jax.models import ResNet, RetinaNet
from sasa_jax.nn import AttentionStem, LocalSelfAttention

Model = ResNet | RetinaNet


class Stage(NamedTuple):
    """A step of the network that moves information between places.

    Attributes:
        name: as its attention weights are named, where it has them.
        height, width: of the map that it puts out.
        pixels: of the image, that one place of the map stands for, along each side.
        source: name of the stage before it, "" for the stem.
        above: of a sum, the coarser stage that is doubled and added, else "".
        kind: "stem", "attention", "convolution" or "sum".
        stride: 1 or 2.
        kept: share of the mass that goes through the shortcut.
    """

    name: str
    height: int
    width: int
    pixels: int
    source: str = ""
    above: str = ""
    kind: str = "stem"
    stride: int = 1
    kept: float = 0.0


def stages(model: Model, image_size: int) -> list[Stage]:
    """The network in the order of computation, for images of that side in pixels."""
    side = -(-image_size // 4)
    if isinstance(model, ResNet):
        return _backbone(model, side, "")
    found = _backbone(model.backbone, side, "backbone/")
    by_name = {stage.name: stage for stage in found}

    def add(name: str, layer: Any, source: str, *, stride: int = 1, residual: bool) -> None:
        kept = 0.5 if residual and isinstance(layer, LocalSelfAttention) else 0.0
        by_name[name] = _spatial(name, layer, by_name[source], stride=stride, kept=kept)

    fpn, coarser = model.fpn, ""
    blocks = model.backbone.blocks
    for level, group in zip(
        reversed(fpn.lateral_levels), range(len(blocks), len(blocks) - 3, -1), strict=True
    ):
        source = by_name[f"backbone/group{group}/block{blocks[group - 1]}"]
        name = f"fpn/sum{level}"
        by_name[name] = source._replace(
            name=name, source=source.name, above=coarser, kind="sum", stride=1, kept=0.0
        )
        coarser = name
    for level in fpn.levels:
        lateral = level in fpn.lateral_levels
        source = f"fpn/sum{level}" if lateral else f"fpn/p{level - 1}"
        if level == fpn.lateral_levels[-1] + 1 and fpn.coarse_from == "c5":
            source = f"backbone/group{len(blocks)}/block{blocks[-1]}"
        layer = getattr(fpn, f"p{level}")
        stride = 1 if lateral else 2
        add(f"fpn/p{level}", layer, source, stride=stride, residual=fpn.residual)
    for head_name in ("class_head", "box_head"):
        head = getattr(model, head_name)
        names = [f"layer{index}" for index in range(1, head.depth + 1)]
        layers = {name: getattr(head, name) for name in names}
        layers["last"] = head.output if head.last is None else head.last
        for name, layer in layers.items():
            for level in model.levels:
                source = f"fpn/p{level}"
                if name != "layer1":
                    before = "layer" + str(head.depth if name == "last" else int(name[5:]) - 1)
                    source = f"{head_name}/{before}/p{level}"
                add(f"{head_name}/{name}/p{level}", layer, source, residual=head.residual)
    return list(by_name.values())


def _backbone(model: ResNet, side: int, prefix: str) -> list[Stage]:
    found = [Stage(f"{prefix}stem", side, side, 4)]
    for name, block in _blocks(model):
        stage = _spatial(prefix + name, block.spatial, found[-1], stride=block.stride, kept=0.5)
        found.append(stage)
    return found


def _spatial(name: str, layer: Any, source: Stage, *, stride: int, kept: float) -> Stage:
    height, width = -(-source.height // stride), -(-source.width // stride)
    kind = "attention" if isinstance(layer, LocalSelfAttention) else "convolution"
    pixels = source.pixels * stride
    return Stage(name, height, width, pixels, source.name, "", kind, stride, kept)


def _blocks(model: ResNet) -> list[tuple[str, Any]]:
    return [
        (f"group{group}/block{index}", getattr(model, f"group{group}")[f"block{index}"])
        for group, count in enumerate(model.blocks, start=1)
        for index in range(1, count + 1)
    ]


def attention_layers(model: Model) -> dict[str, LocalSelfAttention | AttentionStem]:
    """Every layer that has attention weights, in the network's order, by their names.

    The layers of a detector's heads are those of all levels: they stand there once for each.
    """
    if isinstance(model, ResNet):
        layers: dict[str, Any] = {"stem": model.stem}
        layers |= {name: block.spatial for name, block in _blocks(model)}
    else:
        layers = {f"backbone/{name}": x for name, x in attention_layers(model.backbone).items()}
        layers |= {f"fpn/p{level}": getattr(model.fpn, f"p{level}") for level in model.fpn.levels}
        for head_name in ("class_head", "box_head"):
            head = getattr(model, head_name)
            for name in [*(f"layer{i}" for i in range(1, head.depth + 1)), "last"]:
                layers |= {
                    f"{head_name}/{name}/p{level}": getattr(head, name) for level in model.levels
                }
    kinds = LocalSelfAttention, AttentionStem
    return {name: layer for name, layer in layers.items() if isinstance(layer, kinds)}


def relative_tables(layer: LocalSelfAttention | AttentionStem) -> list[np.ndarray] | None:
    """Row and column embeddings, float32 [N, K, D/2] each, with N = 1 where the heads share them.

    In the stem K is 7: offsets from -3 to 3. None without relative embeddings.
    """
    if getattr(layer, "row_embedding", None) is None:
        return None
    tables = [
        np.asarray(table[...], np.float32)
        for table in (layer.row_embedding, layer.column_embedding)
    ]
    return [table[None] if table.ndim == 2 else table.swapaxes(0, 1) for table in tables]


def queries(model: Model, captured: nnx.State) -> dict[str, jax.Array]:
    """The queries of every layer with relative embeddings, by its name.

    Args:
        model: the network that was called on one image with `return_attention`.
        captured: what each of its modules put out, from `nnx.capture`.

    Returns:
        [H, W, N, D] each, as they met keys and embeddings.
    """
    calls = {path[:-1]: list(x.get_value()) for path, x in nnx.to_flat_state(captured) if path[1:]}
    paths = {id(module): path for path, module in nnx.iter_modules(model)}
    found = {}
    for name, layer in attention_layers(model).items():
        if isinstance(layer, LocalSelfAttention) and layer.row_embedding is not None:
            last = "query" if layer.query_norm is None else "query_norm"
            # A layer of a detector's heads is called once for each level, in their order.
            (image,) = calls[(*paths[id(layer)], last)].pop(0)
            found[name] = image.reshape(*image.shape[:2], layer.num_heads, -1)
    return found


def position_logits(
    layer: LocalSelfAttention, query: np.ndarray
) -> tuple[list[np.ndarray], np.ndarray]:
    """q . r in few numbers, less each window's mean, which no softmax sees.

    The part of the key's row is q's first half times the row embeddings, [K, D/2] less their mean:
    whatever q is, it lies in a space of R = min(D/2, K - 1) dimensions. So does the column's.

    Args:
        layer: with relative embeddings.
        query: [H, W, N, D], see `queries`.

    Returns:
        Bases of both spaces, float32 [N, K, R], N = 1 where the heads share their embeddings; and
        the place of every query in them, float32 [N, 2 R, H, W]. Basis times coordinates is the
        row's or the column's part of the logits, by the key's offset.
    """
    bases, coordinates = [], []
    for table, half in zip(relative_tables(layer), np.split(query, 2, axis=-1), strict=True):
        centred = table - table.mean(axis=1, keepdims=True)
        rank = min(centred.shape[2], centred.shape[1] - 1)
        basis = np.linalg.svd(centred, full_matrices=False)[0][..., :rank]
        projection = np.einsum("nkr,nkd->nrd", basis, centred) * (layer.scale or 1.0)
        projection = np.broadcast_to(projection, (query.shape[2], *projection.shape[1:]))
        coordinates.append(np.einsum("hwnd,nrd->nrhw", half, projection))
        bases.append(basis)
    return bases, np.concatenate(coordinates, axis=1).astype(np.float32)


def stem_logits(stem: AttentionStem) -> tuple[np.ndarray, np.ndarray]:
    """What the attention stem's logits are made of, so that they need not be stored.

    Returns:
        Content C float32 [N, 3, 3] and relative R [N, 16, 16, 3]: the logit of query pixel x_i and
        key pixel x_j of a block, in head n, is x_i C_n x_j + x_i R_nij.
    """
    content, relative = stem.logit_kernels()
    if relative is None:
        relative = np.zeros((stem.num_heads, 3, 16, 16))
    # [N, 3, i, j], as the stem has it, to the page's order.
    relative = np.asarray(relative, np.float32).transpose(0, 2, 3, 1)
    return np.asarray(content, np.float32), relative
