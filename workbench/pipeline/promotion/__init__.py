"""Promotion: a checked notebook becomes an immutable ``step@version`` that pipelines can name.

    from workbench.pipeline import promotion
    promotion.resolve(project, "train@production").path

The repository is the truth; MLflow's registry mirrors it.
"""

from workbench.pipeline.promotion.versions import (
    Promoted,
    is_reference,
    load,
    resolve,
    steps,
    versions,
)

__all__ = ["Promoted", "is_reference", "load", "resolve", "steps", "versions"]
