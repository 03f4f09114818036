"""File formats of an export: canonical ONNX, `torch.export` programs, OpenVINO."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import logging
import os
import re
import tempfile
import warnings
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from workbench.core import digest
from workbench.core.errors import ContractError, DataError, ParameterError, VerificationError
from workbench.detection.config import to_onnx_metadata
from workbench.detection.families import output_names
from workbench.detection.predictor import ANSWERS_KEY, OnnxPredictor, golden_answers
from workbench.detection.preprocessing import Preprocessing
from workbench.export.parity import (
    FLOAT_TOLERANCE,
    MAX_DB,
    decibels,
    match_outputs,
    signal_energy,
)

if TYPE_CHECKING:
    from torch.nn import Module

    from workbench.detection.detector import Detector
    from workbench.detection.predictor import TorchPredictor

__all__ = ()

INPUT_NAME = "images"
_OPSET = 18
_BATCH_DIM = "batch"
_TRANSFORMERS_CHECKS = "TRANSFORMERS_DISABLE_TORCH_CHECK"

_SOURCE_NOTES = ("stack_trace", "nn_module_stack", "source_fn_stack", "from_node", "torch_fn")
"""What torch's exporter records of source files: paths, which make equal models unequal."""
_exported_here: set[str] = set()
"""Digests of the programs that this process exported, the only ones that it loads."""

OPENVINO_XML, _OPENVINO_BIN = "int8.openvino.xml", "int8.openvino.bin"
_OPENVINO_MIN_DB = 30.0
_OPENVINO_LAYER = re.compile(
    rb'(<layer id="(\d+)" name=")[^"]*(" type="(Constant|Const|Convert|\w+)")'
)


def export_fp32(predictor: TorchPredictor) -> bytes:
    """The network as a canonical float32 ONNX file.

    The input ``images`` is float32 ``[n, 3, height, width]``, see `Preprocessing`; the outputs are
    raw. ``n`` is free, or 1 where the network is tied to a number of frames.
    """
    return to_onnx(predictor.detector, predictor.detector, predictor.preprocessing, any_batch=True)


def to_onnx(
    network: Module, detector: Detector, preprocessing: Preprocessing, *, any_batch: bool
) -> bytes:
    """Canonical ONNX of ``network``, which has the inputs and outputs of ``detector``.

    Args:
        network: The detector itself, or a quantized copy of it.
        detector: Provides the metadata.
        preprocessing: The network's input contract.
        any_batch: Leave the batch dimension free if the network supports it; else it is 1.

    Raises:
        ContractError: The network cannot be traced, or has an operator that ONNX lacks.
    """
    import torch

    program, dynamic_shapes = _trace(network, preprocessing, any_batch=any_batch)
    with quiet_exporters():
        try:
            exported = torch.onnx.export(
                program,
                dynamo=True,
                opset_version=_OPSET,
                external_data=False,
                input_names=[INPUT_NAME],
                output_names=list(output_names(detector.config)),
                dynamic_shapes=dynamic_shapes,
                verbose=False,
            )
        except torch.onnx.errors.OnnxExporterError as error:
            raise _export_error("written as ONNX", error) from error
    if exported is None:
        raise ContractError("torch exported no ONNX program for the detector")
    return canonical_onnx(exported.model_proto, to_onnx_metadata(detector.config, preprocessing))


def _trace(network: Module, preprocessing: Preprocessing, *, any_batch: bool) -> tuple[Any, Any]:
    """The network as a `torch.export` program, and its dynamic shapes.

    Some detection transformers count the frames of a batch while they run, which ties the program
    to that number: such a network is traced for one frame, whatever was asked for.
    """
    import torch

    shape = (3, preprocessing.height, preprocessing.width)
    with quiet_exporters():
        if any_batch:
            dynamic_shapes = ({0: torch.export.Dim(_BATCH_DIM, min=1, max=4096)},)
            # An example of one frame would make the exporter specialize on it.
            with contextlib.suppress(torch._dynamo.exc.UserError):
                example = torch.zeros(2, *shape)
                program = torch.export.export(network, (example,), dynamic_shapes=dynamic_shapes)
                return program, dynamic_shapes
        try:
            return torch.export.export(network, (torch.zeros(1, *shape),)), None
        except Exception as error:  # whatever the network's own code raises under tracing
            raise _export_error("traced", error) from error


