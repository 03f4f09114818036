"""Per-layer quantization sensitivity: each layer alone in INT8, alone in float, and its own noise.

Ranges are calibrated once and every file is made from them, so a layer costs two passes over a
small sample. A ranking of layers needs tens of frames; a verdict on the model needs the whole
evaluation set and is the gate's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from onnx import helper

from workbench.core.errors import ContractError
from workbench.core.types import Json, Progress
from workbench.detection.config import from_onnx_metadata
from workbench.detection.preprocessing import Pixels
from workbench.export.formats import INPUT_NAME
from workbench.export.parity import Fidelity, ReferenceSample, decibels, signal_energy
from workbench.export.quantization import CalibratedModel, network_inputs

if TYPE_CHECKING:
    from torch import nn

    from workbench.detection.predictor import TorchPredictor

__all__ = ()

MIN_HEAD_DB = 30.0
"""Required SQNR of every raw output."""

AIM_DB = MIN_HEAD_DB + 1.0
"""Between the few frames that layers are chosen on and those that a file is judged on."""


@dataclass(frozen=True)
class Layer:
    """One convolution: its ``module`` in the detector and its ``node`` in the float file."""

    module: str
    node: str
    weights: int


@dataclass(frozen=True)
class LayerSensitivity:
    """SQNR of one layer in dB; for the raw outputs, the worst one's.

    Attributes:
        layer: The layer.
        own_db: Of the layer's own output with all layers in INT8.
        alone_int8_db: Of the raw outputs with only this layer in INT8.
        alone_float_db: Of the raw outputs with all layers but this one in INT8.
        gain_db: Gain of the raw outputs when this layer stays in float.
    """

    layer: Layer
    own_db: float
    alone_int8_db: float
    alone_float_db: float
    gain_db: float


@dataclass(frozen=True)
class Sensitivity:
    """Sensitivity of all layers.

    Attributes:
        layers: In the order they run.
        whole: Fidelity of the file with all layers in INT8.
        frames: Frames measured on.
    """

    layers: tuple[LayerSensitivity, ...]
    whole: Fidelity
    frames: int

    def as_json(self) -> Json:
        """What ``sensitivity.json`` holds."""
        return {
            "schema_version": 1,
            "frames": self.frames,
            "whole": {"sqnr_db": self.whole.sqnr_db, "agreement": self.whole.agreement},
            "layers": self.table(),
        }

    def table(self) -> list[Json]:
        """A row for each layer, worst first: candidates to keep in float."""
        rows = [asdict(row) for row in self.layers]
        rows = [row.pop("layer") | row for row in rows]
        return sorted(rows, key=lambda row: (row["alone_int8_db"], -row["gain_db"]))


def _convolution_layers(predictor: TorchPredictor, fp32: bytes) -> tuple[Layer, ...]:
    """The convolutions of the float file with their names in the detector.

    Both run them in the same order, which is checked by the size of their weights.

    Raises:
        ContractError: The file has other convolutions than the detector.
    """
    ran = _run_convolutions(predictor)
    model = onnx.load_from_string(fp32)
    sizes = {tensor.name: int(np.prod(tensor.dims)) for tensor in model.graph.initializer}
    nodes = [node for node in model.graph.node if node.op_type == "Conv"]
    same = len(nodes) == len(ran) and all(
        sizes.get(node.input[1]) == module.weight.numel()
        for node, (_, module) in zip(nodes, ran, strict=True)
    )
    if not same:
        raise ContractError(
            "the float file's convolutions differ from the detector's",
            hint="Use the float file that was exported from this network",
        )
    return tuple(
        Layer(name, node.name, module.weight.numel())
        for (name, module), node in zip(ran, nodes, strict=True)
    )


def measure_sensitivity(
    predictor: TorchPredictor,
    fp32: bytes,
    calibrated: CalibratedModel,
    images: Sequence[Pixels],
    *,
    threads: int = 2,
    progress: Progress | None = None,
) -> Sensitivity:
    """Measure every layer on a sample of frames, which should not be evaluation frames.

    Args:
        predictor: The trained network.
        fp32: Its float file.
        calibrated: Of this float file.
        images: RGB uint8 frames of any size; 16 to 32 are enough for a ranking.
        threads: Of each session.
        progress: Called with the layers done and their total.

    Raises:
        ContractError: The float file is not of this network.
    """
    layers = _convolution_layers(predictor, fp32)
    sample = ReferenceSample(fp32, images, threads=threads)
    whole = sample.compare(calibrated.file())
    own = _own_noise(fp32, calibrated, layers, images)
    rows = []
    for done, layer in enumerate(layers, start=1):
        alone = sample.compare(calibrated.file(only=[layer.node]))
        without = sample.compare(calibrated.file(keep_float=[layer.node]))
        rows.append(
            LayerSensitivity(
                layer,
                own[layer.node],
                alone.least_db,
                without.least_db,
                round(without.least_db - whole.least_db, 2),
            )
        )
        if progress:
            progress(done, len(layers))
    return Sensitivity(tuple(rows), whole, sample.frames)


def layers_to_keep_float(
    sensitivity: Sensitivity,
    least_db: Callable[[Sequence[Layer]], float],
    *,
    kept: Sequence[Layer] = (),
    most: int = 6,
) -> tuple[Layer, ...]:
    """``kept`` and the fewest further layers with which every raw output reaches 31 dB.

    31 dB is `AIM_DB`. Layers are added worst first.
    With more than ``most`` of them a file is hardly faster than the float file: then use
    quantization-aware training.

    Args:
        sensitivity: Of all layers.
        least_db: SQNR of the worst raw output with these layers in float.
        kept: Layers that stay in float anyway.
        most: Most layers to add.
    """
    chosen = tuple(kept)
    for row in sorted(sensitivity.layers, key=lambda row: row.alone_int8_db):
        if len(chosen) == len(kept) + most or least_db(chosen) >= AIM_DB:
            break
        if row.layer not in chosen:
            chosen += (row.layer,)
    return chosen


def always_float(predictor: TorchPredictor, fp32: bytes) -> tuple[Layer, ...]:
    """The layers that a network names in ``float_layers`` because INT8 costs too much there."""
    names = getattr(predictor.detector, "float_layers", ())
    if not names:
        return ()
    return tuple(one for one in _convolution_layers(predictor, fp32) if one.module in names)


def _run_convolutions(predictor: TorchPredictor) -> list[tuple[str, nn.Conv2d]]:
    """The detector's convolutions in the order they run."""
    import torch
    from torch import nn

    calls: list[tuple[str, nn.Conv2d]] = []
    handles = [
        module.register_forward_hook(
            lambda module, _inputs, _output, name=name: calls.append((name, module))
        )
        for name, module in predictor.detector.named_modules()
        if isinstance(module, nn.Conv2d)
    ]
    spec = predictor.preprocessing
    try:
        with torch.inference_mode():
            predictor.detector(torch.zeros(1, 3, spec.height, spec.width))
    finally:
        for handle in handles:
            handle.remove()
    return calls


