"""Every row of the paper's tables 1 and 3-7 on ImageNet, by name.

    python main.py --config=configs/paper.py:t3.conv1_attn234 --workdir=runs/t3.conv1_attn234 \\
        --config.data.dir=DATA

Hardware: the paper's is 128 TPU v3 cores, 32 images each. Time: not known.
Expected: the accuracy printed in the paper; `python -m sasa_jax.analysis.tables` lists the rows
with it. Not run, none of them.

A row that does not exist, or none, lists them all. Each is sa_resnet50.py with another network.
Tables 3 and 5 report accuracy on 4 % of the training images, which are held out of training here;
TFDS stores ImageNet shuffled, so the first 4 % are random ones.
"""

from ml_collections import ConfigDict

from configs import sa_resnet50
from sasa_jax.analysis.paper import find_row


def get_config(row: str = "") -> ConfigDict:
    printed = find_row(row)
    config = sa_resnet50.get_config()
    config.model.name = printed.model
    config.model.update(printed.overrides)

    if printed.held_out:
        images = config.data.train_size
        config.data.train_split = "train[4%:]"
        config.data.eval_split = "train[:4%]"
        config.data.eval_size = round(0.04 * images)
        config.data.train_size = images - config.data.eval_size
    return config
