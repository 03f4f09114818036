"""Datasets: read sources, check them, assign roles, compare versions.

ingested = data.ingest(workspace, folder, name="camvid")
dataset = data.assign_roles(ingested.dataset)
ref = ingested.save(store, dataset)
"""

from workbench.data.ingest import IngestResult, ingest
from workbench.data.roles import RolePolicy, assign_roles, widen_gaps, withhold_labels
from workbench.data.schema import FRONT_CAMERA, load_schema, read_mapping, with_mapping

__all__ = [
    "FRONT_CAMERA",
    "IngestResult",
    "RolePolicy",
    "assign_roles",
    "ingest",
    "load_schema",
    "read_mapping",
    "widen_gaps",
    "with_mapping",
    "withhold_labels",
]
