"""Attention RetinaNet on scenes of handwritten digits: the detection demonstration.

    python main.py --config=configs/digit_scenes.py --workdir=runs/digit_scenes

Hardware: 2 CPU cores. Time: 12 minutes with `make demo-detection` on cores shared with many other
runs, 13.4 minutes of processor time, so some 7 to 8 on two of its own (AMD EPYC, JAX 0.10.2,
2026-11-23).
Expected: COCO AP 0.742, AP50 0.928 on 200 test scenes (seed 0).

The scenes are made on first use, without network: real digits of scikit-learn, pasted on 96x96
pixels. Test scenes are made of test digits. Settings were chosen on the split "validation", whose
digits are in no training scene, never on the test set.
"""

from ml_collections import ConfigDict

from configs import common


def get_config() -> ConfigDict:
    config = common.detection_config()
    config.model = common.model(
        "sa_resnet26_conv_stem", blocks=(1, 1, 1, 1), width=0.5, num_heads=4, window=3
    )
    config.detector = common.detector(
        features=64,
        tower_depth=2,
        num_heads=4,
        fpn="attention",
        heads="attention",
        fpn_window=3,
        head_window=3,
        residual=True,  # not the paper's; docs/detection.md has the table
    )
    config.anchors.size = 2.0
    config.anchors.aspect_ratios = (1.0, 1.5, 2.25)

    config.data.name = "digit_scenes"
    config.data.train_split = "train"
    config.data.eval_split = "test"
    config.data.image_size = 96
    config.data.max_boxes = 8
    config.data.threads = 2
    config.data.augmentation.scale = (0.8, 1.25)
    config.data.augmentation.flip = 0.0

    config.total_steps = 1100
    config.warmup_epochs = 0.05
    config.total_epochs = 1.0
    config.batch_size = 16
    config.eval_batch_size = 40
    config.learning_rate = 0.1
    config.clip_norm = 1.0
    config.weight_decay = 1e-4
    config.average_decay = 0.995

    config.log_every = 100
    config.eval_every = 550
    config.checkpoint_every = 550
    return config
