"""Quantisation-aware training without labels: the network learns to answer as its float self does.

For a model whose accuracy does not survive 8-bit ranges (Jacob et al., "Quantization and Training
of Neural Networks for Efficient Integer-Arithmetic-Only Inference", 2018): rounding is put into
the loop with torchao's `prepare_qat_pt2e`, and the weights are moved until the raw outputs are the
float network's again (distillation, Hinton et al., 2015). Before that batch norms are folded, so
that nothing is left that behaves otherwise in training, and channels are brought to like ranges.
Only for models that need it; one that keeps its limits after plain calibration gains nothing.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from workbench.errors import ContractError, ParameterError
from workbench.export.onnx_file import quietly
from workbench.export.target_file import attends, symmetric_quantiser
from workbench.perception.preprocessing import Pixels, prepare_batch

if TYPE_CHECKING:
    from torch import Tensor, nn

    from workbench.perception.predictor import TorchPredictor

Progress = Callable[[int, int], None]
_BATCH = 8
_WATCHING = 0.2
"""Share of the steps in which ranges are still followed; then they stand and weights settle."""


def distil(
    predictor: TorchPredictor,
    pixels: Sequence[Pixels],
    *,
    steps: int,
    lr: float = 1e-3,
    seed: int = 0,
    progress: Progress | None = None,
) -> TorchPredictor:
    """A copy of the network, batch norms folded, whose weights live with 8-bit rounding.

    Equal bits for equal arguments, threads and CPU class.

    Args:
        predictor: The float network; stays as it is and is what is learned from.
        pixels: Frames of the calibration set, RGB uint8.
        lr: Of Adam, falling to nothing along a cosine, as a share of what weights are like.

    Raises:
        ParameterError: No steps or no frames.
        ContractError: The network cannot be learned through this way.
    """
    import torch

    if steps < 1 or not pixels:
        raise ParameterError("nothing to learn", hint="Give at least one step and one frame")
    if attends(predictor.detector):
        raise ContractError(
            "a transformer is not trained for eight bits here",
            hint="Keep its sensitive layers in float (thorough), or ship fp32.onnx "
            "(on_loss=record, qat_steps=0)",
        )
    student = equalised(folded(predictor))
    graph = _with_rounding(student, predictor, min(_BATCH, len(pixels)))
    weights = _shared_weights(graph, student.detector)
    optimiser = torch.optim.Adam([weights[name] for name in sorted(weights)], lr=lr)
    scales = {name: _likeness(value.detach()) for name, value in weights.items()}
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    rng = np.random.default_rng(seed)
    watching = max(1, int(steps * _WATCHING))
    for step in range(steps):
        if step == watching:
            _stop_watching(graph)
        batch = _batch(predictor, pixels, rng)
        with torch.no_grad():
            right = predictor.detector(batch)
        loss = _apart(graph(batch), right)
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        _step(optimiser, weights, scales)
        schedule.step()
        if progress:
            progress(step + 1, steps)
    state = student.detector.state_dict()
    state.update({name: value.detach().clone() for name, value in weights.items()})
    student.detector.load_state_dict(state)
    return student


def folded(predictor: TorchPredictor) -> TorchPredictor:
    """The same network with every batch norm folded into the convolution before it."""
    from torch import nn
    from torch.nn.utils.fusion import fuse_conv_bn_eval

    from workbench.perception.predictor import TorchPredictor

    detector: Any = copy.deepcopy(predictor.detector).eval()
    for module in list(detector.modules()):
        if not isinstance(module, nn.Sequential):
            continue
        for place in range(len(module) - 1):
            first, second = module[place], module[place + 1]
            if isinstance(first, nn.Conv2d) and isinstance(second, nn.BatchNorm2d):
                module[place] = fuse_conv_bn_eval(first, second)
                module[place + 1] = nn.Identity()
    return TorchPredictor(detector, predictor.preprocessing, ref=predictor.ref)


def equalised(predictor: TorchPredictor) -> TorchPredictor:
    """A copy of a folded network whose channels have like ranges, computing what it did.

    Cross-layer equalisation (Nagel et al., "Data-Free Quantization Through Weight Equalization and
    Bias Correction", 2019): what a ReLU lets through can be divided before it and multiplied after
    it, channel by channel. One range then fits all channels of a layer, which rounding alone never
    learns within hundreds of steps.
    """
    import torch

    from workbench.perception.predictor import TorchPredictor

    detector: Any = copy.deepcopy(predictor.detector)
    with torch.no_grad():
        for first, second in _pairs(detector):
            ours = first.weight.abs().flatten(1).amax(1).clamp_min(1e-12)
            theirs = second.weight.abs().transpose(0, 1).flatten(1).amax(1).clamp_min(1e-12)
            factor = (ours / theirs).sqrt()
            first.weight.div_(factor[:, None, None, None])
            first.bias.div_(factor)
            second.weight.mul_(factor[None, :, None, None])
    return TorchPredictor(detector, predictor.preprocessing, ref=predictor.ref)


def _pairs(detector: Any) -> list[tuple[Any, Any]]:
    """Convolutions with nothing but a ReLU between them, and no other reader of what is between."""
    import torch.fx
    from torch import nn

    modules = dict(detector.named_modules())
    found = []
    for node in torch.fx.symbolic_trace(detector).graph.nodes:
        if node.op != "call_module" or not isinstance(modules[node.target], nn.Conv2d):
            continue
        after, passed = node, False
        while len(after.users) == 1:
            after = next(iter(after.users))
            kind = modules.get(after.target) if after.op == "call_module" else None
            if isinstance(kind, nn.Conv2d):
                if passed and kind.groups == 1 and modules[node.target].bias is not None:
                    found.append((modules[node.target], kind))
                break
            if not isinstance(kind, nn.ReLU | nn.Identity):
                break
            passed = passed or isinstance(kind, nn.ReLU)
    return found


def _with_rounding(student: TorchPredictor, predictor: TorchPredictor, count: int) -> Any:
    import torch

    spec = predictor.preprocessing
    with quietly():
        from torchao.quantization.pt2e.quantize_pt2e import prepare_qat_pt2e

        example = torch.zeros(count, 3, spec.height, spec.width)
        graph = torch.export.export(student.detector, (example,)).module()
        return prepare_qat_pt2e(graph, symmetric_quantiser(learning=True))


def _shared_weights(graph: Any, detector: nn.Module) -> dict[str, Any]:
    """The graph's trainable tensors by their names in the detector."""
    known = dict(detector.named_parameters())
    found = {name: value for name, value in graph.named_parameters() if name in known}
    if found.keys() != known.keys():
        raise ContractError(
            "the network's weights cannot be found again in its graph",
            hint="Quantisation-aware training is for the compact detector",
        )
    for value in found.values():
        value.requires_grad_(True)
    return found


def _likeness(weight: Tensor) -> Tensor:
    """How large the weights between each output and input channel are, for steps to be shares of.

    Adam's steps are equally long for all. Where ranges differ much between channels, which is just
    where calibration fails, they would destroy the small weights before they moved the large.
    """
    if weight.ndim < 2:
        return weight.abs().mean().clamp_min(1e-6)
    square = weight.square()
    outer = square.flatten(1).mean(1).sqrt()
    inner = square.transpose(0, 1).flatten(1).mean(1).sqrt()
    whole = square.mean().sqrt().clamp_min(1e-12)
    both = outer[:, None] * inner[None, :] / whole
    return both.reshape(*both.shape, *([1] * (weight.ndim - 2)))


def _step(optimiser: Any, weights: dict[str, Any], scales: dict[str, Tensor]) -> None:
    import torch

    before = {name: value.detach().clone() for name, value in weights.items()}
    optimiser.step()
    with torch.no_grad():
        for name, value in weights.items():
            value.copy_(before[name] + (value - before[name]) * scales[name])


def _stop_watching(graph: Any) -> None:
    from torchao.quantization.pt2e import FakeQuantize

    for module in graph.modules():
        if isinstance(module, FakeQuantize):
            module.disable_observer()


def _batch(predictor: TorchPredictor, pixels: Sequence[Pixels], rng: Any) -> Tensor:
    import torch

    count = min(_BATCH, len(pixels))
    chosen = rng.choice(len(pixels), count, replace=False)
    shown = [pixels[index][:, :: 1 if rng.random() < 0.5 else -1] for index in chosen]
    return torch.from_numpy(prepare_batch(shown, predictor.preprocessing)[0])


def _apart(found: Sequence[Tensor], right: Sequence[Tensor]) -> Tensor:
    """Mean squared error of each raw output over its variance, summed: all outputs weigh alike."""
    total: Any = 0.0
    for one, other in zip(found, right, strict=True):
        total = total + ((one - other) ** 2).mean() / (other.var() + 1e-6)
    return total  # type: ignore[no-any-return]
