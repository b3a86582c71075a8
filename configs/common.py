"""Every key of a config, with the values that experiments share.

A config is a file whose `get_config()` fills this in. Any key can be overridden on the command
line, e.g. `--config.batch_size=64 --config.model.window=5`; a mistyped one suggests the nearest.
"""

import dataclasses
import inspect
from collections.abc import Callable
from typing import Any

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from sasa_jax.data.box_transforms import DetectionTrain
from sasa_jax.data.corrupt import MAX_CORRUPT_SHARE
from sasa_jax.data.image_transforms import KINDS
from sasa_jax.detection import Anchors, detect, detection_loss
from sasa_jax.models import list_models, model_options, retinanet_options


def _base_config(task: str) -> ConfigDict:
    """What all tasks have; keys without a default of their own hold None or a placeholder."""
    config = ConfigDict()
    config.task = task
    config.seed = 0

    # Length. total_steps, where it is given, replaces total_epochs; the warm-up keeps its share.
    config.total_epochs = 1.0
    config.total_steps = placeholder(int)
    config.warmup_epochs = 0.0

    # Batch, over all devices. Micro-batches are taken one after the other: less memory.
    config.batch_size = 32
    config.accumulation_steps = 1
    config.eval_batch_size = placeholder(int)  # None: the size of a micro-batch

    # Nesterov SGD. Weight decay is added to the gradient, of "kernels" or "all" parameters.
    config.learning_rate = 0.1
    config.reference_batch_size = placeholder(int)  # scales the rate by batch_size / this
    config.momentum = 0.9
    config.nesterov = True
    config.weight_decay = 1e-4
    config.weight_decay_on = "kernels"
    config.clip_norm = placeholder(float)  # largest global norm of the gradient
    # A step whose loss or gradient is not finite is not applied; so many in a row end the run.
    config.max_skipped_steps = 10

    # Averages of the weights and of the BN statistics that go with them, which is how the paper's
    # "BN decay 0.9999" is had. The decay is min(average_decay, (1 + t) / (10 + t)) at step t. The
    # statistics that go with the raw weights follow model.bn_decay (0.9).
    config.average_decay = 0.9999

    # In steps; 0 is only at the end, where both are always done.
    config.checkpoint_every = 1000
    config.keep_checkpoints = 2
    config.eval_every = 1000
    config.log_every = 50

    # Without a step or a batch of an evaluation for so long the process writes the stacks of its
    # threads and exits: a hung host would keep all others waiting. 0 is never.
    config.hang_seconds = 1800.0

    # The first and the last step to trace, into profile/; (0, 0) is none.
    config.profile = (0, 0)

    # PROJECT or ENTITY/PROJECT on Weights & Biases, which then gets what TensorBoard gets.
    config.wandb = placeholder(str)

    config.data = ConfigDict()
    config.data.name = placeholder(str)  # as TFDS has it
    config.data.dir = placeholder(str)  # None: $TFDS_DATA_DIR, else ~/tensorflow_datasets
    config.data.train_split = "train"
    config.data.eval_split = "validation"
    config.data.image_size = 224
    config.data.threads = 16  # that read and decode images
    # Corrupt images are named and left out; with more of a split than this share the run stops. A
    # handful always passes, but with 0 none.
    config.data.max_corrupt_share = MAX_CORRUPT_SHARE
    # The sizes to assume in a dry run where the data is not at hand.
    config.data.train_size = placeholder(int)
    config.data.eval_size = placeholder(int)
    config.data.num_classes = placeholder(int)

    config.model = model("resnet50")
    return config


def classification_config() -> ConfigDict:
    """All keys of a config for classification."""
    config = _base_config("classification")
    config.label_smoothing = 0.1
    # The weights to begin with, see `load_pretrained`; the classifier is new where it does not fit.
    config.init_from = placeholder(str)
    config.data.augmentation = augmentation("none")
    return config


def detection_config() -> ConfigDict:
    """All keys of a config for detection; `model` is the backbone."""
    config = _base_config("detection")
    config.detector = detector()
    # Workdir of a classification run of `model`; or weights of others, see `load_pretrained`.
    config.backbone_from = placeholder(str)

    # 0: a logit for each class of the data. A number: one for each category id from 1 to it, as the
    # paper's 90 for COCO, of which 80 are used.
    config.category_ids = 0
    config.anchors = ConfigDict(dataclasses.asdict(Anchors()))
    del config.anchors.levels  # the network's
    config.detection_loss = _defaults(detection_loss)
    config.decoding = _defaults(detect)
    config.metric = "pycocotools"  # or "faster", which needs the extra `coco`

    config.data.max_boxes = 100  # of a training image
    config.data.augmentation = ConfigDict(
        {
            field.name: _empty(field.name, field.default)
            for field in dataclasses.fields(DetectionTrain)
            if field.name not in ("image_size", "max_boxes")
        }
    )
    return config


def model(name: str, **options: Any) -> ConfigDict:
    """A model by name, and every option of `create_model`; None is as the named model has it."""
    config = ConfigDict({"name": name})
    for key, default in model_options(list_models()[0]).items():
        config[key] = _empty(key, default)
    return _filled(config, options)


def detector(**options: Any) -> ConfigDict:
    """Every option of `create_retinanet`; None is its default."""
    config = ConfigDict({key: _empty(key, value) for key, value in retinanet_options().items()})
    return _filled(config, options)


def augmentation(kind: str, **options: Any) -> ConfigDict:
    """An augmentation of `sasa_jax.data`, and the options of every kind; None is its default.

    Options of other kinds than the chosen one have no effect.
    """
    config = ConfigDict({"kind": kind})
    for kind_options in KINDS.values():
        for field in dataclasses.fields(kind_options):
            if field.name not in ("image_size", "train"):
                config[field.name] = _empty(field.name, field.default)
    return _filled(config, options)


def _empty(key: str, default: Any) -> Any:
    # `window` is one integer or a tuple of them; of an option that is None the type is not known.
    unknown = default is None or key == "window"
    return placeholder(object if unknown else type(default))


def _defaults(function: Callable[..., Any]) -> ConfigDict:
    """The keyword-only options of a function that have a default."""
    parameters = inspect.signature(function).parameters.values()
    return ConfigDict({p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY})


def _filled(config: ConfigDict, options: dict[str, Any]) -> ConfigDict:
    for key, value in options.items():
        getattr(config, key)  # a wrong key suggests the nearest
        config[key] = value
    return config
