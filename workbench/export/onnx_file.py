"""The detector as a float ONNX file: raw maps only, its contract inside, equal bytes each time."""

from __future__ import annotations

import contextlib
import logging
import os
import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from workbench.errors import ContractError
from workbench.perception.contract import to_metadata
from workbench.perception.models.registry import output_names
from workbench.perception.preprocessing import Preprocessing

if TYPE_CHECKING:
    from torch.nn import Module

    from workbench.perception.detector import Detector
    from workbench.perception.predictor import TorchPredictor

OPSET = 18
INPUT = "images"
BATCH = "batch"
_CHECKS = "TRANSFORMERS_DISABLE_TORCH_CHECK"


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

    from workbench.export.canonical import canonical

    program, free = traced(network, preprocessing, any_batch=any_batch)
    with quietly():
        try:
            made = torch.onnx.export(
                program,
                dynamo=True,
                opset_version=OPSET,
                external_data=False,
                input_names=[INPUT],
                output_names=list(output_names(detector.config)),
                dynamic_shapes=free,
                verbose=False,
            )
        except torch.onnx.errors.OnnxExporterError as error:
            raise _refused("written as ONNX", error) from error
    if made is None:
        raise ContractError("torch gave no ONNX program for the detector")
    return canonical(made.model_proto, to_metadata(detector.config, preprocessing))


def traced(network: Module, preprocessing: Preprocessing, *, any_batch: bool) -> tuple[Any, Any]:
    """The network as a `torch.export` program, and its free dimensions as that wants them.

    Some detection transformers count the frames of a batch while they run, which ties the program
    to that number. Such a network is traced for one frame at a time, whatever was asked for.

    Raises:
        ContractError: The network cannot be traced.
    """
    import torch

    side = (3, preprocessing.height, preprocessing.width)
    with quietly():
        if any_batch:
            free = ({0: torch.export.Dim(BATCH, min=1, max=4096)},)
            # An example of one frame would make the exporter fix it.
            with contextlib.suppress(torch._dynamo.exc.UserError):
                example = torch.zeros(2, *side)
                return torch.export.export(network, (example,), dynamic_shapes=free), free
        try:
            return torch.export.export(network, (torch.zeros(1, *side),)), None
        except Exception as error:  # whatever the network's own code raises under tracing
            raise _refused("traced", error) from error


def _refused(what: str, error: Exception) -> ContractError:
    first = (str(error).strip() or type(error).__name__).splitlines()[0]
    return ContractError(
        f"the network cannot be {what}: {first}",
        hint="Its forward may not depend on the values it is given, nor on anything but tensors",
    )


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    """Without the exporters' remarks about packages that are not meant to be there.

    Also without the checks that transformers makes of shapes while it runs: they cannot be written
    into a graph, and what is exported is compared with the network afterwards.
    """
    checks = os.environ.get(_CHECKS)
    os.environ[_CHECKS] = "1"
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
            del os.environ[_CHECKS]
        else:
            os.environ[_CHECKS] = checks
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)
