"""Export bundles: file names, and reading a bundle with all its checks.

Everything that reads a bundle uses this module, so a vehicle needs nothing of the export stage.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from workbench.core import digest
from workbench.core.errors import DataError, RecordError, Refusal, VerificationError
from workbench.core.types import Json
from workbench.detection.config import from_onnx_metadata
from workbench.detection.preprocessing import Preprocessing

__all__ = ()

FP32_FILE, INT8_CPU_FILE, INT8_TARGET_FILE = "fp32.onnx", "int8.cpu.onnx", "int8.target.onnx"
PROGRAM_FILE = "fp32.pt2"
MANIFEST_FILE, CALIBRATION_FILE, PARITY_FILE = "manifest.json", "calibration.json", "parity.json"
PREPROCESSING_FILE, SENSITIVITY_FILE = "preprocessing.json", "sensitivity.json"
SIGNATURE_FILE = "signature"
PICKLE_SUFFIXES = (".pkl", ".pickle", ".pt", ".pth", ".joblib", ".npy", ".npz")


def read_files(folder: Path) -> dict[str, bytes]:
    """The bytes of every file of a bundle's folder, by name, each read once.

    Raises:
        RecordError: There is no such folder, or something else than files is in it.
    """
    try:
        paths = sorted(folder.iterdir())
        if odd := [path.name for path in paths if path.is_symlink() or not path.is_file()]:
            raise RecordError(
                f"bundle has entries that are not files: {', '.join(odd)}", where=folder
            )
        return {path.name: path.read_bytes() for path in paths}
    except OSError as error:
        raise RecordError(f"bundle cannot be read: {error.strerror}", where=folder) from error


def read_manifest(folder: Path, files: Mapping[str, bytes] | None = None) -> Json:
    """Read the manifest of a bundle after checking its files and their contracts.

    Finds accidental damage; only a signature protects against deliberate changes.

    Args:
        folder: Of the bundle.
        files: Its bytes by name, if they were read (and verified) before; the folder is not read
            again then.

    Returns:
        The content of ``manifest.json``.

    Raises:
        RecordError: A file is missing, changed, not listed, or has another preprocessing contract
            or other classes than the bundle.
    """
    files = read_files(folder) if files is None else files
    refuse_pickles(files, where=folder)
    try:
        manifest: Json = json.loads(files[MANIFEST_FILE])
        listed: dict[str, str] = {name: row["sha256"] for name, row in manifest["files"].items()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise RecordError(
            "no readable manifest in the bundle",
            where=folder / MANIFEST_FILE,
            hint="The manifest is written last, so the export did not finish: export again",
        ) from error
    for name, expected in listed.items():
        if name not in files or digest.of_bytes(files[name]) != expected:
            raise RecordError("bundle file is missing or was changed", where=folder / name)
    present = files.keys() - {MANIFEST_FILE, SIGNATURE_FILE}
    if extra := ", ".join(sorted(present - listed.keys())):
        raise RecordError(
            f"bundle has files that its manifest does not list: {extra}", where=folder
        )
    _check_same_contract(folder, files, manifest)
    return manifest


def refuse_pickles(files: Mapping[str, bytes], *, where: object) -> None:
    """Refuse files that run code when they are loaded: pickles, and PyTorch's archives of them.

    Raises:
        VerificationError: There is one.
    """
    for name, content in files.items():
        pickled = content[:1] == b"\x80" and content[1:2] in {b"\x02", b"\x03", b"\x04", b"\x05"}
        archived = content[:4] == b"PK\x03\x04" and b"data.pkl" in content
        if pickled or archived or name.endswith(PICKLE_SUFFIXES):
            raise VerificationError(
                f"bundle has a file that can run code: {name}",
                where=where,
                hint="Do not load it; a bundle has ONNX, safetensors and JSON only",
                reason=Refusal.UNSAFE_FILE,
            )


def model_files(manifest: Mapping[str, Any]) -> list[str]:
    """Names of the ONNX files of a bundle, sorted."""
    return sorted(name for name in manifest["files"] if name.endswith(".onnx"))


def _read_onnx_metadata(content: bytes, where: Path) -> dict[str, str]:
    """Metadata (``metadata_props``) of an ONNX file.

    Args:
        content: Its bytes.
        where: Its path, for messages.

    Raises:
        DataError: The file is not ONNX.
    """
    import onnx

    try:
        model = onnx.load_model_from_string(content)
    except Exception as error:  # protobuf's own errors share no public base
        raise DataError("file is not ONNX", where=where) from error
    return {entry.key: entry.value for entry in model.metadata_props}


def _check_same_contract(folder: Path, files: Mapping[str, bytes], manifest: Json) -> None:
    """Other preprocessing in a model file than in its bundle would cost accuracy silently."""
    where = folder / PREPROCESSING_FILE
    try:
        spec = Preprocessing.model_validate_json(files[PREPROCESSING_FILE])
    except (KeyError, ValueError) as error:
        raise RecordError(
            "no readable preprocessing contract in the bundle", where=where
        ) from error
    if spec.digest != manifest.get("preprocessing"):
        raise RecordError(
            "preprocessing contract differs from the one in the manifest", where=where
        )
    for name in model_files(manifest):
        config, file_spec = from_onnx_metadata(
            _read_onnx_metadata(files[name], folder / name), where=folder / name
        )
        if file_spec != spec:
            raise RecordError(
                "model file and bundle have different preprocessing contracts",
                where=folder / name,
                hint="One of the two was changed after export: export the bundle again",
            )
        if list(config.classes) != manifest["classes"]:
            raise RecordError("model file and bundle have different classes", where=folder / name)
