"""Per-layer quantization sensitivity."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from onnx import helper

from workbench.core.errors import ContractError
from workbench.detection.config import from_onnx_metadata
from workbench.detection.preprocessing import Pixels
from workbench.export.formats import INPUT_NAME
from workbench.export.parity import Fidelity, ReferenceSample, decibels, signal_energy
from workbench.export.quantization import CalibratedModel, network_inputs

if TYPE_CHECKING:
    from torch import nn

    from workbench.detection.predictor import TorchPredictor

ProgressCallback = Callable[[int, int], None]
MIN_HEAD_DB = 30.0
"""Below this a raw output map is no longer the network's: the goal for every head."""


@dataclass(frozen=True)
class Layer:
    """One convolution: its ``module`` in the detector and its ``node`` in the float file."""

    module: str
    node: str
    weights: int


@dataclass(frozen=True)
class LayerSensitivity:
    """Figures of one layer, ratios in dB: the least of any raw output.

    ``own_db`` is the noise in the layer's own output with all layers in INT8; ``alone_int8_db`` the
    outputs' with only this one in INT8, ``alone_float_db`` with all but this one.
    ``gain_db`` is what keeping it in float would win.
    """

    layer: Layer
    own_db: float
    alone_int8_db: float
    alone_float_db: float
    gain_db: float


@dataclass(frozen=True)
class Sensitivity:
    """All layers in the order they run, the whole file's fidelity, and the frames it rests on."""

    layers: tuple[LayerSensitivity, ...]
    whole: Fidelity
    frames: int

    def as_json(self) -> dict[str, Any]:
        return {
            "schema_version": 1,
            "frames": self.frames,
            "whole": {"sqnr_db": self.whole.sqnr_db, "agreement": self.whole.agreement},
            "layers": self.table(),
        }

    def table(self) -> list[dict[str, Any]]:
        """A row for each layer, worst first: what to keep in float."""
        rows = [
            {
                "module": found.layer.module,
                "node": found.layer.node,
                "weights": found.layer.weights,
                "own_db": found.own_db,
                "alone_int8_db": found.alone_int8_db,
                "alone_float_db": found.alone_float_db,
                "gain_db": found.gain_db,
            }
            for found in self.layers
        ]
        return sorted(rows, key=lambda row: (row["alone_int8_db"], -row["gain_db"]))


def convolution_layers(predictor: TorchPredictor, fp32: bytes) -> tuple[Layer, ...]:
    """The convolutions of the float file with their names in the detector.

    Both run them in one order, which is checked by the size of their weights.

    Raises:
        ContractError: The file has other convolutions than the detector.
    """
    ran = _convolutions_as_they_run(predictor)
    model = onnx.load_from_string(fp32)
    sizes = {tensor.name: int(np.prod(tensor.dims)) for tensor in model.graph.initializer}
    nodes = [node for node in model.graph.node if node.op_type == "Conv"]
    same = len(nodes) == len(ran) and all(
        sizes.get(node.input[1]) == module.weight.numel()
        for node, (_, module) in zip(nodes, ran, strict=True)
    )
    if not same:
        raise ContractError(
            "the float file has other convolutions than the detector",
            hint="Layers can only be told apart in a file that was exported from this network",
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
    progress: ProgressCallback | None = None,
) -> Sensitivity:
    """Figures of every layer on a sample of frames, which should not be evaluation frames.

    Args:
        calibrated: Of the same float file.
        images: RGB uint8, of any size; 16 to 32 are enough for a ranking.
    """
    found, sample = (
        convolution_layers(predictor, fp32),
        ReferenceSample(fp32, images, threads=threads),
    )
    content = calibrated.file()
    whole = sample.compare(content)
    own = _own_noise(fp32, calibrated, found, images)
    rows = []
    for done, layer in enumerate(found, start=1):
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
            progress(done, len(found))
    return Sensitivity(tuple(rows), whole, sample.frames)


def layers_to_keep_float(
    sensitivity: Sensitivity, *, floor_db: float = MIN_HEAD_DB, most: int = 3
) -> tuple[Layer, ...]:
    """The policy: as few layers as possible stay in float, and none if every head is good enough.

    When a raw output is below ``floor_db``, those layers stay that alone bring one down to it,
    give or take 3 dB (as much noise again from all others), worst first and ``most`` at most. A
    file with more of them is hardly faster any more: then training for eight bits is the way.
    """
    if sensitivity.whole.least_db >= floor_db:
        return ()
    rows = sorted(sensitivity.layers, key=lambda found: found.alone_int8_db)
    guilty = [row.layer for row in rows if row.alone_int8_db < floor_db + 3]
    return tuple(guilty[:most])


def _convolutions_as_they_run(predictor: TorchPredictor) -> list[tuple[str, nn.Conv2d]]:
    import torch
    from torch import nn

    ran: list[tuple[str, nn.Conv2d]] = []
    handles = [
        module.register_forward_hook(
            lambda module, _inputs, _output, name=name: ran.append((name, module))
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
    return ran


def _own_noise(
    fp32: bytes, calibrated: CalibratedModel, found: Sequence[Layer], images: Sequence[Pixels]
) -> dict[str, float]:
    """SQNR of each convolution's own output, all of them quantised.

    Compared is what comes before the activation, so values that it cuts off count too.
    """
    _, spec = from_onnx_metadata(calibrated.metadata, where="fp32.onnx")
    names = [layer.node for layer in found]
    first = _session_with_outputs(onnx.load_from_string(fp32), names)
    second = _session_with_outputs(calibrated.model([], []), names)
    signal, noise = np.zeros(len(found)), np.zeros(len(found))
    for batch in network_inputs(images, spec):
        right, wrong = first.run(None, {INPUT_NAME: batch}), second.run(None, {INPUT_NAME: batch})
        for position, (one, other) in enumerate(zip(right, wrong, strict=True)):
            signal[position] += signal_energy(one)
            noise[position] += signal_energy(one - other)
    return {layer.node: decibels(signal[i], noise[i]) for i, layer in enumerate(found)}


def _session_with_outputs(model: onnx.ModelProto, names: Sequence[str]) -> Any:
    """A session whose outputs are those of the nodes named, nothing fused into them."""
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
