"""Widgets of the research notebooks. They draw and ask; what a click does is handed to them."""

from workbench.widgets.actions import sending, tagging
from workbench.widgets.browser import FrameBrowser
from workbench.widgets.labeling_status import LabelingStatus, batches_out
from workbench.widgets.pictured import PicturedFrame, pictured
from workbench.widgets.run_progress import RunProgress, run

__all__ = [
    "FrameBrowser",
    "LabelingStatus",
    "PicturedFrame",
    "RunProgress",
    "batches_out",
    "pictured",
    "run",
    "sending",
    "tagging",
]