def _own_noise(
    fp32: bytes, calibrated: CalibratedModel, layers: Sequence[Layer], images: Sequence[Pixels]
) -> dict[str, float]:
    """SQNR of each convolution's own output before the activation, all of them quantized."""
    _, spec = from_onnx_metadata(calibrated.metadata, where="fp32.onnx")
    names = [layer.node for layer in layers]
    first = _session_with_outputs(onnx.load_from_string(fp32), names)
    second = _session_with_outputs(calibrated.model([], []), names)
    signal, noise = np.zeros(len(layers)), np.zeros(len(layers))
    for batch in network_inputs(images, spec):
        right, wrong = first.run(None, {INPUT_NAME: batch}), second.run(None, {INPUT_NAME: batch})
        for position, (one, other) in enumerate(zip(right, wrong, strict=True)):
            signal[position] += signal_energy(one)
            noise[position] += signal_energy(one - other)
    return {layer.node: decibels(signal[i], noise[i]) for i, layer in enumerate(layers)}


def _session_with_outputs(model: onnx.ModelProto, names: Sequence[str]) -> Any:
    """A session with the outputs of the named nodes, without fusion."""
    import onnxruntime

    outputs = {node.name: node.output[0] for node in model.graph.node}
    del model.graph.output[:]
    model.graph.output.extend(
        helper.make_tensor_value_info(outputs[name], onnx.TensorProto.FLOAT, None) for name in names
    )
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
