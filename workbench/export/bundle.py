"""The export bundle: its folder and record, and the target matrix.

``manifest.json`` lists the files and what is known about each; nothing in it depends on time or
place, so exporting the same weights again gives the same bytes. The target matrix says on which
chip and engine a file may run: what could be claimed is data (``pipelines/targets.yaml``), and what
is claimed comes from what the export ran or linted.
"""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
import yaml
from onnx import numpy_helper
from pydantic import Field, ValidationError

from workbench.core import digest, workspace
from workbench.core.errors import ParameterError
from workbench.core.parsing import read_yaml
from workbench.core.types import Json
from workbench.detection.bundles import (
    CALIBRATION_FILE,
    MANIFEST_FILE,
    PARITY_FILE,
    PREPROCESSING_FILE,
    SENSITIVITY_FILE,
    OperatingPoint,
    read_manifest,
)
from workbench.detection.config import DetectorConfig
from workbench.detection.preprocessing import Preprocessing
from workbench.records.base import FrozenModel, Ref
from workbench.records.model_types import CalibrationSet, ExportBundle, Supplier
from workbench.records.store import Store

__all__ = ["load_target_matrix", "target_table"]

DEFAULT_TARGETS = "pipelines/targets.yaml"
_MAX_FINDINGS = 5
_NEVER_RUN = "never built or run on a device"


class Target(FrozenModel):
    """State of one file of a bundle on one target.

    Attributes:
        file: File name.
        machine: The engine that runs it.
        status: ``verified``: run and compared on that kind of machine. ``linted``: keeps the rules
            of that machine's compiler as far as the file shows them. ``untested``: neither.
        why: The evidence in words.
        chip: The chip.
        runtime: Versions of the engine.
        precision: ``fp32``, ``fp16`` or ``int8``.
    """

    file: str
    machine: str
    status: Literal["verified", "linted", "untested"]
    why: str
    chip: str = ""
    runtime: str = ""
    precision: str = ""


def write_bundle(  # noqa: PLR0913 - one argument for each file
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
    operating_point: OperatingPoint | None = None,
) -> Json:
    """Write all files of a bundle except its signature, the manifest last.

    Args:
        folder: New or empty, so that nothing else is shipped.
        checkpoint: The exported checkpoint.
        config: The detector's configuration.
        preprocessing: The network's input contract.
        models: Content of the model files by name.
        calibration: What the INT8 ranges were made from.
        parity: The parity report.
        targets: State of each file on each target.
        sensitivity: Of `Sensitivity.as_json`, where it was measured.
        supplier: Origin, licence and digest of a pretrained network.
        operating_point: Threshold that users of the bundle act at.

    Returns:
        The manifest.

    Raises:
        ParameterError: The folder is not empty, or a target names a file that is not exported.
    """
    if folder.exists() and any(folder.iterdir()):
        raise ParameterError(
            "the bundle folder is not empty", where=folder, hint="Name a new folder"
        )
    unknown = {target.file for target in targets} - models.keys()
    if unknown:
        raise ParameterError(f"targets name files that are not exported: {', '.join(unknown)}")
    files = {
        **models,
        PREPROCESSING_FILE: digest.canonical_json(preprocessing.model_dump(mode="json")),
        CALIBRATION_FILE: digest.canonical_json(calibration.model_dump(mode="json")),
        PARITY_FILE: digest.canonical_json(parity),
        **({SENSITIVITY_FILE: digest.canonical_json(sensitivity)} if sensitivity else {}),
    }
    manifest = {
        "schema_version": 1 if operating_point is None else 2,
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
        **({"operating_point": operating_point.model_dump(mode="json")} if operating_point else {}),
        "targets": [target.model_dump(mode="json") for target in targets],
        "files": {
            name: {"sha256": digest.of_bytes(content), "bytes": len(content)}
            for name, content in files.items()
        },
    }
    for name, content in files.items():
        workspace.write_atomic(folder / name, content)
    workspace.write_atomic(folder / MANIFEST_FILE, digest.canonical_json(manifest))
    return manifest


def save_bundle(store: Store, folder: Path, *, latency: Json | None = None) -> Ref:
    """Save a bundle folder as an `ExportBundle` record.

    Args:
        store: Where to save it.
        folder: Of `write_bundle`.
        latency: Kept beside the record, outside its digest.

    Raises:
        RecordError: A file is missing, changed or not in the manifest.
    """
    manifest = read_manifest(folder)
    calibration = CalibrationSet.model_validate_json((folder / CALIBRATION_FILE).read_bytes())
    record = ExportBundle(
        checkpoint=manifest["checkpoint"],
        calibration=calibration.dataset,
        calibration_set=store.put(calibration, {}),
        classes=tuple(manifest["classes"]),
        parity=json.loads((folder / PARITY_FILE).read_bytes()),
    )
    payload = {name: folder / name for name in (*manifest["files"], MANIFEST_FILE)}
    return store.put(record, payload, side={"latency": latency} if latency else None)


class PlannedTarget(FrozenModel):
    """A row of the target matrix, see the comment in ``pipelines/targets.yaml``."""

    chip: str
    engine: str
    runtime: str
    precision: Literal["fp32", "fp16", "int8"]
    artifact: str
    proof: Literal["run", "lint", "none"]
    machine: str = ""
    why: str = Field(min_length=1)


class _TargetMatrix(FrozenModel):
    schema_version: Literal[1]
    targets: tuple[PlannedTarget, ...] = Field(min_length=1)


