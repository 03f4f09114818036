"""Jupyter widgets of the research notebooks. Actions are passed in as callables."""

from workbench.widgets.browser import BrowserExtras, FrameBrowser, send_action, tag_action
from workbench.widgets.frames import (
    DrawnBox,
    contact_sheet,
    dataset_frames,
    embedded_frames,
    selected_frames,
    similar_frames,
)
from workbench.widgets.labeling_status import sent_batches
from workbench.widgets.run_progress import RunProgress, run

__all__ = [
    "BrowserExtras",
    "DrawnBox",
    "FrameBrowser",
    "RunProgress",
    "contact_sheet",
    "dataset_frames",
    "embedded_frames",
    "run",
    "selected_frames",
    "send_action",
    "sent_batches",
    "similar_frames",
    "tag_action",
]
