"""What came from what: in the records, in MLflow, as a page, as events.

from workbench.pipeline import lineage
graph = lineage.trace(store, ref)      # what it came from; lineage.follow: what was made of it
lineage.show(graph)                    # the picture, as the last line of a notebook's cell
"""

from workbench.pipeline.lineage.page import Page, show
from workbench.pipeline.lineage.tracing import (
    NODE_KINDS,
    Graph,
    as_text,
    follow,
    joined,
    trace,
)

__all__ = ["NODE_KINDS", "Graph", "Page", "as_text", "follow", "joined", "show", "trace"]
