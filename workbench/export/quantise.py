"""Eight-bit integers, for two kinds of machine.

`int8_cpu` is for ONNX Runtime on a CPU: unsigned asymmetric activations, which its VNNI kernels
want. `int8_target` is for accelerators that take only symmetric int8 with float bias, as TensorRT
does; on a CPU it is slower than float, so its latency there says nothing and is never quoted.
Calibration goes through the preprocessing that the float file carries, as the car will.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from workbench.errors import ParameterError
from workbench.export.onnx_file import INPUT, quietly, to_onnx
from workbench.perception.contract import from_metadata
from workbench.perception.preprocessing import Pixels, Preprocessing, prepare

if TYPE_CHECKING:
    from workbench.perception.predictor import TorchPredictor

_LIMIT = 127  # symmetric: -128 is left out, or its mirror image would overflow


def int8_cpu(fp32: bytes, images: Iterable[Pixels]) -> bytes:
    """Static post-training quantisation in QDQ form; the same bytes for the same images.

    Per-channel QInt8 weights, QUInt8 activations with ranges from the calibration's extremes.

    Args:
        fp32: From `export_fp32`; its contract is carried over.
        images: RGB uint8 frames to calibrate with, of any size.
    """
    import onnx
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static

    from workbench.export.canonical import canonical, metadata_of

    model = onnx.load_from_string(fp32)
    metadata = metadata_of(model)
    _, preprocessing = from_metadata(metadata, where="fp32.onnx")
    with tempfile.TemporaryDirectory() as elsewhere, quietly():
        path = Path(elsewhere) / "int8.onnx"
        quantize_static(
            onnx.shape_inference.infer_shapes(model),
            path,
            _reader(images, preprocessing),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            calibrate_method=CalibrationMethod.MinMax,
        )
        return canonical(onnx.load(path), metadata)


def int8_target(predictor: TorchPredictor, images: Iterable[Pixels]) -> bytes:
    """Symmetric int8 with zero points of 0, per-channel weights and float bias, one frame a batch.

    torchao's PT2E flow: the graph is quantised in torch, so the ONNX file has native QDQ pairs.
    """
    import torch

    with quietly():
        from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

        example = torch.zeros(1, 3, predictor.preprocessing.height, predictor.preprocessing.width)
        graph = torch.export.export(predictor.detector, (example,)).module()
        observed = prepare_pt2e(graph, _symmetric_quantiser())
        with torch.no_grad():
            for batch in _inputs(images, predictor.preprocessing):
                observed(torch.from_numpy(batch))
        quantised = convert_pt2e(observed)
    return to_onnx(quantised, predictor.detector, predictor.preprocessing, any_batch=False)


def _symmetric_quantiser() -> Any:
    import torch
    from torchao.quantization.pt2e import HistogramObserver, PerChannelMinMaxObserver
    from torchao.quantization.pt2e.quantizer import QuantizationConfig, QuantizationSpec
    from torchao.quantization.pt2e.quantizer.x86_inductor_quantizer import X86InductorQuantizer

    common = {"dtype": torch.int8, "quant_min": -_LIMIT, "quant_max": _LIMIT, "is_dynamic": False}
    activation = QuantizationSpec(
        qscheme=torch.per_tensor_symmetric,
        observer_or_fake_quant_ctr=HistogramObserver.with_args(eps=2**-12),
        **common,
    )
    weight = QuantizationSpec(
        qscheme=torch.per_channel_symmetric,
        ch_axis=0,
        observer_or_fake_quant_ctr=PerChannelMinMaxObserver.with_args(eps=2**-12),
        **common,
    )
    config = QuantizationConfig(activation, activation, weight, None, False)
    return X86InductorQuantizer().set_global(config)


def _inputs(images: Iterable[Pixels], spec: Preprocessing) -> Iterator[NDArray[np.float32]]:
    """Network inputs of one frame each, float32 ``[1, 3, height, width]``."""
    count = 0
    for image in images:
        yield prepare(image, spec)[0][None]
        count += 1
    if not count:
        raise ParameterError(
            "no frames to calibrate with", hint="Pick them with workbench.export.calibration.pick"
        )


def _reader(images: Iterable[Pixels], spec: Preprocessing) -> Any:
    from onnxruntime.quantization import CalibrationDataReader

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.inputs = _inputs(images, spec)

        def get_next(self) -> dict[str, NDArray[np.float32]] | None:
            batch = next(self.inputs, None)
            return None if batch is None else {INPUT: batch}

    return Reader()
