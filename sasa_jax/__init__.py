"""Stand-alone self-attention vision models in JAX.

Networks whose spatial convolutions are replaced by attention to the window around each pixel, for
classification and detection, after
["Stand-Alone Self-Attention in Vision Models"](https://arxiv.org/abs/1906.05909).

    import jax, sasa_jax
    from flax import nnx

    model = sasa_jax.create_model("sa_resnet50", rngs=nnx.Rngs(0))
    images = jax.random.normal(jax.random.key(0), (1, 224, 224, 3))
    logits, attention = model(images, return_attention=True)  # a map [B, H, W, N, K, K] a layer

    model = sasa_jax.load("runs/digits")  # a trained one: a run's folder, or an export of one
    for result in model(["a.png", "b.png"], top_k=3):
        print(result.names[0], result.scores[0])

What is where:

* `sasa_jax.ops.local_attention`: the operator; `sasa_jax.ops.block_attention`: the stem's.
* `sasa_jax.nn`: layers. `LocalSelfAttention`, `AttentionStem`, and what the paper leaves open.
* `sasa_jax.models`: ResNet and RetinaNet by name, and as functions of their variables.
* `sasa_jax.prediction`: a trained network, ready for images.
* `sasa_jax.explorer`: its attention, as a page to point at.
* `sasa_jax.export`: the network in other formats, and weights of others.
* `sasa_jax.analysis`: parameters, FLOPS, the paper's tables, figures.
* `sasa_jax.data`: data sets, transforms, loaders.
* `sasa_jax.detection`: boxes, anchors, losses, suppression, COCO's metrics.
* `sasa_jax.training`: the loop, checkpoints, several processes.
* `sasa_jax.tasks`: what can be trained, classification and detection.

`python -m sasa_jax` says what an installation can do.
"""

from typing import TYPE_CHECKING, Any

from sasa_jax.models import create_model, create_retinanet, list_models
from sasa_jax.ops.local_attention import local_attention, local_attention_weights

if TYPE_CHECKING:
    from sasa_jax.prediction import load

__all__ = [
    "create_model",
    "create_retinanet",
    "list_models",
    "load",
    "local_attention",
    "local_attention_weights",
]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    # Data sets, checkpoints and figures take seconds to import: not to build a layer.
    if name == "load":
        from sasa_jax.prediction import load

        return load
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
