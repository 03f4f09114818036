"""ONNX files whose bytes depend on the model alone.

Exporters name nodes by counters and note the paths of source files, so two exports of one
network differ. Here everything is renamed in order of appearance and everything that does not
compute is dropped; equal models are then equal bytes, in every process.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import onnx
from onnx import numpy_helper

from workbench.errors import DataError

PRODUCER = "workbench"


def canonical(model: onnx.ModelProto, metadata: Mapping[str, str]) -> bytes:
    """The one serialised form of ``model``, carrying ``metadata`` and no other notes.

    Args:
        model: Without subgraphs and functions; names of inputs and outputs stay.
        metadata: Written to ``metadata_props`` in the order of the keys.

    Raises:
        DataError: The model has control flow or local functions, which a detector has not.
    """
    if model.functions or any(_has_subgraph(node) for node in model.graph.node):
        raise DataError("model with functions or control flow cannot be brought into one form")
    fresh = onnx.ModelProto()
    fresh.ir_version = model.ir_version
    fresh.producer_name = PRODUCER
    used = {node.domain for node in model.graph.node}
    for opset in sorted(model.opset_import, key=lambda entry: str(entry.domain)):
        if opset.domain in used:
            fresh.opset_import.add(domain=opset.domain, version=opset.version)
    for key in sorted(metadata):
        fresh.metadata_props.add(key=key, value=metadata[key])
    _copy_graph(model.graph, fresh.graph)
    onnx.checker.check_model(fresh)
    content: bytes = fresh.SerializeToString(deterministic=True)
    return content


def metadata_of(model: onnx.ModelProto) -> dict[str, str]:
    return {entry.key: entry.value for entry in model.metadata_props}


def _copy_graph(source: Any, target: Any) -> None:
    target.name = "detector"
    target.input.extend(_plain(source.input))
    target.output.extend(_plain(source.output))
    names = {value.name: value.name for value in (*source.input, *source.output)}
    weights = {tensor.name: tensor for tensor in source.initializer}
    for node in source.node:
        copy = target.node.add(op_type=node.op_type, domain=node.domain)
        copy.name = f"{node.op_type}_{len(target.node) - 1}"
        for name in node.input:
            if name and name not in names:
                names[name] = f"w{len(target.initializer)}"
                tensor = numpy_helper.from_array(numpy_helper.to_array(weights[name]))
                tensor.name = names[name]
                target.initializer.append(tensor)
            copy.input.append(names[name] if name else "")
        for position, name in enumerate(node.output):
            names.setdefault(name, f"{copy.name}_{position}" if name else "")
            copy.output.append(names[name])
        for attribute in sorted(node.attribute, key=lambda entry: str(entry.name)):
            kept = copy.attribute.add()
            kept.CopyFrom(attribute)
            kept.doc_string = ""


def _plain(values: Iterable[Any]) -> list[Any]:
    """Inputs or outputs by name, element type and shape; a free dimension stays free."""
    return [
        onnx.helper.make_tensor_value_info(
            value.name,
            value.type.tensor_type.elem_type,
            [dim.dim_value or dim.dim_param for dim in value.type.tensor_type.shape.dim],
        )
        for value in values
    ]


def _has_subgraph(node: Any) -> bool:
    kinds = (onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS)
    return any(attribute.type in kinds for attribute in node.attribute)
