"""What is known about a file on the machine it is meant for, and the rules it can be held to here.

``verified``: run and compared on that kind of machine. ``linted``: keeps the rules of that
machine's compiler as far as they can be read off the file. ``untested``: neither.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import onnx
from onnx import numpy_helper

from workbench.records.base import Row

_QDQ = {"QuantizeLinear", "DequantizeLinear"}
_KNOWN = _QDQ | {"Conv", "Relu", "Add", "Resize", "Concat", "MaxPool"}
_NEWEST_OPSET = 18
_DECODING = {"Exp", "Elu", "Sigmoid", "Softmax", "TopK", "NonMaxSuppression", "Pow"}


class Target(Row):
    """One file of a bundle, the engine (``machine``) and chip it is for, and what is known."""

    file: str
    machine: str
    status: Literal["verified", "linted", "untested"]
    why: str
    chip: str = ""
    runtime: str = ""
    precision: str = ""


def lint_symmetric(content: bytes) -> list[str]:
    """What in a quantised file TensorRT's explicit quantisation would not take.

    Checked are, after NVIDIA's guide to Q/DQ networks: int8 with zero points of 0, constant
    finite scales above zero, float bias, per-channel scales on weights only and on the output
    channel, known operators, no custom domains. An empty list means that none was found, not
    that the file was built on a device.
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
        if node.op_type not in _KNOWN
    ]
    pairs = [node for node in model.graph.node if node.op_type in _QDQ]
    for node in pairs:
        findings.extend(f"{node.name}: {found}" for found in _lint_pair(node, constants))
    dequantised = {node.output[0]: node.input[0] for node in pairs}
    for node in model.graph.node:
        if node.op_type == "Conv" and len(node.input) > 2 and node.input[2] in dequantised:
            findings.append(f"{node.name}: bias is quantised")
    if not pairs:
        findings.append("nothing is quantised")
    return findings


def lint_decoding(content: bytes) -> list[str]:
    """Steps from raw outputs to boxes that were quantised with the network.

    Scores and exponentials need more than 256 levels: quantised, they cost a quarter of the mean
    average precision. Decoding belongs outside the graph.
    """
    model = onnx.load_from_string(content)
    dequantised = {
        name
        for node in model.graph.node
        if node.op_type == "DequantizeLinear"
        for name in node.output
    }
    return [
        f"{node.name}: {node.op_type} works on 8-bit values"
        for node in model.graph.node
        if node.op_type in _DECODING and dequantised & set(node.input)
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
            findings.append("per-channel scale on something else than a weight's outputs")
    return findings
