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
import zipfile
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
from workbench.detection.predictor import OnnxPredictor
from workbench.detection.preprocessing import Preprocessing
from workbench.export.parity import MAX_DB, decibels, match_outputs, signal_energy

if TYPE_CHECKING:
    from torch.nn import Module

    from workbench.detection.detector import Detector
    from workbench.detection.predictor import TorchPredictor


_PRODUCER = "workbench"


def canonical_onnx(model: onnx.ModelProto, metadata: Mapping[str, str]) -> bytes:
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
    fresh.producer_name = _PRODUCER
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


def onnx_metadata(model: onnx.ModelProto) -> dict[str, str]:
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


# ---- The detector as a float ONNX file: raw maps only, its contract inside, equal bytes each time.


_OPSET = 18
INPUT_NAME = "images"
_BATCH_DIM = "batch"
_TRANSFORMERS_CHECKS = "TRANSFORMERS_DISABLE_TORCH_CHECK"


def export_fp32(predictor: TorchPredictor) -> bytes:
    """A float32 ONNX file of any batch size; input ``images`` is NCHW, see `Preprocessing`.

    Of one frame a batch where the network is tied to a number, see `traced`.
    """
    return to_onnx(predictor.detector, predictor.detector, predictor.preprocessing, any_batch=True)


def to_onnx(
    network: Module, detector: Detector, preprocessing: Preprocessing, *, any_batch: bool
) -> bytes:
    """Canonical ONNX of ``network``, which takes and gives what ``detector`` does.

    Args:
        network: The detector itself, or a quantised copy of it.
        any_batch: Leave the batch dimension free if the network lets it; else it is one frame.

    Raises:
        ContractError: The network cannot be traced, or has an operator that ONNX has not.
    """
    import torch

    program, free = trace_network(network, preprocessing, any_batch=any_batch)
    with quiet_exporters():
        try:
            made = torch.onnx.export(
                program,
                dynamo=True,
                opset_version=_OPSET,
                external_data=False,
                input_names=[INPUT_NAME],
                output_names=list(output_names(detector.config)),
                dynamic_shapes=free,
                verbose=False,
            )
        except torch.onnx.errors.OnnxExporterError as error:
            raise _export_error("written as ONNX", error) from error
    if made is None:
        raise ContractError("torch gave no ONNX program for the detector")
    return canonical_onnx(made.model_proto, to_onnx_metadata(detector.config, preprocessing))


def trace_network(
    network: Module, preprocessing: Preprocessing, *, any_batch: bool
) -> tuple[Any, Any]:
    """The network as a `torch.export` program, and its free dimensions as that wants them.

    Some detection transformers count the frames of a batch while they run, which ties the program
    to that number. Such a network is traced for one frame at a time, whatever was asked for.

    Raises:
        ContractError: The network cannot be traced.
    """
    import torch

    side = (3, preprocessing.height, preprocessing.width)
    with quiet_exporters():
        if any_batch:
            free = ({0: torch.export.Dim(_BATCH_DIM, min=1, max=4096)},)
            # An example of one frame would make the exporter fix it.
            with contextlib.suppress(torch._dynamo.exc.UserError):
                example = torch.zeros(2, *side)
                return torch.export.export(network, (example,), dynamic_shapes=free), free
        try:
            return torch.export.export(network, (torch.zeros(1, *side),)), None
        except Exception as error:  # whatever the network's own code raises under tracing
            raise _export_error("traced", error) from error


def _export_error(what: str, error: Exception) -> ContractError:
    first = (str(error).strip() or type(error).__name__).splitlines()[0]
    return ContractError(
        f"the network cannot be {what}: {first}",
        hint="Its forward may not depend on the values it is given, nor on anything but tensors",
    )


