"""Export bundles: file names, and reading a bundle with all its checks."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from workbench.core import digest
from workbench.core.errors import DataError, RecordError
from workbench.detection.config import from_onnx_metadata
from workbench.detection.preprocessing import Preprocessing

FP32_FILE, INT8_CPU_FILE, INT8_TARGET_FILE = "fp32.onnx", "int8.cpu.onnx", "int8.target.onnx"
PROGRAM_FILE = "fp32.pt2"
MANIFEST_FILE, CALIBRATION_FILE, PARITY_FILE = "manifest.json", "calibration.json", "parity.json"
PREPROCESSING_FILE, SENSITIVITY_FILE, TARGETS_FILE = (
    "preprocessing.json",
    "sensitivity.json",
    "targets.json",
)
SIGNATURE_FILE = "signature"
Json = dict[str, Any]


def read_manifest(folder: Path) -> Json:
    """The manifest of a bundle whose files are all there, as it says, and agree on their input.

    This finds accidents. Against anyone who means harm only the signature helps.

    Raises:
        RecordError: Naming the first file that is missing, changed, not listed, or that carries
            another contract than the bundle's.
    """
    try:
        manifest: Json = json.loads((folder / MANIFEST_FILE).read_bytes())
        listed: dict[str, str] = {name: row["sha256"] for name, row in manifest["files"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise RecordError(
            "no readable manifest in the bundle",
            where=folder / MANIFEST_FILE,
            hint="It is written last: a bundle without one was not finished. Export it again",
        ) from error
    for name, expected in listed.items():
        path = folder / name
        if path.parent != folder or not path.is_file() or digest.of_file(path) != expected:
            raise RecordError("bundle file is missing or was changed", where=path)
    here = {path.name for path in folder.iterdir()} - {MANIFEST_FILE, SIGNATURE_FILE}
    if here - listed.keys():
        extra = ", ".join(sorted(here - listed.keys()))
        raise RecordError(f"bundle holds files that it does not list: {extra}", where=folder)
    _check_same_contract(folder, manifest)
    return manifest


def model_files(manifest: Mapping[str, Any]) -> list[str]:
    """The ONNX files of a bundle, by name."""
    return sorted(name for name in manifest["files"] if name.endswith(".onnx"))


def read_onnx_metadata(path: Path) -> dict[str, str]:
    """What an ONNX file says of itself; raises `DataError` when it cannot be read."""
    import onnx

    try:
        model = onnx.load(path, load_external_data=False)
    except Exception as error:  # protobuf's own errors share no public base
        raise DataError("file is not ONNX", where=path) from error
    return {entry.key: entry.value for entry in model.metadata_props}


def _check_same_contract(folder: Path, manifest: Json) -> None:
    """A model file that was fed otherwise than the bundle says would fail without any error."""
    where = folder / PREPROCESSING_FILE
    try:
        spec = Preprocessing.model_validate_json(where.read_bytes())
    except (OSError, ValueError) as error:
        raise RecordError(
            "no readable preprocessing contract in the bundle", where=where
        ) from error
    if spec.digest != manifest.get("preprocessing"):
        raise RecordError("manifest names another preprocessing contract", where=where)
    for name in model_files(manifest):
        config, carried = from_onnx_metadata(read_onnx_metadata(folder / name), where=folder / name)
        if carried != spec:
            raise RecordError(
                "model file carries another preprocessing contract than its bundle",
                where=folder / name,
                hint="One of the two was changed after export: export the bundle again",
            )
        if list(config.classes) != manifest["classes"]:
            raise RecordError("model file has other classes than its bundle", where=folder / name)
