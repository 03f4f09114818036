"""Hygiene: duplicates, leaks between roles, thin conditions, labels that look wrong.

made = hygiene.inspect(store, dataset_ref, model_ref)     # an Inspection record
found = hygiene.read(store, made)                         # verdict, leaks, clusters, cells, errors
"""

from workbench.curation.hygiene.alike import Likeness, Yardstick, measure
from workbench.curation.hygiene.coverage import Cell, Target, coverage_of, read_target, thin
from workbench.curation.hygiene.duplicates import Cluster, Duplicates
from workbench.curation.hygiene.fingerprints import Fingerprints, fingerprints
from workbench.curation.hygiene.inspection import (
    Found,
    InspectionRules,
    alike_across_cuts,
    inspect,
    likeness,
    read,
)
from workbench.curation.hygiene.leakage import Leak, Leakage, LeakageRules
from workbench.perception.label_errors import LabelError

__all__ = [
    "Cell",
    "Cluster",
    "Duplicates",
    "Fingerprints",
    "Found",
    "InspectionRules",
    "LabelError",
    "Leak",
    "Leakage",
    "LeakageRules",
    "Likeness",
    "Target",
    "Yardstick",
    "alike_across_cuts",
    "coverage_of",
    "fingerprints",
    "inspect",
    "likeness",
    "measure",
    "read",
    "read_target",
    "thin",
]
