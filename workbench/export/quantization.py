"""INT8 quantization: ONNX Runtime on CPUs, symmetric QDQ for accelerators.

The CPU file has unsigned asymmetric activations, which VNNI kernels need, and per-channel weights.
The file for accelerators such as TensorRT has zero points of 0, per-channel weights, float bias and
a batch of one frame; it is slower than float on a CPU, so its latency there is never reported.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from workbench.core.errors import ContractError, ParameterError
from workbench.detection.config import from_onnx_metadata
from workbench.detection.preprocessing import Pixels, Preprocessing, preprocess
from workbench.export.formats import (
    INPUT_NAME,
    canonical_onnx,
    onnx_metadata,
    quiet_exporters,
    to_onnx,
)

if TYPE_CHECKING:
    from torch import nn

    from workbench.detection.predictor import TorchPredictor

__all__ = ()

RangeMethod = Literal["minmax", "entropy", "percentile"]
RANGE_METHODS: tuple[RangeMethod, ...] = get_args(RangeMethod)
Observer = Literal["histogram", "minmax"]
OBSERVERS: tuple[Observer, ...] = get_args(Observer)

_FRAMES_PER_CHUNK = 8  # whose activations are in memory together; ranges do not depend on it
_OUTSIDE = 5e-5  # of a tensor's values, at either end, with the method "percentile"
_SAMPLES = 8192  # values of a tensor from each frame
_INT8_LIMIT = 127  # symmetric: without -128, whose mirror image would overflow
_EPS = 2**-12
_MAX_STEM_CHANNELS = 4

_Weights = NDArray[np.float32]


class CalibratedModel:
    """A float file with the ranges of all its activations, from which INT8 files are cheap.

    Calibration uses the preprocessing that the float file carries, as the vehicle will.

    Args:
        fp32: The float ONNX file.
        images: RGB uint8 frames of any size.
        method: ``minmax`` takes the extremes; ``entropy`` the cut that loses least information
            (Migacz, "8-bit Inference with TensorRT", 2017); ``percentile`` all but the outermost
            0.01 %.

    Raises:
        ParameterError: There are no images, or the method is unknown.
    """

    def __init__(
        self, fp32: bytes, images: Iterable[Pixels], method: RangeMethod = "minmax"
    ) -> None:
        if method not in RANGE_METHODS:
            raise ParameterError(
                f"unknown calibration method {method!r}",
                hint=f"Methods: {', '.join(RANGE_METHODS)}",
            )
        model = onnx.load_from_string(fp32)
        self.metadata = onnx_metadata(model)
        _, spec = from_onnx_metadata(self.metadata, where="fp32.onnx")
        self._model = onnx.shape_inference.infer_shapes(fold_stem(model))
        self._nodes = {node.name for node in model.graph.node}
        self._eligible = (
            _nodes_with_weights(self._model) if _onnx_has_attention(self._model) else []
        )
        with quiet_exporters():
            self._ranges = _activation_ranges(self._model, network_inputs(images, spec), method)

    def file(self, *, keep_float: Sequence[str] = (), only: Sequence[str] | None = None) -> bytes:
        """The INT8 file as canonical ONNX.

        Args:
            keep_float: Names of nodes that stay in float.
            only: Names of the nodes to quantize. None for all that can be; in a network with
                attention, for all with weights.

        Raises:
            ParameterError: The float file has no such node.
        """
        unknown = sorted({*keep_float, *(only or ())} - self._nodes)
        if unknown:
            raise ParameterError(f"the float file has no node {unknown[0]!r}", where="keep_float")
        with quiet_exporters():
            return canonical_onnx(self.model(list(keep_float), list(only or ())), self.metadata)

    def model(self, keep_float: list[str], only: list[str]) -> onnx.ModelProto:
        """The INT8 model before canonicalization: nodes keep the float file's names."""
        from onnxruntime.quantization import QuantType
        from onnxruntime.quantization.qdq_quantizer import QDQQuantizer

        copy = onnx.ModelProto()
        copy.CopyFrom(self._model)
        quantizer = QDQQuantizer(
            copy,
            per_channel=True,
            reduce_range=False,
            weight_qType=QuantType.QInt8,
            activation_qType=QuantType.QUInt8,
            tensors_range=self._ranges,
            nodes_to_quantize=only or self._eligible,
            nodes_to_exclude=keep_float,
            op_types_to_quantize=_quantizable_operators(),
            extra_options={},
        )
        quantizer.quantize_model()
        quantizer.model.topological_sort()
        model: onnx.ModelProto = quantizer.model.model
        return model


