"""ResNet-50 on ImageNet, the paper's convolutional baseline (table 1).

    python main.py --config=configs/resnet50.py --workdir=runs/resnet50 --config.data.dir=DATA

Hardware: the paper's is 128 TPU v3 cores, 32 images each. Time: not known.
Expected: 76.9 % top-1 (paper). Not run.

All but the network is as in sa_resnet50.py.
"""

from ml_collections import ConfigDict

from configs import sa_resnet50


def get_config() -> ConfigDict:
    config = sa_resnet50.get_config()
    config.model.name = "resnet50"
    return config
