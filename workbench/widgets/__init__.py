"""Widgets of the research notebooks. They draw and ask; what a click does is handed to them."""

from workbench.widgets.actions import sending, tagging
from workbench.widgets.browser import FrameBrowser
from workbench.widgets.exemplars import alike_frames, contact_sheet, seen_frames
from workbench.widgets.labeling_status import LabelingStatus, batches_out
from workbench.widgets.likeness import MoreLikeThis
from workbench.widgets.pictured import DrawnBox, PicturedFrame, pictured
from workbench.widgets.run_progress import RunProgress, run

__all__ = [
    "DrawnBox",
    "FrameBrowser",
    "LabelingStatus",
    "MoreLikeThis",
    "PicturedFrame",
    "RunProgress",
    "alike_frames",
    "batches_out",
    "contact_sheet",
    "pictured",
    "run",
    "seen_frames",
    "sending",
    "tagging",
]
