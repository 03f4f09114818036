"""Symmetric int8 for accelerators that take nothing else, as TensorRT does.

Zero points of 0, per-channel weights, float bias, one frame a batch. On a CPU this file is slower
than float, so its latency there says nothing and is never quoted.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Literal, get_args

from workbench.errors import ContractError, ParameterError
from workbench.export.onnx_file import quietly, to_onnx
from workbench.export.quantise import inputs
from workbench.perception.preprocessing import Pixels

if TYPE_CHECKING:
    from torch import nn

    from workbench.perception.predictor import TorchPredictor

Observer = Literal["histogram", "minmax"]
OBSERVERS: tuple[Observer, ...] = get_args(Observer)
_LIMIT = 127  # symmetric: -128 is left out, or its mirror image would overflow
_EPS = 2**-12


def int8_target(
    predictor: TorchPredictor,
    images: Iterable[Pixels],
    *,
    observer: Observer = "histogram",
    keep_float: Sequence[str] = (),
) -> bytes:
    """The file for accelerators as canonical ONNX.

    Args:
        images: RGB uint8 frames to calibrate with, of any size.
        observer: ``histogram`` minimises the squared error of activations, ``minmax`` takes their
            extremes.
        keep_float: Names of the detector's modules that stay in float.
    """
    graph = fake_quantised(predictor, images, observer=observer, keep_float=keep_float)
    return to_onnx(graph, predictor.detector, predictor.preprocessing, any_batch=False)


def fake_quantised(
    predictor: TorchPredictor,
    images: Iterable[Pixels],
    *,
    observer: Observer = "histogram",
    keep_float: Sequence[str] = (),
) -> Any:
    """The detector as a torch graph with quantise and dequantise operators, for one frame.

    torchao's PT2E flow: what the ONNX file then says is what was computed in torch.

    Raises:
        ParameterError: An unknown observer or module; no images.
        ContractError: torchao's quantiser does not know the network's layers.
    """
    import torch

    if observer not in OBSERVERS:
        raise ParameterError(f"unknown observer {observer!r}", hint=f"Known are {OBSERVERS}")
    known = {name for name, _ in predictor.detector.named_modules()}
    unknown = sorted(set(keep_float) - known)
    if unknown:
        raise ParameterError(f"the detector has no module {unknown[0]}", where="keep_float")
    with quietly():
        from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

        example = torch.zeros(1, 3, predictor.preprocessing.height, predictor.preprocessing.width)
        graph = torch.export.export(predictor.detector, (example,)).module()
        rule = symmetric_quantiser(observer, keep_float, whole=not attends(predictor.detector))
        try:
            observed = prepare_pt2e(graph, rule)
        except Exception as error:  # torchao asserts what it expects of a network
            raise ContractError(
                "torchao cannot make the network symmetric int8: its quantiser does not know "
                f"these layers ({type(error).__name__} {str(error)[:80]})".replace(" )", ")"),
                where=predictor.config.architecture,
                hint="Export without the file for accelerators (target=false); their own tools "
                "quantise fp32.onnx",
            ) from error
        with torch.no_grad():
            for batch in inputs(images, predictor.preprocessing):
                observed(torch.from_numpy(batch))
        return convert_pt2e(observed)


def attends(detector: nn.Module) -> bool:
    """Whether it is a transformer, of which only what has weights is made int8."""
    from torch import nn

    return any(isinstance(module, nn.LayerNorm) for module in detector.modules())


def symmetric_quantiser(
    observer: Observer = "histogram",
    keep_float: Sequence[str] = (),
    *,
    learning: bool = False,
    whole: bool = True,
) -> Any:
    """Which tensors become int8 and how.

    Args:
        learning: For quantisation-aware training.
        whole: All that can be; else what convolutions and linear layers read, see
            `quantise.Calibrated`.
    """
    from torch import nn
    from torchao.quantization.pt2e.quantizer import QuantizationConfig
    from torchao.quantization.pt2e.quantizer.x86_inductor_quantizer import X86InductorQuantizer

    activation, weight = _specs(observer, learning=learning)
    config = QuantizationConfig(activation, activation, weight, None, learning)
    quantiser = X86InductorQuantizer()
    if whole:
        quantiser.set_global(config)
    for kind in () if whole else (nn.Conv2d, nn.Linear):
        quantiser.set_module_type_qconfig(kind, config)
    for name in keep_float:
        quantiser.set_module_name_qconfig(name, None)
    return quantiser


def _specs(observer: Observer, *, learning: bool) -> tuple[Any, Any]:
    import torch
    from torchao.quantization import pt2e
    from torchao.quantization.pt2e.quantizer import QuantizationSpec

    common = {"dtype": torch.int8, "quant_min": -_LIMIT, "quant_max": _LIMIT, "is_dynamic": False}
    symmetric = {"qscheme": torch.per_tensor_symmetric, **common}
    channels = {"qscheme": torch.per_channel_symmetric, "ch_axis": 0, **common}
    if learning:
        follow = {"dtype": torch.int8, "quant_min": -_LIMIT, "quant_max": _LIMIT, "eps": _EPS}
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
