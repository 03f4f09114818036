"""Eight-bit integers for ONNX Runtime on a CPU.

Unsigned asymmetric activations, which its VNNI kernels want, and per-channel weights. Calibration
goes through the preprocessing that the float file carries, as the car will. The file for
accelerators is made elsewhere, see `workbench.export.target_file`.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import onnx
from numpy.typing import NDArray

from workbench.errors import ParameterError
from workbench.export.canonical import canonical, metadata_of
from workbench.export.onnx_file import INPUT, quietly
from workbench.export.stem import folded
from workbench.perception.contract import from_metadata
from workbench.perception.preprocessing import Pixels, Preprocessing, prepare

Method = Literal["minmax", "entropy", "percentile"]
METHODS: tuple[Method, ...] = get_args(Method)
_AT_ONCE = 8
"""Frames whose activations are in memory together; ranges do not depend on it."""
_PERCENTILE = 99.99


class Calibrated:
    """A float file with the ranges of all its activations, from which 8-bit files are cheap.

    Methods: ``minmax`` the extremes; ``entropy`` the cut that loses least information (Migacz,
    "8-bit Inference with TensorRT", 2017); ``percentile`` all but the outermost 0.01 %.

    Raises:
        ParameterError: There are no images, or the method is unknown.
    """

    def __init__(self, fp32: bytes, images: Iterable[Pixels], method: Method = "minmax") -> None:
        if method not in METHODS:
            raise ParameterError(
                f"unknown calibration method {method!r}", hint=f"Known are {', '.join(METHODS)}"
            )
        model = onnx.load_from_string(fp32)
        self.metadata = metadata_of(model)
        _, spec = from_metadata(self.metadata, where="fp32.onnx")
        self._model = onnx.shape_inference.infer_shapes(folded(model))
        self._nodes = {node.name for node in model.graph.node}
        self._eligible = _weighted(self._model) if _attends(self._model) else []
        with quietly():
            self._ranges = _ranges(self._model, inputs(images, spec), method)

    def file(self, *, keep_float: Sequence[str] = (), only: Sequence[str] | None = None) -> bytes:
        """The 8-bit file, canonical.

        Args:
            keep_float: Nodes that stay in float.
            only: The nodes that are quantised; None for all that can be, in a network with
                attention for those with weights.

        Raises:
            ParameterError: The float file has no such node.
        """
        unknown = sorted({*keep_float, *(only or ())} - self._nodes)
        if unknown:
            raise ParameterError(f"the float file has no node {unknown[0]}", where="keep_float")
        with quietly():
            return canonical(self.model(list(keep_float), list(only or ())), self.metadata)

    def model(self, keep_float: list[str], only: list[str]) -> onnx.ModelProto:
        """The same before it is brought into canonical form: nodes keep the float file's names."""
        from onnxruntime.quantization import QuantType
        from onnxruntime.quantization.qdq_quantizer import QDQQuantizer

        copy = onnx.ModelProto()
        copy.CopyFrom(self._model)
        quantiser = QDQQuantizer(
            copy,
            per_channel=True,
            reduce_range=False,
            weight_qType=QuantType.QInt8,
            activation_qType=QuantType.QUInt8,
            tensors_range=self._ranges,
            nodes_to_quantize=only or self._eligible,
            nodes_to_exclude=keep_float,
            op_types_to_quantize=_operators(),
            extra_options={},
        )
        quantiser.quantize_model()
        quantiser.model.topological_sort()
        made: onnx.ModelProto = quantiser.model.model
        return made


def inputs(images: Iterable[Pixels], spec: Preprocessing) -> Iterator[NDArray[np.float32]]:
    """Network inputs of one frame each, float32 ``[1, 3, height, width]``."""
    count = 0
    for image in images:
        yield prepare(image, spec)[0][None]
        count += 1
    if not count:
        raise ParameterError(
            "no frames to calibrate with", hint="Pick them with workbench.export.calibration.pick"
        )


def _attends(model: onnx.ModelProto) -> bool:
    return any(node.op_type in {"Softmax", "LayerNormalization"} for node in model.graph.node)


def _weighted(model: onnx.ModelProto) -> list[str]:
    """Convolutions and products with weights, which is where a transformer's time and size lie.

    What is between them (attention, norms, positions, boxes) has values of unlike size in one
    tensor, which share 256 levels badly.
    """
    constants = {tensor.name for tensor in model.graph.initializer}
    return [
        node.name
        for node in model.graph.node
        if node.op_type in {"Conv", "MatMul", "Gemm"} and constants & set(node.input)
    ]


def _operators() -> list[str]:
    from onnxruntime.quantization.registry import QDQRegistry, QLinearOpsRegistry

    return sorted({*QLinearOpsRegistry, *QDQRegistry})


def _ranges(model: onnx.ModelProto, batches: Iterator[Any], method: Method) -> Any:
    from onnxruntime.quantization.calibrate import CalibrationMethod, create_calibrator

    kinds = {
        "minmax": CalibrationMethod.MinMax,
        "entropy": CalibrationMethod.Entropy,
        "percentile": CalibrationMethod.Percentile,
    }
    options: dict[str, dict[str, float]] = {
        "minmax": {},
        # Its own default of as many bins as levels leaves nothing to cut off.
        "entropy": {"num_bins": 512, "num_quantized_bins": 128},
        "percentile": {"percentile": _PERCENTILE},
    }
    with tempfile.TemporaryDirectory() as elsewhere:
        path = Path(elsewhere) / "model.onnx"
        onnx.save(model, path)
        calibrator = create_calibrator(
            path,
            _operators(),
            augmented_model_path=str(Path(elsewhere) / "augmented.onnx"),
            calibrate_method=kinds[method],
            extra_options=options[method],
        )
        # It says on standard output what it is about to do; that belongs to our caller.
        with contextlib.redirect_stdout(io.StringIO()):
            return _collected(calibrator, batches)


def _collected(calibrator: Any, batches: Iterator[Any]) -> Any:
    while chunk := list(itertools.islice(batches, _AT_ONCE)):
        calibrator.collect_data(_reader(chunk))
    return calibrator.compute_data()


def _reader(batches: list[NDArray[np.float32]]) -> Any:
    from onnxruntime.quantization import CalibrationDataReader

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.left = iter(batches)

        def get_next(self) -> dict[str, NDArray[np.float32]] | None:
            batch = next(self.left, None)
            return None if batch is None else {INPUT: batch}

    return Reader()
