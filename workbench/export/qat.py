"""Quantization-aware training by distillation, without labels.

For a model whose accuracy does not survive INT8 ranges (Jacob et al., "Quantization and Training of
Neural Networks for Efficient Integer-Arithmetic-Only Inference", 2018). Rounding is inserted with
torchao's `prepare_qat_pt2e`, and the weights are trained until the raw outputs are the float
network's again (distillation, Hinton et al., 2015). Batch norms are folded first, so that nothing
behaves differently in training, and channel ranges are equalized. A model that passes the gate
after calibration gains nothing from it.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from workbench.core.errors import ContractError, ParameterError
from workbench.core.types import Progress
from workbench.detection.preprocessing import Pixels, preprocess_batch
from workbench.export.formats import quiet_exporters
from workbench.export.quantization import has_attention, symmetric_quantizer

if TYPE_CHECKING:
    from torch import Tensor, nn

    from workbench.detection.predictor import TorchPredictor

__all__ = ()

_BATCH_SIZE = 8
_OBSERVING_SHARE = 0.2  # of the steps; then ranges are frozen and only weights change


def distill(
    predictor: TorchPredictor,
    pixels: Sequence[Pixels],
    *,
    steps: int,
    lr: float = 1e-3,
    seed: int = 0,
    progress: Progress | None = None,
) -> TorchPredictor:
    """A copy of the network with folded batch norms, trained for INT8 rounding.

    Reproducible to the bit for equal arguments, threads and CPU class.

    Args:
        predictor: The float network, which is the teacher and stays as it is.
        pixels: Calibration frames, RGB uint8.
        steps: Optimizer steps.
        lr: Initial learning rate of Adam relative to the weights' size, with a cosine decay to 0.
        seed: Of the batches.
        progress: Called with the steps done and their total.

    Raises:
        ParameterError: No steps or no frames.
        ContractError: The network cannot be trained for INT8.
    """
    import torch

    if steps < 1 or not pixels:
        raise ParameterError("nothing to train on", hint="Give at least one step and one frame")
    if has_attention(predictor.detector):
        raise ContractError(
            "quantization-aware training does not support transformers",
            hint="Keep its sensitive layers in float (thorough), or ship fp32.onnx "
            "(on_loss=record, qat_steps=0)",
        )
    student = equalize_channels(fold_batch_norms(predictor))
    graph = _insert_fake_quantization(student, predictor, min(_BATCH_SIZE, len(pixels)))
    weights = _shared_weights(graph, student.detector)
    optimizer = torch.optim.Adam([weights[name] for name in sorted(weights)], lr=lr)
    scales = {name: _weight_scales(value.detach()) for name, value in weights.items()}
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    rng = np.random.default_rng(seed)
    observing = max(1, int(steps * _OBSERVING_SHARE))
    for step in range(steps):
        if step == observing:
            _freeze_observers(graph)
        batch = _random_batch(predictor, pixels, rng)
        with torch.no_grad():
            expected = predictor.detector(batch)
        loss = _normalized_error(graph(batch), expected)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        _scaled_step(optimizer, weights, scales)
        schedule.step()
        if progress:
            progress(step + 1, steps)
    state = student.detector.state_dict()
    state.update({name: value.detach().clone() for name, value in weights.items()})
    student.detector.load_state_dict(state)
    return student


def fold_batch_norms(predictor: TorchPredictor) -> TorchPredictor:
    """The same network with every batch norm folded into the convolution before it."""
    from torch import nn
    from torch.nn.utils.fusion import fuse_conv_bn_eval

    from workbench.detection.predictor import TorchPredictor

    detector: Any = copy.deepcopy(predictor.detector).eval()
    for module in list(detector.modules()):
        if not isinstance(module, nn.Sequential):
            continue
        for index in range(len(module) - 1):
            first, second = module[index], module[index + 1]
            if isinstance(first, nn.Conv2d) and isinstance(second, nn.BatchNorm2d):
                module[index] = fuse_conv_bn_eval(first, second)
                module[index + 1] = nn.Identity()
    return TorchPredictor(detector, predictor.preprocessing, ref=predictor.ref)


def equalize_channels(predictor: TorchPredictor) -> TorchPredictor:
    """A copy of a folded network with equalized channel ranges and the same outputs.

    Cross-layer equalization (Nagel et al., "Data-Free Quantization Through Weight Equalization and
    Bias Correction", 2019): what passes a ReLU can be divided before it and multiplied after it,
    channel by channel. One range then fits all channels of a layer, which training alone does not
    reach within hundreds of steps.
    """
    import torch

    from workbench.detection.predictor import TorchPredictor

    detector: Any = copy.deepcopy(predictor.detector)
    with torch.no_grad():
        for first, second in _equalizable_pairs(detector):
            ours = first.weight.abs().flatten(1).amax(1).clamp_min(1e-12)
            theirs = second.weight.abs().transpose(0, 1).flatten(1).amax(1).clamp_min(1e-12)
            factor = (ours / theirs).sqrt()
            first.weight.div_(factor[:, None, None, None])
            first.bias.div_(factor)
            second.weight.mul_(factor[None, :, None, None])
    return TorchPredictor(detector, predictor.preprocessing, ref=predictor.ref)


def _equalizable_pairs(detector: Any) -> list[tuple[Any, Any]]:
    """Pairs of convolutions with only a ReLU between them, which nothing else reads."""
    import torch.fx
    from torch import nn

    modules = dict(detector.named_modules())
    pairs = []
    for node in torch.fx.symbolic_trace(detector).graph.nodes:
        if node.op != "call_module" or not isinstance(modules[node.target], nn.Conv2d):
            continue
        after, passed = node, False
        while len(after.users) == 1:
            after = next(iter(after.users))
            kind = modules.get(after.target) if after.op == "call_module" else None
            if isinstance(kind, nn.Conv2d):
                if passed and kind.groups == 1 and modules[node.target].bias is not None:
                    pairs.append((modules[node.target], kind))
                break
            if not isinstance(kind, nn.ReLU | nn.Identity):
                break
            passed = passed or isinstance(kind, nn.ReLU)
    return pairs


def _insert_fake_quantization(
    student: TorchPredictor, predictor: TorchPredictor, count: int
) -> Any:
    import torch

    spec = predictor.preprocessing
    with quiet_exporters():
        from torchao.quantization.pt2e.quantize_pt2e import prepare_qat_pt2e

        example = torch.zeros(count, 3, spec.height, spec.width)
        graph = torch.export.export(student.detector, (example,)).module()
        return prepare_qat_pt2e(graph, symmetric_quantizer(learning=True))


def _shared_weights(graph: Any, detector: nn.Module) -> dict[str, Any]:
    """The graph's trainable tensors by their names in the detector."""
    known = dict(detector.named_parameters())
    weights = {name: value for name, value in graph.named_parameters() if name in known}
    if weights.keys() != known.keys():
        raise ContractError(
            "the exported graph does not keep the names of the network's weights",
            hint="Quantization-aware training is for the compact detector",
        )
    for value in weights.values():
        value.requires_grad_(True)
    return weights


def _weight_scales(weight: Tensor) -> Tensor:
    """Typical size of the weights between each output and input channel, to scale steps by.

    Adam's steps have the same size for all weights. Where ranges differ much between channels,
    which is where calibration fails, they would destroy small weights before large ones change.
    """
    if weight.ndim < 2:
        return weight.abs().mean().clamp_min(1e-6)
    square = weight.square()
    outer = square.flatten(1).mean(1).sqrt()
    inner = square.transpose(0, 1).flatten(1).mean(1).sqrt()
    whole = square.mean().sqrt().clamp_min(1e-12)
    scale = outer[:, None] * inner[None, :] / whole
    return scale.reshape(*scale.shape, *([1] * (weight.ndim - 2)))


def _scaled_step(optimizer: Any, weights: dict[str, Any], scales: dict[str, Tensor]) -> None:
    import torch

    before = {name: value.detach().clone() for name, value in weights.items()}
    optimizer.step()
    with torch.no_grad():
        for name, value in weights.items():
            value.copy_(before[name] + (value - before[name]) * scales[name])


def _freeze_observers(graph: Any) -> None:
    from torchao.quantization.pt2e import FakeQuantize

    for module in graph.modules():
        if isinstance(module, FakeQuantize):
            module.disable_observer()


def _random_batch(predictor: TorchPredictor, pixels: Sequence[Pixels], rng: Any) -> Tensor:
    import torch

    count = min(_BATCH_SIZE, len(pixels))
    chosen = rng.choice(len(pixels), count, replace=False)
    images = [pixels[index][:, :: 1 if rng.random() < 0.5 else -1] for index in chosen]
    return torch.from_numpy(preprocess_batch(images, predictor.preprocessing)[0])


def _normalized_error(actual: Sequence[Tensor], expected: Sequence[Tensor]) -> Tensor:
    """Sum over the outputs of the mean squared error divided by the variance."""
    total: Any = 0.0
    for one, other in zip(actual, expected, strict=True):
        total = total + ((one - other) ** 2).mean() / (other.var() + 1e-6)
    return total  # type: ignore[no-any-return]
