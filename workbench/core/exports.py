"""The names that ``import workbench`` offers, and the module that each is imported from.

`workbench` imports a name on first use, so that importing the package alone is instant. The key of
a pipeline's step follows this table too, so a notebook depends on the names that it uses.
"""

from __future__ import annotations

__all__ = ["PUBLIC_NAMES"]

PUBLIC_NAMES = {
    "open": "workbench.api",
    "mine": "workbench.api",
    "train": "workbench.api",
    "add_incident": "workbench.evaluation.incidents",
    "evaluate": "workbench.evaluation.metrics",
    "compare": "workbench.evaluation.comparison",
    "step": "workbench.pipeline.connect",
}