def load_target_matrix(path: Path) -> tuple[PlannedTarget, ...]:
    """Read a target matrix.

    Raises:
        ParameterError: The file cannot be read, or a row is invalid; the message names the key.
    """
    try:
        content = read_yaml(path)
        return _TargetMatrix.model_validate(content).targets
    except OSError as error:
        raise ParameterError(
            "the target matrix cannot be read",
            where=path,
            hint=f"The default is {DEFAULT_TARGETS}",
        ) from error
    except yaml.YAMLError as error:
        raise ParameterError(f"the target matrix is not YAML: {error}", where=path) from error
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        raise ParameterError(f"target matrix: {first['msg']}", where=f"{path}, {key}") from error


def assess_targets(
    planned: Sequence[PlannedTarget],
    files: Mapping[str, bytes],
    ran: Mapping[str, str],
    *,
    machine: str | None = None,
) -> tuple[Target, ...]:
    """The state of every planned target whose file was exported.

    Args:
        planned: Rows of the matrix.
        files: Content of the model files by name.
        ran: What was run and compared here, in words, by ``"ENGINE FILE"``.
        machine: Architecture of this machine, detected by default.
    """
    here = machine or platform.machine()
    targets = []
    for row in planned:
        if row.artifact in files:
            status, why = _target_status(row, files[row.artifact], ran, here)
            targets.append(
                Target(
                    file=row.artifact,
                    machine=row.engine,
                    status=status,
                    why=why,
                    chip=row.chip,
                    runtime=row.runtime,
                    precision=row.precision,
                )
            )
    return tuple(targets)


def target_table(targets: Sequence[Target]) -> list[Json]:
    """A row for each target, for a data frame."""
    return [target.model_dump(mode="json") for target in targets]


def _target_status(
    row: PlannedTarget, content: bytes, ran: Mapping[str, str], here: str
) -> tuple[Literal["verified", "linted", "untested"], str]:
    if row.proof == "run":
        result = ran.get(f"{row.engine} {row.artifact}")
        if result and row.machine == here:
            return "verified", f"{result}; {row.why}"
        reason = "not run in this export" if row.machine == here else f"this machine is {here}"
        return "untested", f"{reason}; {row.why}"
    if row.proof == "lint":
        findings = lint_symmetric(content)
        if findings:
            return "untested", "; ".join(findings[:_MAX_FINDINGS])
        return "linted", f"keeps the rules for explicit Q/DQ networks; {_NEVER_RUN}; {row.why}"
    return "untested", f"{_NEVER_RUN}; {row.why}"


_QDQ = {"QuantizeLinear", "DequantizeLinear"}
_KNOWN_OPERATORS = _QDQ | {"Conv", "Relu", "Add", "Resize", "Concat", "MaxPool", "Clip"}
_NEWEST_OPSET = 18
_DECODING_OPERATORS = {"Exp", "Elu", "Sigmoid", "Softmax", "TopK", "NonMaxSuppression", "Pow"}


def lint_symmetric(content: bytes) -> list[str]:
    """Violations of TensorRT's rules for explicit quantization in a quantized ONNX file.

    The rules, after NVIDIA's guide to Q/DQ networks: int8 with zero points of 0, constant finite
    scales above zero, float bias, per-channel scales on weights only and on the output channel,
    known operators, no custom domains. An empty list does not mean that the file was built on a
    device.
    """
    model = onnx.load_from_string(content)
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    findings = [
        f"opset {entry.domain or 'ai.onnx'} {entry.version}"
        for entry in model.opset_import
        if entry.domain or entry.version > _NEWEST_OPSET
    ]
    findings += [
        f"{node.name}: operator {node.op_type} is not on the list"
        for node in model.graph.node
        if node.op_type not in _KNOWN_OPERATORS
    ]
    pairs = [node for node in model.graph.node if node.op_type in _QDQ]
    for node in pairs:
        findings.extend(f"{node.name}: {problem}" for problem in _lint_pair(node, constants))
    dequantized = {node.output[0]: node.input[0] for node in pairs}
    for node in model.graph.node:
        if node.op_type == "Conv" and len(node.input) > 2 and node.input[2] in dequantized:
            findings.append(f"{node.name}: bias is quantised")
    if not pairs:
        findings.append("nothing is quantised")
    return findings


def lint_decoding(content: bytes) -> list[str]:
    """Decoding operators that were quantized with the network.

    Scores and exponentials need more than 256 levels: quantized, they cost a quarter of the mean
    average precision. Decoding belongs outside the graph.
    """
    model = onnx.load_from_string(content)
    dequantized = {
        name
        for node in model.graph.node
        if node.op_type == "DequantizeLinear"
        for name in node.output
    }
    return [
        f"{node.name}: {node.op_type} works on 8-bit values"
        for node in model.graph.node
        if node.op_type in _DECODING_OPERATORS and dequantized & set(node.input)
    ]


def _lint_pair(node: Any, constants: dict[str, np.ndarray[Any, Any]]) -> list[str]:
    findings = []
    scale = constants.get(node.input[1])
    zero = constants.get(node.input[2]) if len(node.input) > 2 else None
    if scale is None:
        return ["scale is not a constant"]
    if not (np.isfinite(scale).all() and (scale > 0).all()):
        findings.append("scale is not finite and above zero")
    if zero is None or zero.dtype != np.int8:
        findings.append("not int8")
    elif zero.any():
        findings.append("zero point is not 0")
    if scale.size > 1:
        axis = next((item.i for item in node.attribute if item.name == "axis"), 1)
        if node.input[0] not in constants or axis != 0:
            findings.append("per-channel scale that is not on the outputs of a weight")
    return findings
