"""Figure primitives in one theme: arrays and labels in, plotly figures out. Imports nothing of steerlab's."""

from __future__ import annotations

from steerlab.plots.heatmaps import heatmap
from steerlab.plots.panels import heatmaps
from steerlab.plots.paper import INCHES, Column, paper
from steerlab.plots.primitives import bars, curves, draws_something, histogram, reliability, scatter
from steerlab.plots.series import Series
from steerlab.plots.static import Saved, find_browser, save, save_all, why_no_picture
from steerlab.plots.theme import BASE, CONTROL, POST

__all__ = [
    "BASE",
    "CONTROL",
    "INCHES",
    "POST",
    "Column",
    "Saved",
    "Series",
    "bars",
    "curves",
    "draws_something",
    "find_browser",
    "heatmap",
    "heatmaps",
    "histogram",
    "paper",
    "reliability",
    "save",
    "save_all",
    "scatter",
    "why_no_picture",
]
