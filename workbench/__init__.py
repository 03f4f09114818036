"""From an edge case on the road to a signed INT8 model.

The stages are subpackages (``from workbench import data, curation, labeling, training, export``).
They never import each other; a notebook hands one stage's records to the next. Inside a notebook,
``step = workbench.step()`` is the connection to whatever runs it.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

# ONNX Runtime otherwise keeps a device id and reports its use to its makers.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

__version__ = "0.1.0"

if TYPE_CHECKING:
    from workbench.pipeline.connect import step as step


def __getattr__(name: str) -> Any:
    if name == "step":
        from workbench.pipeline.connect import step

        return step
    raise AttributeError(f"module 'workbench' has no attribute {name!r}")
