"""Rebuild a model from its lineage alone, in a clean folder, and compare digests.

ancestry   which recorded steps made it, in order, and where that ends: the leaves
leaves     copies what is never rebuilt: raw frames, label sets, the champion compared with
rebuild    runs the recorded notebooks again and compares what comes out
compare    tells in words how two records, two notebooks or two environments differ
report     what came of it
"""

from workbench.pipeline.reproduction.ancestry import Ancestry, trace
from workbench.pipeline.reproduction.rebuild import Display, reproduce
from workbench.pipeline.reproduction.report import Difference, Report, StepOutcome

__all__ = [
    "Ancestry",
    "Difference",
    "Display",
    "Report",
    "StepOutcome",
    "reproduce",
    "trace",
]
