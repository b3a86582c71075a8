"""Object detection as pure functions of arrays: anchors, matching, loss, decoding, COCO metrics.

boxes: areas, overlap, codes. anchors. matching: anchors to boxes. losses. decoding, nms: from
predictions to detections. coco: result files and the twelve numbers. evaluate: the same from a
command line.
"""

from sasa_jax.detection.anchors import Anchors
from sasa_jax.detection.decoding import Detections, detect
from sasa_jax.detection.losses import detection_loss

__all__ = ["Anchors", "Detections", "detect", "detection_loss"]