def network_inputs(images: Iterable[Pixels], spec: Preprocessing) -> Iterator[NDArray[np.float32]]:
    """Network inputs of one frame each, float32 ``[1, 3, height, width]``.

    Raises:
        ParameterError: There are no images.
    """
    count = 0
    for image in images:
        yield preprocess(image, spec)[0][None]
        count += 1
    if not count:
        raise ParameterError(
            "no frames to calibrate with",
            hint="Pick them with workbench.export.calibration.pick_calibration_frames",
        )


def _onnx_has_attention(model: onnx.ModelProto) -> bool:
    return any(node.op_type in {"Softmax", "LayerNormalization"} for node in model.graph.node)


def _nodes_with_weights(model: onnx.ModelProto) -> list[str]:
    """Convolutions and matrix products with weights, which take a transformer's time and size.

    Between them (attention, norms, positions, boxes) the values of one tensor differ too much in
    size to share 256 levels.
    """
    constants = {tensor.name for tensor in model.graph.initializer}
    return [
        node.name
        for node in model.graph.node
        if node.op_type in {"Conv", "MatMul", "Gemm"} and constants & set(node.input)
    ]


def _quantizable_operators() -> list[str]:
    from onnxruntime.quantization.registry import QDQRegistry, QLinearOpsRegistry

    return sorted({*QLinearOpsRegistry, *QDQRegistry})


def _activation_ranges(
    model: onnx.ModelProto, batches: Iterator[NDArray[np.float32]], method: RangeMethod
) -> Any:
    from onnxruntime.quantization.calibrate import CalibrationMethod, create_calibrator

    kinds = {
        "minmax": CalibrationMethod.MinMax,
        "entropy": CalibrationMethod.Entropy,
        "percentile": CalibrationMethod.Percentile,
    }
    options: dict[str, dict[str, float]] = {
        "minmax": {},
        # The default has as many bins as levels, which leaves nothing to cut off.
        "entropy": {"num_bins": 512, "num_quantized_bins": 128},
        "percentile": {},
    }
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        onnx.save(model, path)
        calibrator = create_calibrator(
            path,
            _quantizable_operators(),
            augmented_model_path=str(Path(folder) / "augmented.onnx"),
            calibrate_method=kinds[method],
            extra_options=options[method],
        )
        if method == "percentile":
            return _percentile_ranges(calibrator, batches)
        # It prints to standard output, which belongs to our caller.
        with contextlib.redirect_stdout(io.StringIO()):
            while chunk := list(itertools.islice(batches, _FRAMES_PER_CHUNK)):
                calibrator.collect_data(_calibration_reader(chunk))
            return calibrator.compute_data()


