"""The PyTorch reference itself, against scalar loops over pixels that a reader can check by eye."""

import itertools
import math

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the independent reference needs PyTorch")

from tests.parity.torch_networks import AttentionStem  # noqa: E402
from tests.parity.torch_reference import (  # noqa: E402
    BatchNorm,
    load_variables,
    local_attention,
    sinusoidal_encoding,
)


def softmax(logits: np.ndarray) -> np.ndarray:
    exponentials = np.exp(logits - logits.max())
    return exponentials / exponentials.sum()


@pytest.mark.parametrize("boundary", ["zero", "mask"])
@pytest.mark.parametrize("per_head", [False, True])
def test_operator_is_the_equation(boundary: str, per_head: bool) -> None:
    """Loops over image, head, pixel and window; 5x5 windows over a 3x4 map, so borders abound."""
    rng = np.random.default_rng(0)
    batch, heads, dim, height, width, window = 2, 3, 4, 3, 4, 5
    half, scale = window // 2, 0.7
    query, key, value = rng.normal(size=(3, batch, heads, dim, height, width))
    row, column = rng.normal(
        size=(2, window, heads, dim // 2) if per_head else (2, window, dim // 2)
    )
    expected = np.zeros_like(query)
    for b, n, i, j in itertools.product(*map(range, (batch, heads, height, width))):
        logits, values = [], []
        for di, dj in itertools.product(range(-half, half + 1), repeat=2):
            inside = 0 <= i + di < height and 0 <= j + dj < width
            if not inside and boundary == "mask":
                continue
            k = key[b, n, :, i + di, j + dj] if inside else np.zeros(dim)
            v = value[b, n, :, i + di, j + dj] if inside else np.zeros(dim)
            at = (n,) if per_head else ()
            r = np.concatenate([row[di + half][at], column[dj + half][at]])
            q = query[b, n, :, i, j]
            logits.append(scale * (q @ k + q @ r))
            values.append(v)
        expected[b, n, :, i, j] = softmax(np.array(logits)) @ np.array(values)
    tensors = [torch.from_numpy(x) for x in (query, key, value, row, column)]
    output, _ = local_attention(*tensors, window=window, boundary=boundary, scale=scale)
    np.testing.assert_allclose(output.numpy(), expected, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("values", ["spatial", "plain", "conv"])
def test_attention_stem_is_the_equation(values: str) -> None:
    rng = np.random.default_rng(1)
    height, width, heads, channels = 8, 4, 2, 8
    dim = channels // heads
    stem = AttentionStem(channels, num_heads=heads, values=values, mixtures=3)
    with torch.no_grad():
        for tensor in stem.state_dict().values():
            tensor.copy_(torch.from_numpy(rng.uniform(0.5, 1.5, size=tensor.shape)))
    p = {name: tensor.numpy() for name, tensor in stem.state_dict().items()}
    image = rng.normal(size=(height, width, 3))

    def value(i: int, j: int) -> np.ndarray:
        if values == "plain":
            return image[i, j] @ p["value.kernel"]
        if values == "spatial":
            a, b = i % 4, j % 4
            mixing = softmax(p["mixture"] @ (p["mixture_row"][a] + p["mixture_column"][b]))
            return sum(mixing[m] * image[i, j] @ p["value.kernel"][m] for m in range(3))
        total = np.zeros(channels)
        for di, dj in itertools.product(range(4), repeat=2):
            a, b = i + di - 1, j + dj - 1
            if 0 <= a < height and 0 <= b < width:
                total += p["value_conv.kernel"][:, :, di, dj] @ image[a, b]
        return total

    expected = np.full((channels, height // 4, width // 4), -math.inf)
    for n, i, j in itertools.product(range(heads), range(height), range(width)):
        head = slice(n * dim, (n + 1) * dim)
        query = image[i, j] @ p["query.kernel"][:, head]
        logits, window = [], []
        for a in range(i // 4 * 4, i // 4 * 4 + 4):
            for b in range(j // 4 * 4, j // 4 * 4 + 4):
                offset = [p["row_embedding"][a - i + 3], p["column_embedding"][b - j + 3]]
                key = image[a, b] @ p["key.kernel"][:, head]
                logits.append(query @ (key + np.concatenate(offset)))
                window.append(value(a, b)[head])
        y = softmax(np.array(logits)) @ np.array(window)
        y = (y - p["bn.mean"][head]) / np.sqrt(p["bn.var"][head] + 1e-5)
        y = np.maximum(y * p["bn.scale"][head] + p["bn.bias"][head], 0)
        expected[head, i // 4, j // 4] = np.maximum(expected[head, i // 4, j // 4], y)
    output = stem.eval()(torch.from_numpy(image).permute(2, 0, 1)[None])[0]
    np.testing.assert_allclose(output.detach().numpy(), expected, rtol=1e-12, atol=1e-12)


def test_batch_norm_against_torch() -> None:
    """PyTorch's own layer normalises alike; only its running variance is the unbiased one."""
    rng = np.random.default_rng(2)
    x = torch.from_numpy(rng.normal(1, 2, size=(6, 3, 4, 5)))
    ours, theirs = BatchNorm(3), torch.nn.BatchNorm2d(3, momentum=0.1, dtype=torch.float64)
    ones, zeros = np.ones(3), np.zeros(3)
    stats = {"mean": zeros, "var": ones}
    load_variables(ours, {"params": {"scale": ones, "bias": zeros}, "batch_stats": stats})
    torch.testing.assert_close(ours(x), theirs(x))
    torch.testing.assert_close(ours.mean, theirs.running_mean)
    biased = x.var((0, 2, 3), correction=0)
    torch.testing.assert_close(ours.var, 0.9 + 0.1 * biased)
    torch.testing.assert_close(
        ours.eval()(x), (x - ours.mean[:, None, None]) / torch.sqrt(ours.var + 1e-5)[:, None, None]
    )


def test_sinusoids_tell_every_pixel_apart() -> None:
    encoding = sinusoidal_encoding(8, 5, 6)
    assert encoding[:, 0, 0].tolist() == [0, 0, 1, 1, 0, 0, 1, 1]
    assert encoding[1, 4, 2].item() == pytest.approx(math.sin(4 * 10000 ** (-1 / 2)))
    assert encoding[6, 4, 2].item() == pytest.approx(math.cos(2))
    assert torch.cdist(encoding.flatten(1).T, encoding.flatten(1).T).fill_diagonal_(1).min() > 0.01


@pytest.mark.parametrize("fault", ["missing", "extra", "shape"])
def test_loading_refuses_what_does_not_match(fault: str) -> None:
    params = {"scale": np.ones(3), "bias": np.ones(2 if fault == "shape" else 3)}
    stats = {"mean": np.ones(3), "var": np.ones(3)}
    if fault == "missing":
        del stats["var"]
    if fault == "extra":
        params["gain"] = np.ones(3)
    with pytest.raises(ValueError, match="bias" if fault == "shape" else "var|gain"):
        load_variables(BatchNorm(3), {"params": params, "batch_stats": stats})
