"""Quantisation-aware training without labels: the network learns to answer as its float self does.

For a model whose accuracy does not survive 8-bit ranges (Jacob et al., "Quantization and Training
of Neural Networks for Efficient Integer-Arithmetic-Only Inference", 2018): rounding is put into
the loop with torchao's `prepare_qat_pt2e`, and the weights are moved until the raw outputs are the
float network's again (distillation, Hinton et al., 2015). Batch norms are folded first: there is
nothing left then that behaves otherwise in training. Only for models that need it; one that keeps
its limits after plain calibration gains nothing.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from workbench.errors import ContractError, ParameterError
from workbench.export.onnx_file import quietly
from workbench.export.target_file import symmetric_quantiser
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
    lr: float = 3e-4,
    seed: int = 0,
    progress: Progress | None = None,
) -> TorchPredictor:
    """A copy of the network, batch norms folded, whose weights live with 8-bit rounding.

    Equal bits for equal arguments, threads and CPU class.

    Args:
        predictor: The float network; stays as it is and is what is learned from.
        pixels: Frames of the calibration set, RGB uint8.
        lr: Of Adam, falling to nothing along a cosine.

    Raises:
        ParameterError: No steps or no frames.
        ContractError: The network cannot be learned through this way.
    """
    import torch

    if steps < 1 or not pixels:
        raise ParameterError("nothing to learn", hint="Give at least one step and one frame")
    student = folded(predictor)
    graph = _with_rounding(student, predictor, min(_BATCH, len(pixels)))
    weights = _shared_weights(graph, student.detector)
    optimiser = torch.optim.Adam([weights[name] for name in sorted(weights)], lr=lr)
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
        optimiser.step()
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
