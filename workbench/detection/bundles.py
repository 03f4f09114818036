"""Export bundles: file names, and reading a bundle with all its checks.

Everything that reads a bundle uses this module, so a vehicle needs nothing of the export stage.
"""

from __future__ import annotations

import io
import pickletools
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

from pydantic import Field

from workbench.core import digest
from workbench.core.errors import DataError, RecordError, Refusal, VerificationError
from workbench.core.parsing import UNREADABLE, parse_json, read_regular
from workbench.core.types import Json
from workbench.detection.boxes import CONFIDENCE_THRESHOLD
from workbench.detection.config import from_onnx_metadata
from workbench.detection.preprocessing import Preprocessing
from workbench.records.base import FrozenModel

__all__ = ()

FP32_FILE, INT8_CPU_FILE, INT8_TARGET_FILE = "fp32.onnx", "int8.cpu.onnx", "int8.target.onnx"
PROGRAM_FILE = "fp32.pt2"
MANIFEST_FILE, CALIBRATION_FILE, PARITY_FILE = "manifest.json", "calibration.json", "parity.json"
PREPROCESSING_FILE, SENSITIVITY_FILE = "preprocessing.json", "sensitivity.json"
SIGNATURE_FILE = "signature"
PICKLE_SUFFIXES = (".pkl", ".pickle", ".pt", ".pth", ".joblib", ".npy", ".npz")


class OperatingPoint(FrozenModel):
    """The threshold that a model is deployed with; frozen before the judged frames are looked at.

    Attributes:
        threshold: Score from which a box is acted on, in [0, 1].
        how: The rule and its outcome, in words.
        precision: On the frames it was chosen on.
        recall: On the frames it was chosen on.
    """

    threshold: float = Field(ge=0, le=1)
    how: str
    precision: float | None = None
    recall: float | None = None


def operating_point(manifest: Mapping[str, Any]) -> OperatingPoint | None:
    """What a bundle's manifest says; None for bundles of schema version 1."""
    content = manifest.get("operating_point")
    return None if content is None else OperatingPoint.model_validate(content)


def threshold_of(point: OperatingPoint | None) -> float:
    """Score from which boxes are acted on; `CONFIDENCE_THRESHOLD` where none was chosen."""
    return CONFIDENCE_THRESHOLD if point is None else point.threshold


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
        return {path.name: read_regular(path) for path in paths}
    except (OSError, ValueError) as error:
        what = getattr(error, "strerror", None) or error
        raise RecordError(f"bundle cannot be read: {what}", where=folder) from error


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
    refuse_unsafe(files, where=folder)
    try:
        manifest: Json = parse_json(files[MANIFEST_FILE])
        listed: dict[str, str] = {name: row["sha256"] for name, row in manifest["files"].items()}
        manifest["preprocessing"], list(manifest["classes"])
        operating_point(manifest)
    except UNREADABLE as error:
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


def refuse_unsafe(files: Mapping[str, bytes], *, where: object) -> None:
    """Refuse files that run code when they are loaded, or load other files.

    Pickles of every protocol, archives of them, and ONNX files with weights elsewhere.

    Raises:
        VerificationError: There is one.
    """
    for name, content in files.items():
        if _can_run_code(content) or name.endswith(PICKLE_SUFFIXES):
            raise VerificationError(
                f"bundle has a file that can run code: {name}",
                where=where,
                hint="Do not load it; a bundle has ONNX, safetensors and JSON only",
                reason=Refusal.UNSAFE_FILE,
            )
        if name.endswith(".onnx"):
            refuse_external_weights(content, where=name)


def refuse_external_weights(content: bytes, *, where: object) -> None:
    """Refuse an ONNX file whose weights lie in other files: no digest covers those.

    ONNX Runtime would read them from the current folder. What is not ONNX is left to it.

    Raises:
        VerificationError: It has such weights.
    """
    import onnx

    waiting: list[Any] = []
    try:
        waiting.append(onnx.load_model_from_string(content))
    except Exception:  # protobuf's own errors share no public base
        return
    while waiting:  # tensors are in graphs, in graphs of nodes, in functions, in sparse tensors
        message = waiting.pop()
        if isinstance(message, onnx.TensorProto) and message.external_data:
            raise VerificationError(
                f"the model has weights in another file: {message.name!r}",
                where=where,
                hint="Do not load it; write it as one file (onnx.save without external data)",
                reason=Refusal.UNSAFE_FILE,
            )
        for field, value in message.ListFields():
            if field.type == field.TYPE_MESSAGE:
                waiting += value if hasattr(value, "__len__") else [value]


def _can_run_code(content: bytes) -> bool:
    """Whether a file is a pickle, or a ZIP archive with one in it or that cannot be read."""
    if _is_pickle(io.BytesIO(content)):
        return True
    if b"PK\x05\x06" not in content:  # the end of every ZIP archive
        return False
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            for name in archive.namelist():
                with archive.open(name) as stream:
                    if _is_pickle(stream):
                        return True
    except (NotImplementedError, RuntimeError, OSError, EOFError, zlib.error):
        return True
    except zipfile.BadZipFile:
        return content.startswith(b"PK")
    return False


_RUNS_CODE = {"GLOBAL", "STACK_GLOBAL", "INST", "OBJ", "NEWOBJ", "NEWOBJ_EX", "REDUCE", "BUILD"}
_MAX_PICKLE_BYTES = 2**20
_IS_PROTOCOL = tuple(b"\x80" + bytes([number]) for number in range(2, 6))


def _is_pickle(stream: IO[bytes]) -> bool:
    """Whether Python could unpickle what a stream begins with."""
    start = stream.read(_MAX_PICKLE_BYTES)
    if start.startswith(_IS_PROTOCOL):
        return True
    names = set()
    try:
        for opcode, _, _ in pickletools.genops(start):
            names.add(opcode.name)
    except (ValueError, IndexError, EOFError):
        return bool(names & _RUNS_CODE) and len(start) == _MAX_PICKLE_BYTES
    return bool(names & _RUNS_CODE)


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
