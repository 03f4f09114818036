"""From an edge case on the road to a signed INT8 model.

The stages are subpackages (``from workbench import data, curation, labeling, training, export``).
They never import each other; a notebook hands one stage's records to the next. Inside a notebook,
``step = workbench.step()`` is the connection to whatever runs it.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from workbench.core.exports import PUBLIC_NAMES

# ONNX Runtime otherwise keeps a device id and reports its use to its makers.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

__version__ = "0.1.0"

if TYPE_CHECKING:
    from workbench.api import mine as mine
    from workbench.api import open as open  # noqa: A004
    from workbench.api import train as train
    from workbench.evaluation.comparison import compare as compare
    from workbench.evaluation.incidents import add_incident as add_incident
    from workbench.evaluation.metrics import evaluate as evaluate
    from workbench.pipeline.connect import step as step

__all__ = list(PUBLIC_NAMES)


def __getattr__(name: str) -> Any:
    if name in PUBLIC_NAMES:
        import importlib

        return getattr(importlib.import_module(PUBLIC_NAMES[name]), name)
    raise AttributeError(f"module 'workbench' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *PUBLIC_NAMES])