def _percentile_ranges(calibrator: Any, batches: Iterator[NDArray[np.float32]]) -> Any:
    """Ranges without the outermost `_OUTSIDE` of a tensor's values at either end.

    ONNX Runtime sorts all values of all activations into histograms, which at 768x448 takes most of
    an export. Here each frame gives at most `_SAMPLES` values of a tensor, evenly spaced.
    """
    from onnxruntime.quantization.calibrate import CalibrationMethod, TensorData, TensorsData

    session, wanted = calibrator.infer_session, set(calibrator.tensors_to_calibrate)
    names = [output.name for output in session.get_outputs() if output.name in wanted]
    samples: dict[str, list[NDArray[np.float32]]] = {name: [] for name in names}
    rng = np.random.default_rng(0)
    for batch in batches:
        for name, values in zip(names, session.run(names, {INPUT_NAME: batch}), strict=True):
            flat = values.ravel()
            every = -(-flat.size // _SAMPLES)
            samples[name].append(flat[rng.integers(every) :: every].copy())
    ranges = {}
    for name in names:
        values = np.concatenate(samples.pop(name))
        left_out = int(_OUTSIDE * values.size)
        values.partition([left_out, values.size - 1 - left_out])
        lowest, highest = values[left_out], values[values.size - 1 - left_out]
        ranges[name] = TensorData(lowest=lowest, highest=highest)
    return TensorsData(CalibrationMethod.Percentile, ranges)


def _calibration_reader(batches: list[NDArray[np.float32]]) -> Any:
    from onnxruntime.quantization import CalibrationDataReader

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self._batches = iter(batches)

        def get_next(self) -> dict[str, NDArray[np.float32]] | None:
            batch = next(self._batches, None)
            return None if batch is None else {INPUT_NAME: batch}

    return Reader()


def export_int8_target(
    predictor: TorchPredictor,
    images: Iterable[Pixels],
    *,
    observer: Observer = "histogram",
    keep_float: Sequence[str] = (),
) -> bytes:
    """The file for accelerators as canonical ONNX.

    Args:
        predictor: The float network.
        images: RGB uint8 frames to calibrate with, of any size.
        observer: ``histogram`` minimizes the squared error of activations, ``minmax`` takes their
            extremes.
        keep_float: Names of the detector's modules that stay in float.

    Raises:
        ParameterError: No images, or an unknown observer or module.
        ContractError: torchao's quantizer does not support the network's layers.
    """
    graph = fake_quantize(predictor, images, observer=observer, keep_float=keep_float)
    return to_onnx(graph, predictor.detector, predictor.preprocessing, any_batch=False)


def fake_quantize(
    predictor: TorchPredictor,
    images: Iterable[Pixels],
    *,
    observer: Observer = "histogram",
    keep_float: Sequence[str] = (),
) -> Any:
    """The detector as a torch graph with quantize and dequantize operators, for one frame.

    Made by torchao's PT2E flow, so that the ONNX file contains what was computed in torch.
    Arguments and errors are those of `export_int8_target`.
    """
    import torch

    if observer not in OBSERVERS:
        raise ParameterError(
            f"unknown observer {observer!r}", hint=f"Observers: {', '.join(OBSERVERS)}"
        )
    known = {name for name, _ in predictor.detector.named_modules()}
    unknown = sorted(set(keep_float) - known)
    if unknown:
        raise ParameterError(f"the detector has no module {unknown[0]!r}", where="keep_float")
    with quiet_exporters():
        from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

        example = torch.zeros(1, 3, predictor.preprocessing.height, predictor.preprocessing.width)
        graph = torch.export.export(predictor.detector, (example,)).module()
        quantizer = symmetric_quantizer(
            observer, keep_float, whole=not has_attention(predictor.detector)
        )
        try:
            observed = prepare_pt2e(graph, quantizer)
        except Exception as error:  # torchao asserts what it expects of a network
            raise ContractError(
                "torchao cannot make the network symmetric int8: its quantizer does not support "
                f"these layers ({type(error).__name__} {str(error)[:80]})".replace(" )", ")"),
                where=predictor.config.architecture,
                hint="Export without the file for accelerators (target=false); their own tools "
                "quantize fp32.onnx",
            ) from error
        with torch.no_grad():
            for batch in network_inputs(images, predictor.preprocessing):
                observed(torch.from_numpy(batch))
        return convert_pt2e(observed)


def has_attention(detector: nn.Module) -> bool:
    """Whether the detector is a transformer, of which only layers with weights become INT8."""
    from torch import nn

    return any(isinstance(module, nn.LayerNorm) for module in detector.modules())


def symmetric_quantizer(
    observer: Observer = "histogram",
    keep_float: Sequence[str] = (),
    *,
    learning: bool = False,
    whole: bool = True,
) -> Any:
    """torchao's quantizer: which tensors become int8, and how.

    Args:
        observer: How activation ranges are found.
        keep_float: Names of modules that stay in float.
        learning: For quantization-aware training.
        whole: Quantize everything that can be; else only convolutions and linear layers.
    """
    from torch import nn
    from torchao.quantization.pt2e.quantizer import QuantizationConfig
    from torchao.quantization.pt2e.quantizer.x86_inductor_quantizer import X86InductorQuantizer

    activation, weight = _quantization_specs(observer, learning=learning)
    config = QuantizationConfig(activation, activation, weight, None, learning)
    quantizer = X86InductorQuantizer()
    if whole:
        quantizer.set_global(config)
    for kind in () if whole else (nn.Conv2d, nn.Linear):
        quantizer.set_module_type_qconfig(kind, config)
    for name in keep_float:
        quantizer.set_module_name_qconfig(name, None)
    return quantizer


def _quantization_specs(observer: Observer, *, learning: bool) -> tuple[Any, Any]:
    import torch
    from torchao.quantization import pt2e
    from torchao.quantization.pt2e.quantizer import QuantizationSpec

    common = {
        "dtype": torch.int8,
        "quant_min": -_INT8_LIMIT,
        "quant_max": _INT8_LIMIT,
        "is_dynamic": False,
    }
    symmetric = {"qscheme": torch.per_tensor_symmetric, **common}
    channels = {"qscheme": torch.per_channel_symmetric, "ch_axis": 0, **common}
    if learning:
        follow = {
            "dtype": torch.int8,
            "quant_min": -_INT8_LIMIT,
            "quant_max": _INT8_LIMIT,
            "eps": _EPS,
        }
        inner = pt2e.FakeQuantize.with_args(
            observer=pt2e.MovingAverageMinMaxObserver, qscheme=torch.per_tensor_symmetric, **follow
        )
        outer = pt2e.FakeQuantize.with_args(
            observer=pt2e.MovingAveragePerChannelMinMaxObserver,
            qscheme=torch.per_channel_symmetric,
            ch_axis=0,
            **follow,
        )
    else:
        kinds = {"histogram": pt2e.HistogramObserver, "minmax": pt2e.MinMaxObserver}
        inner = kinds[observer].with_args(eps=_EPS)
        outer = pt2e.PerChannelMinMaxObserver.with_args(eps=_EPS)
    return (
        QuantizationSpec(observer_or_fake_quant_ctr=inner, **symmetric),
        QuantizationSpec(observer_or_fake_quant_ctr=outer, **channels),
    )


def fold_stem(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy whose first convolution is fast in INT8: the same sums in another memory layout.

    A convolution with a large stride over three color planes gives an integer kernel runs of three
    bytes to multiply, and is then slower in INT8 than in FP32. Folding ``stride`` neighboring
    pixels of a row into channels makes these runs ``stride`` times as long and moves nothing in
    channels-last memory (a narrower form of the space-to-depth of Ying et al., "Image
    Classification at Supercomputer Scale", 2018).

    Only a convolution that is the sole reader of the input, over at most four channels, with a
    stride along a row above one that divides the width, without dilation or groups, is folded.
    Other models are returned unchanged.
    """
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    node = _first_convolution(copy)
    if node is None:
        return copy
    settings = _conv_settings(node)
    stride, (top, left, bottom, right) = settings["strides"][1], settings["pads"]
    constants = {tensor.name: tensor for tensor in copy.graph.initializer}
    kernel = numpy_helper.to_array(constants[node.input[1]])
    _, channels, height, width = (
        dim.dim_value for dim in copy.graph.input[0].type.tensor_type.shape.dim
    )
    wide, before = _fold_kernel(kernel, stride, left)
    groups, taps = width // stride, wide.shape[3]
    columns = (width + left + right - kernel.shape[3]) // stride + 1
    after = columns - 1 + taps - groups - before
    if after < 0:
        return copy
    shape = np.array([0, height, groups, stride * channels], np.int64)
    fresh = [
        helper.make_node(
            "Transpose", [INPUT_NAME], ["stem_rows"], name="stem_0", perm=[0, 2, 3, 1]
        ),
        helper.make_node("Reshape", ["stem_rows", "stem_shape"], ["stem_groups"], name="stem_1"),
        helper.make_node(
            "Transpose", ["stem_groups"], ["stem_planes"], name="stem_2", perm=[0, 3, 1, 2]
        ),
        helper.make_node(
            "Conv",
            ["stem_planes", "stem_weights", *node.input[2:]],
            list(node.output),
            name=node.name,
            kernel_shape=list(wide.shape[2:]),
            pads=[top, before, bottom, after],
            strides=[settings["strides"][0], 1],
        ),
    ]
    nodes = [*fresh, *(other for other in copy.graph.node if other.name != node.name)]
    kept = [tensor for tensor in copy.graph.initializer if tensor.name != node.input[1]]
    kept += [numpy_helper.from_array(wide, "stem_weights")]
    kept += [numpy_helper.from_array(shape, "stem_shape")]
    del copy.graph.node[:], copy.graph.initializer[:]
    copy.graph.node.extend(nodes)
    copy.graph.initializer.extend(kept)
    return copy


def _first_convolution(model: onnx.ModelProto) -> Any | None:
    # A second reader would still need the unfolded image.
    readers = [node for node in model.graph.node if INPUT_NAME in node.input]
    shape = model.graph.input[0].type.tensor_type.shape.dim
    if len(readers) != 1 or readers[0].op_type != "Conv" or len(shape) != 4:
        return None
    settings = _conv_settings(readers[0])
    stride, width = settings["strides"][1], shape[3].dim_value
    foldable = (
        stride > 1
        and settings["group"] == 1
        and set(settings["dilations"]) == {1}
        and 0 < shape[1].dim_value <= _MAX_STEM_CHANNELS
        and width > 0
        and width % stride == 0
        and shape[2].dim_value > 0
    )
    return readers[0] if foldable else None


def _conv_settings(node: Any) -> dict[str, Any]:
    given = {entry.name: helper.get_attribute_value(entry) for entry in node.attribute}
    defaults = {"strides": [1, 1], "pads": [0, 0, 0, 0], "dilations": [1, 1], "group": 1}
    return {**defaults, **given}


def _fold_kernel(kernel: _Weights, stride: int, left: int) -> tuple[_Weights, int]:
    """Weights ``[o, stride * c, rows, taps]`` over groups of pixels, and groups padded on the left.

    Tap ``k`` of a row reads pixel ``stride * i + k - left`` for output ``i``, which is position
    ``(k - left) % stride`` of group ``i + (k - left) // stride``.
    """
    outputs, channels, rows, columns = kernel.shape
    first, last = -left // stride, (columns - 1 - left) // stride
    taps = last - first + 1
    wide = np.zeros((outputs, stride, channels, rows, taps), np.float32)
    for column in range(columns):
        group, position = divmod(column - left, stride)
        wide[:, position, :, :, group - first] = kernel[:, :, :, column]
    return wide.reshape(outputs, stride * channels, rows, taps), -first
