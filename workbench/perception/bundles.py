"""The folder that goes to a car: what is in it, and whether it is whole and of one mind.

Whoever runs a bundle reads it here, so nothing of the stage that wrote it is needed in a car.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from workbench import digest
from workbench.errors import DataError, RecordError
from workbench.perception.contract import from_metadata
from workbench.perception.preprocessing import Preprocessing

FP32, INT8_CPU, INT8_TARGET = "fp32.onnx", "int8.cpu.onnx", "int8.target.onnx"
PROGRAM = "fp32.pt2"
MANIFEST, CALIBRATION, PARITY = "manifest.json", "calibration.json", "parity.json"
PREPROCESSING, SENSITIVITY, MATRIX = "preprocessing.json", "sensitivity.json", "targets.json"
SIGNATURE = "signature"
Json = dict[str, Any]


def read_manifest(folder: Path) -> Json:
    """The manifest of a bundle whose files are all there, as it says, and agree on their input.

    This finds accidents. Against anyone who means harm only the signature helps.

    Raises:
        RecordError: Naming the first file that is missing, changed, not listed, or that carries
            another contract than the bundle's.
    """
    try:
        manifest: Json = json.loads((folder / MANIFEST).read_bytes())
        listed: dict[str, str] = {name: row["sha256"] for name, row in manifest["files"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise RecordError(
            "no readable manifest in the bundle",
            where=folder / MANIFEST,
            hint="It is written last: a bundle without one was not finished. Export it again",
        ) from error
    for name, expected in listed.items():
        path = folder / name
        if path.parent != folder or not path.is_file() or digest.of_file(path) != expected:
            raise RecordError("bundle file is missing or was changed", where=path)
    here = {path.name for path in folder.iterdir()} - {MANIFEST, SIGNATURE}
    if here - listed.keys():
        extra = ", ".join(sorted(here - listed.keys()))
        raise RecordError(f"bundle holds files that it does not list: {extra}", where=folder)
    _require_one_contract(folder, manifest)
    return manifest


def model_files(manifest: Mapping[str, Any]) -> list[str]:
    """The ONNX files of a bundle, by name."""
    return sorted(name for name in manifest["files"] if name.endswith(".onnx"))


def metadata_of(path: Path) -> dict[str, str]:
    """What an ONNX file says of itself; raises `DataError` when it cannot be read."""
    import onnx

    try:
        model = onnx.load(path, load_external_data=False)
    except Exception as error:  # protobuf's own errors share no public base
        raise DataError("file is not ONNX", where=path) from error
    return {entry.key: entry.value for entry in model.metadata_props}


def _require_one_contract(folder: Path, manifest: Json) -> None:
    """A model file that was fed otherwise than the bundle says would fail without any error."""
    where = folder / PREPROCESSING
    try:
        spec = Preprocessing.model_validate_json(where.read_bytes())
    except (OSError, ValueError) as error:
        raise RecordError(
            "no readable preprocessing contract in the bundle", where=where
        ) from error
    if spec.digest != manifest.get("preprocessing"):
        raise RecordError("manifest names another preprocessing contract", where=where)
    for name in model_files(manifest):
        config, carried = from_metadata(metadata_of(folder / name), where=folder / name)
        if carried != spec:
            raise RecordError(
                "model file carries another preprocessing contract than its bundle",
                where=folder / name,
                hint="One of the two was changed after export: export the bundle again",
            )
        if list(config.classes) != manifest["classes"]:
            raise RecordError("model file has other classes than its bundle", where=folder / name)
