"""Hygiene: duplicates, leaks between roles, thin conditions, labels that look wrong."""

from workbench.curation.hygiene.coverage import (
    CoverageTarget,
    read_coverage_target,
    thin_cells,
)
from workbench.curation.hygiene.duplicates import (
    SimilarityThreshold,
    measure_threshold,
)
from workbench.curation.hygiene.fingerprints import compute_fingerprints
from workbench.curation.hygiene.inspection import (
    InspectionRules,
    frame_features,
    inspect_dataset,
    read_findings,
    similar_across_cuts,
)
from workbench.curation.hygiene.leakage import LeakageRules

__all__ = [
    "CoverageTarget",
    "InspectionRules",
    "LeakageRules",
    "SimilarityThreshold",
    "compute_fingerprints",
    "frame_features",
    "inspect_dataset",
    "measure_threshold",
    "read_coverage_target",
    "read_findings",
    "similar_across_cuts",
    "thin_cells",
]
