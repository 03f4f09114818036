"""Promotion: a checked notebook becomes an immutable ``step@version`` that pipelines can name.

    from workbench.pipeline import promotion
    promotion.resolve(project, "train@production").path

The repository is the truth; MLflow's registry mirrors it. Here stands what finds and moves
versions, which planning needs and is light; making one is `workbench.pipeline.promotion.promote`.
"""

from workbench.pipeline.promotion.aliases import move, roll_back
from workbench.pipeline.promotion.generated import run_on_fixture
from workbench.pipeline.promotion.repository import (
    Promoted,
    is_reference,
    load,
    project_of,
    resolve,
    steps,
    versions,
)

__all__ = [
    "Promoted",
    "is_reference",
    "load",
    "move",
    "project_of",
    "resolve",
    "roll_back",
    "run_on_fixture",
    "steps",
    "versions",
]
