"""Lineage: which records a record was made from, and which were made from it.

from workbench.pipeline import lineage
graph = lineage.trace(store, ref)      # forward=True: what was made from it
lineage.show(graph)                    # the picture, as the last line of a notebook cell
"""

from workbench.pipeline.lineage.graph import LineageGraph, trace, trace_reference
from workbench.pipeline.lineage.page import LineagePage, show

__all__ = ["LineageGraph", "LineagePage", "show", "trace", "trace_reference"]
