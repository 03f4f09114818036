"""The folder that goes to a car, and the record it is kept in.

``manifest.json`` says what is in the folder and what is known about each file; nothing in it
depends on time or place, so exporting the same weights again gives the same bytes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from workbench import digest, workspace
from workbench.errors import ParameterError
from workbench.export.calibration import as_json
from workbench.export.targets import Target
from workbench.perception.bundles import (
    CALIBRATION,
    FP32,
    INT8_CPU,
    INT8_TARGET,
    MANIFEST,
    PARITY,
    PREPROCESSING,
    PROGRAM,
    SENSITIVITY,
    read_manifest,
)
from workbench.perception.contract import DetectorConfig
from workbench.perception.preprocessing import Preprocessing
from workbench.records.base import Ref
from workbench.records.store import Store
from workbench.records.types import CalibrationSet, ExportBundle, Supplier

Json = dict[str, Any]
__all__ = [
    "CALIBRATION",
    "FP32",
    "INT8_CPU",
    "INT8_TARGET",
    "MANIFEST",
    "PARITY",
    "PREPROCESSING",
    "PROGRAM",
    "SENSITIVITY",
    "read_manifest",
    "save",
    "write_bundle",
]


def write_bundle(  # noqa: PLR0913 - one argument a file of the bundle
    folder: Path,
    *,
    checkpoint: Ref,
    config: DetectorConfig,
    preprocessing: Preprocessing,
    models: Mapping[str, bytes],
    calibration: CalibrationSet,
    parity: Json,
    targets: Sequence[Target],
    sensitivity: Json | None = None,
    supplier: Supplier | None = None,
) -> Json:
    """Write all files of a bundle but its signature, the manifest last, and return the manifest.

    Args:
        folder: New or empty, so that nothing else is ever shipped along.
        models: Bytes by file name, whichever runtime they are for.
        sensitivity: Of `sensitivity.Sensitivity.as_json`, where it was measured.
        targets: What is known about each model file.
        supplier: Whose part the network is: origin, licence and digest go with it to the car.

    Raises:
        ParameterError: The folder holds something, or a target names a file that is not there.
    """
    if folder.exists() and any(folder.iterdir()):
        raise ParameterError("bundle folder is not empty", where=folder, hint="Name a new one")
    unknown = {target.file for target in targets} - models.keys()
    if unknown:
        raise ParameterError(f"targets name files that are not exported: {', '.join(unknown)}")
    files = {
        **models,
        PREPROCESSING: digest.canonical_json(preprocessing.model_dump(mode="json")),
        CALIBRATION: digest.canonical_json(as_json(calibration)),
        PARITY: digest.canonical_json(parity),
        **({SENSITIVITY: digest.canonical_json(sensitivity)} if sensitivity else {}),
    }
    manifest = {
        "schema_version": 1,
        "checkpoint": checkpoint,
        "classes": list(config.classes),
        "thresholds": {
            "score": config.score_threshold,
            "nms_iou": config.nms_iou,
            "max_detections": config.max_detections,
        },
        "preprocessing": preprocessing.digest,
        "simulated": calibration.simulated,
        **({"supplier": supplier.model_dump(mode="json")} if supplier else {}),
        "targets": [target.model_dump(mode="json") for target in targets],
        "files": {
            name: {"sha256": digest.of_bytes(content), "bytes": len(content)}
            for name, content in files.items()
        },
    }
    for name, content in files.items():
        workspace.write_atomic(folder / name, content)
    workspace.write_atomic(folder / MANIFEST, digest.canonical_json(manifest))
    return manifest


def save(store: Store, folder: Path, *, latency: Json | None = None) -> Ref:
    """Keep a bundle folder as an `ExportBundle` record; ``latency`` stays outside its digest."""
    manifest = read_manifest(folder)
    calibration = CalibrationSet.model_validate_json((folder / CALIBRATION).read_bytes())
    record = ExportBundle(
        checkpoint=manifest["checkpoint"],
        calibration=calibration.dataset,
        calibration_set=store.put(calibration, {}),
        classes=tuple(manifest["classes"]),
        parity=json.loads((folder / PARITY).read_bytes()),
    )
    payload = {name: folder / name for name in (*manifest["files"], MANIFEST)}
    return store.put(record, payload, side={"latency": latency} if latency else None)
