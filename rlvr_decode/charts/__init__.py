"""Charts of lines with bands and of histograms: one description, drawn as SVG and as PNG."""

from rlvr_decode.charts.chart import Chart, Series

__all__ = ["Chart", "Series"]
