"""Every row of the paper's tables by name: 1 and 3-7 on ImageNet, 2 on COCO.

    python main.py --config=configs/paper.py:t3.conv1_attn234 --workdir=runs/t3.conv1_attn234 \\
        --config.data.dir=DATA
    python main.py --config=configs/paper.py:t2.attn_attn --workdir=runs/t2.attn_attn \\
        --config.data.dir=DATA --config.backbone_from=runs/sa_resnet50

Hardware: the paper's for ImageNet is 128 TPU v3 cores, 32 images each. Time: not known.
Expected: the accuracy or AP printed in the paper; `python -m sasa_jax.analysis.tables` lists the
rows with it. Not run, none of them.

A row that does not exist, or none, lists them all. Each is sa_resnet50.py, or retinanet.py, with
another network. Tables 3 and 5 report accuracy on 4 % of the training images, which are held out of
training here; TFDS stores ImageNet shuffled, so the first 4 % are random ones.
"""

from ml_collections import ConfigDict

from configs import retinanet, sa_resnet50
from sasa_jax.analysis.paper import DetectionRow, find_row


def get_config(row: str = "") -> ConfigDict:
    printed = find_row(row)
    if isinstance(printed, DetectionRow):
        config = retinanet.get_config()
        config.detector.heads = "conv"  # unless the row says otherwise
        config.detector.update(printed.detector)
    else:
        config = sa_resnet50.get_config()
        if printed.held_out:
            images = config.data.train_size
            config.data.train_split = "train[4%:]"
            config.data.eval_split = "train[:4%]"
            config.data.eval_size = round(0.04 * images)
            config.data.train_size = images - config.data.eval_size
    config.model.name = printed.model
    config.model.update(printed.overrides)
    return config