def _export_error(action: str, error: Exception) -> ContractError:
    first = (str(error).strip() or type(error).__name__).splitlines()[0]
    return ContractError(
        f"the network cannot be {action}: {first}",
        hint="Its forward must not depend on tensor values, nor on anything but tensors",
    )


@contextlib.contextmanager
def quiet_exporters() -> Iterator[None]:
    """Silence the exporters' warnings about optional packages.

    Also turns off the shape checks that transformers makes at run time: they cannot be written into
    a graph, and the exported file is compared with the network afterwards.
    """
    checks = os.environ.get(_TRANSFORMERS_CHECKS)
    os.environ[_TRANSFORMERS_CHECKS] = "1"
    names = ("", "torch.onnx", "torchao", "torch.utils._pytree", "torch.export")
    loggers = [logging.getLogger(name) for name in names]
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        if checks is None:
            del os.environ[_TRANSFORMERS_CHECKS]
        else:
            os.environ[_TRANSFORMERS_CHECKS] = checks
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)


def canonical_onnx(model: onnx.ModelProto, metadata: Mapping[str, str]) -> bytes:
    """Serialize a model so that equal models give equal bytes, in every process.

    Exporters name nodes by counters and record paths of source files. Here everything is renamed in
    order of appearance, and everything that does not compute is dropped.

    Args:
        model: Without subgraphs and functions. Names of inputs and outputs stay.
        metadata: The file's only metadata, sorted by key.

    Raises:
        DataError: The model has control flow or local functions.
    """
    if model.functions or any(_has_subgraph(node) for node in model.graph.node):
        raise DataError("a model with functions or control flow has no canonical form")
    fresh = onnx.ModelProto()
    fresh.ir_version = model.ir_version
    fresh.producer_name = "workbench"
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


def add_golden_answers(content: bytes, *, threads: int = 2) -> bytes:
    """The same model file with its answers for the golden image, see `predictor.golden_answers`."""
    answers = golden_answers(OnnxPredictor(content, threads=threads))
    model = onnx.load_from_string(content)
    return canonical_onnx(model, onnx_metadata(model) | {ANSWERS_KEY: answers})


def onnx_metadata(model: onnx.ModelProto) -> dict[str, str]:
    """The metadata of an ONNX file."""
    return {entry.key: entry.value for entry in model.metadata_props}


def _copy_graph(source: Any, target: Any) -> None:
    target.name = "detector"
    target.input.extend(_plain_values(source.input))
    target.output.extend(_plain_values(source.output))
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


def _plain_values(values: Iterable[Any]) -> list[Any]:
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


def export_program(predictor: TorchPredictor) -> bytes:
    """The float network as a ``.pt2`` archive of `torch.export`; equal weights give equal bytes.

    The archive holds tensors and JSON only, and no paths of this machine. Its batch size is free,
    or 1 where the network is tied to a number of frames.
    """
    import torch

    program, _ = _trace(predictor.detector, predictor.preprocessing, any_batch=True)
    with quiet_exporters():
        for node in program.graph.nodes:
            for note in _SOURCE_NOTES:
                node.meta.pop(note, None)
        program._example_inputs = None  # would be written as a pickle
        stream = io.BytesIO()
        torch.export.save(program, stream)
    content = stream.getvalue()
    _exported_here.add(digest.of_bytes(content))
    return content