@contextlib.contextmanager
def quiet_exporters() -> Iterator[None]:
    """Without the exporters' remarks about packages that are not meant to be there.

    Also without the checks that transformers makes of shapes while it runs: they cannot be written
    into a graph, and what is exported is compared with the network afterwards.
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


# ---- The network as a `torch.export` program, for teams whose runtime is built on torch.
#
# The archive (``.pt2``) is a ZIP file. What is written here holds tensors and JSON only, and no trace
# of where it was made; torch's own reader would unpickle what somebody else put into one, so
# `load_program` looks first and takes only files whose digest the caller knows.


_SOURCE_NOTES = ("stack_trace", "nn_module_stack", "source_fn_stack", "from_node", "torch_fn")
"""What the exporter notes of our sources: paths, which would make equal models unequal."""
_PICKLE_HEADERS = (b"\x80", b"PK\x03\x04")


def export_program(predictor: TorchPredictor) -> bytes:
    """The float network as a ``.pt2`` archive; equal bytes for equal weights.

    Of any batch size, or of one frame: see `onnx_file.traced`.
    """
    import torch

    program, _ = trace_network(predictor.detector, predictor.preprocessing, any_batch=True)
    with quiet_exporters():
        for node in program.graph.nodes:
            for note in _SOURCE_NOTES:
                node.meta.pop(note, None)
        program._example_inputs = None  # would be written as a pickle
        stream = io.BytesIO()
        torch.export.save(program, stream)
    return stream.getvalue()


class LoadedProgram:
    """A loaded program; feed it as any predictor's ``raw``.

    Args:
        batch: Frames that it takes at a time, None for any number.
    """

    def __init__(self, module: Any, batch: int | None = None) -> None:
        self._module = module
        self._batch = batch

    def raw(self, batch: NDArray[np.float32]) -> list[NDArray[np.float32]]:
        """Network input ``[n, 3, height, width]`` to raw maps.

        Compiled forms of a program check no strides: the batch is laid out before it is given.
        """
        import torch

        with torch.inference_mode():
            given = torch.from_numpy(np.ascontiguousarray(batch))
            parts = [self._module(part) for part in torch.split(given, self._batch or len(given))]
            return [torch.cat(outputs).numpy() for outputs in zip(*parts, strict=True)]


def load_program(content: bytes, *, sha256: str) -> LoadedProgram:
    """Load a program that a verified manifest names.

    Args:
        sha256: From the manifest of a bundle whose signature holds.

    Raises:
        VerificationError: It is another file, no archive, or holds something to unpickle.
    """
    import torch

    if digest.of_bytes(content) != sha256:
        raise VerificationError("program is not the one that its manifest names")
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            for name in archive.namelist():
                inside = archive.read(name)
                if "/weights/" not in name and inside.startswith(_PICKLE_HEADERS):
                    raise VerificationError(
                        "program holds a pickle, which is never read", where=name
                    )
                if name.endswith(("_config.json",)) and b'"use_pickle": true' in inside:
                    raise VerificationError("program asks for a pickle to be read", where=name)
    except zipfile.BadZipFile as error:
        raise VerificationError("program is no archive") from error
    with quiet_exporters():
        program = torch.export.load(io.BytesIO(content))
        (given,) = program.graph_signature.user_inputs
        size = next(node for node in program.graph.nodes if node.name == given).meta["val"].shape[0]
        return LoadedProgram(program.module(), size if isinstance(size, int) else None)


# ---- An extra for Intel machines: OpenVINO's own files, converted here and run on this CPU.
#
# Needs ``pip install workbench[openvino]``. Nothing is fetched and nothing is reported to anyone.


OPENVINO_XML, OPENVINO_BIN = "int8.openvino.xml", "int8.openvino.bin"
OPENVINO_MIN_DB = 30.0
_OPENVINO_LAYER = re.compile(
    rb'(<layer id="(\d+)" name=")[^"]*(" type="(Constant|Const|Convert|\w+)")'
)


def openvino_available() -> bool:
    return importlib.util.find_spec("openvino") is not None


def convert_openvino(onnx_file: bytes) -> dict[str, bytes]:
    """An ONNX file as OpenVINO's two files; equal bytes for equal files.

    Raises:
        ParameterError: OpenVINO is not installed.
    """
    if not openvino_available():
        raise ParameterError(
            "OpenVINO is not installed", hint="pip install 'workbench[openvino]', or leave it out"
        )
    import openvino

    with tempfile.TemporaryDirectory() as folder:
        source, made = Path(folder) / "model.onnx", Path(folder) / OPENVINO_XML
        source.write_bytes(onnx_file)
        model = openvino.convert_model(source)
        openvino.save_model(model, made, compress_to_fp16=False)
        # Its names count what the process made before; layers refer to each other by number.
        named = _OPENVINO_LAYER.sub(rb"\1layer_\2\3", made.read_bytes())
        return {OPENVINO_XML: named, OPENVINO_BIN: made.with_suffix(".bin").read_bytes()}


class OpenVinoModel:
    """A converted model on this CPU, in float32 where it is not int8."""

    def __init__(self, files: dict[str, bytes], *, threads: int = 2) -> None:
        import openvino

        core = openvino.Core()
        model = core.read_model(files[OPENVINO_XML], files[OPENVINO_BIN])
        settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": threads}
        self._model: Any = core.compile_model(model, "CPU", settings)

    def raw(self, batch: NDArray[np.float32]) -> list[NDArray[np.float32]]:
        """Network input ``[n, 3, height, width]`` to raw maps."""
        found = self._model(np.ascontiguousarray(batch))
        return [np.array(found[output]) for output in self._model.outputs]


def verify_openvino(files: dict[str, bytes], onnx_file: bytes, batch: NDArray[np.float32]) -> str:
    """Run both on the same input; what was found, in words, for the target matrix.

    Raises:
        ContractError: OpenVINO reads the file otherwise.
    """
    model = OnnxPredictor(onnx_file)
    right, wrong = match_outputs(model.raw(batch), OpenVinoModel(files).raw(batch), model.config)
    ratios = [
        decibels(signal_energy(one), signal_energy(one - other))
        for one, other in zip(right, wrong, strict=True)
    ]
    if min(ratios) < OPENVINO_MIN_DB:
        raise ContractError(
            f"OpenVINO is {min(ratios):.1f} dB from ONNX Runtime", where=OPENVINO_XML
        )
    least = "equal" if min(ratios) >= MAX_DB else f"{min(ratios):.0f} dB apart at worst"
    return f"run on this CPU in OpenVINO, {least} from ONNX Runtime on {len(batch)} frames"
