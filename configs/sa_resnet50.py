"""ResNet-50 with self-attention throughout on ImageNet, as in the paper (section 4.1, table 1).

    python main.py --config=configs/sa_resnet50.py --workdir=runs/sa_resnet50 \\
        --config.data.dir=DATA

Hardware: the paper's is 128 TPU v3 cores, 32 images each. Time: not known.
Expected: 77.6 % top-1 (paper). Not run.

With fewer devices lower batch_size, or raise accumulation_steps; the learning rate follows the
batch size. `--mode=dry_run` shows what would be trained and how much memory a step needs.
`configs/resnet50.py` is the convolutional baseline under the same settings.

From the paper: batch 4096, learning rate 1.6, 10 epochs of warm-up and 130 in all, cosine decay,
Nesterov momentum, averages of weights and BN statistics with decay 0.9999. It does not say
momentum, weight decay, label smoothing, precision or augmentation: here the field's usual ones.
"""

from ml_collections import ConfigDict

from configs import common


def get_config() -> ConfigDict:
    config = common.classification_config()
    config.model = common.model("sa_resnet50", dtype="bfloat16")

    config.data.name = "imagenet2012"
    config.data.train_split = "train"
    config.data.eval_split = "validation"
    config.data.image_size = 224
    config.data.augmentation = common.augmentation("crop_flip")
    config.data.train_size = 1_281_167
    config.data.eval_size = 50_000
    config.data.num_classes = 1000

    config.total_epochs = 130.0
    config.warmup_epochs = 10.0
    config.batch_size = 4096
    config.learning_rate = 1.6
    config.reference_batch_size = 4096
    config.momentum = 0.9
    config.weight_decay = 1e-4
    config.label_smoothing = 0.1
    config.average_decay = 0.9999

    config.log_every = 50
    config.eval_every = 1000
    config.checkpoint_every = 1000
    return config