def verify_program(content: bytes, predictor: TorchPredictor, batch: NDArray[np.float32]) -> str:
    """Run an exported program and the network on the same input.

    torch's reader runs code that an archive holds: it unpickles, and evaluates expressions in the
    JSON. So nothing is loaded that `export_program` did not write in this process.

    Args:
        content: What `export_program` returned.
        predictor: The network.
        batch: Network input, float32 ``[n, 3, height, width]``.

    Returns:
        The result for the target matrix.

    Raises:
        VerificationError: This process did not export the program.
        ContractError: The outputs differ by more than rounding can explain.
    """
    if digest.of_bytes(content) not in _exported_here:
        raise VerificationError(
            "a program that this process did not export is not loaded: it could run code",
            hint="Export the checkpoint again",
        )
    outputs = _run_program(content, batch)
    pairs = zip(*match_outputs(predictor.raw(batch), outputs, predictor.config), strict=True)
    difference = max(float(np.abs(one - other).max()) for one, other in pairs)
    if not difference <= FLOAT_TOLERANCE:
        raise ContractError(f"exported program differs from the network by up to {difference:g}")
    return f"run here in torch on {len(batch)} frames, within {FLOAT_TOLERANCE:g}"


def _run_program(content: bytes, batch: NDArray[np.float32]) -> list[NDArray[np.float32]]:
    """Raw outputs of a trusted program for network input ``[n, 3, height, width]``."""
    import torch

    with quiet_exporters():
        program = torch.export.load(io.BytesIO(content))
        (images,) = program.graph_signature.user_inputs
        node = next(node for node in program.graph.nodes if node.name == images)
        size = node.meta["val"].shape[0]
        module = program.module()
    with torch.inference_mode():
        # Compiled programs do not check strides: the batch must be contiguous.
        frames = torch.from_numpy(np.ascontiguousarray(batch))
        parts = torch.split(frames, size if isinstance(size, int) else len(frames))
        return [torch.cat(outputs).numpy() for outputs in zip(*map(module, parts), strict=True)]


def openvino_available() -> bool:
    """Whether the optional package OpenVINO is installed."""
    return importlib.util.find_spec("openvino") is not None


def convert_openvino(onnx_file: bytes) -> dict[str, bytes]:
    """An ONNX file as OpenVINO's two files, by name; equal files give equal bytes.

    Raises:
        ParameterError: OpenVINO is not installed.
    """
    if not openvino_available():
        raise ParameterError(
            "OpenVINO is not installed",
            hint="pip install 'workbench[openvino]', or export with openvino=false",
        )
    import openvino

    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder) / "model.onnx", Path(folder) / OPENVINO_XML
        source.write_bytes(onnx_file)
        openvino.save_model(openvino.convert_model(source), target, compress_to_fp16=False)
        # Layer names count what the process made before; layers refer to each other by number.
        renamed = _OPENVINO_LAYER.sub(rb"\1layer_\2\3", target.read_bytes())
        return {OPENVINO_XML: renamed, _OPENVINO_BIN: target.with_suffix(".bin").read_bytes()}


def verify_openvino(
    files: Mapping[str, bytes], onnx_file: bytes, batch: NDArray[np.float32], *, threads: int = 2
) -> str:
    """Run OpenVINO's files and the ONNX file on the same input on this CPU.

    Returns:
        The result in words, for the target matrix.

    Raises:
        ContractError: The outputs differ.
    """
    import openvino

    core = openvino.Core()
    settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": threads}
    network = core.read_model(files[OPENVINO_XML], files[_OPENVINO_BIN])
    compiled: Any = core.compile_model(network, "CPU", settings)
    results = compiled(np.ascontiguousarray(batch))
    outputs = [np.array(results[output]) for output in compiled.outputs]

    reference = OnnxPredictor(onnx_file)
    right, wrong = match_outputs(reference.raw(batch), outputs, reference.config)
    least = min(
        decibels(signal_energy(one), signal_energy(one - other))
        for one, other in zip(right, wrong, strict=True)
    )
    if least < _OPENVINO_MIN_DB:
        raise ContractError(
            f"OpenVINO is {least:.1f} dB from ONNX Runtime, at least {_OPENVINO_MIN_DB:g} dB "
            "is required",
            where=OPENVINO_XML,
            hint="On a CPU without VNNI, OpenVINO's 8-bit sums saturate: export on one with VNNI",
        )
    difference = "equal" if least >= MAX_DB else f"{least:.0f} dB apart at worst"
    return f"run on this CPU in OpenVINO, {difference} from ONNX Runtime on {len(batch)} frames"
