"""Hygiene: duplicates, leaks between roles, thin conditions, labels that look wrong."""

from workbench.curation.hygiene.coverage import (
    CoverageCell,
    CoverageTarget,
    dataset_coverage,
    read_coverage_target,
    thin_cells,
)
from workbench.curation.hygiene.duplicates import (
    DuplicateCluster,
    Duplicates,
    FrameFeatures,
    SimilarityThreshold,
    measure_threshold,
)
from workbench.curation.hygiene.fingerprints import Fingerprints, compute_fingerprints
from workbench.curation.hygiene.inspection import (
    InspectionFindings,
    InspectionRules,
    frame_features,
    inspect_dataset,
    read_findings,
    similar_across_cuts,
)
from workbench.curation.hygiene.leakage import Leak, LeakageResult, LeakageRules
from workbench.detection.label_errors import LabelError

__all__ = [
    "CoverageCell",
    "CoverageTarget",
    "DuplicateCluster",
    "Duplicates",
    "Fingerprints",
    "FrameFeatures",
    "InspectionFindings",
    "InspectionRules",
    "LabelError",
    "Leak",
    "LeakageResult",
    "LeakageRules",
    "SimilarityThreshold",
    "compute_fingerprints",
    "dataset_coverage",
    "frame_features",
    "inspect_dataset",
    "measure_threshold",
    "read_coverage_target",
    "read_findings",
    "similar_across_cuts",
    "thin_cells",
]
