"""RetinaNet on COCO as in the paper (section 4.2, table 2): attention in backbone and heads.

    python main.py --config=configs/retinanet.py --workdir=runs/retinanet \\
        --config.data.dir=DATA --config.backbone_from=runs/sa_resnet50

Hardware: not named in the paper. Time: not known.
Expected: COCO AP 36.6, AP50 54.5 (paper). Not run.

`backbone_from` is the workdir of a classification run of the same network; without it the backbone
begins at random, which the paper does not do. `configs/paper.py:t2...` has every row of table 2.

From the paper: 640x640, batch 64, 150 epochs, learning rate 0 to 0.12 over one epoch, then cosine
decay; multi-scale jitter, crop and flip; heads of width 256, 8 heads of attention, windows of 7,
W_V of deviation 0.01. It does not say the range of the jitter, the anchors, the losses' constants
or the weight decay: here the field's usual ones, and six anchors at a place and a logit for each of
COCO's 90 category ids, which is what its parameter counts ask for.
"""

from ml_collections import ConfigDict

from configs import common


def get_config() -> ConfigDict:
    config = common.detection_config()
    config.model = common.model("sa_resnet50", dtype="bfloat16")
    config.detector = common.detector(heads="attention")
    config.category_ids = 90

    config.data.name = "coco/2017"
    config.data.train_split = "train"
    config.data.eval_split = "validation"
    config.data.image_size = 640
    config.data.augmentation.scale = (0.5, 2.0)
    config.data.augmentation.flip = 0.5
    config.data.train_size = 118_287
    config.data.eval_size = 5000
    config.data.num_classes = 80

    config.total_epochs = 150.0
    config.warmup_epochs = 1.0
    config.batch_size = 64
    config.learning_rate = 0.12
    config.reference_batch_size = 64
    config.momentum = 0.9
    config.weight_decay = 1e-4
    config.average_decay = 0.9999

    config.log_every = 50
    config.eval_every = 5000
    config.checkpoint_every = 2000
    return config
