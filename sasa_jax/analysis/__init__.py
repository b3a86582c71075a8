"""Accounting of parameters and FLOPS, the paper's tables, pictures of attention."""

from sasa_jax.analysis.attention_maps import attention_figure, save_attention_figure
from sasa_jax.analysis.class_figures import classes_figure
from sasa_jax.analysis.detection_figures import DetectedImage, detections_figure
from sasa_jax.analysis.figures import figure_pixels
from sasa_jax.analysis.flops import Counts, Flops, LayerCount, count, format_table
from sasa_jax.analysis.training_curves import curves_figure

__all__ = [
    "Counts",
    "DetectedImage",
    "Flops",
    "LayerCount",
    "attention_figure",
    "classes_figure",
    "count",
    "curves_figure",
    "detections_figure",
    "figure_pixels",
    "format_table",
    "save_attention_figure",
]
