"""The detector as a float ONNX file: raw maps only, its contract inside, equal bytes each time."""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING

from workbench.errors import ContractError
from workbench.perception.contract import to_metadata
from workbench.perception.preprocessing import Preprocessing

if TYPE_CHECKING:
    from torch.nn import Module

    from workbench.perception.detector import Detector
    from workbench.perception.predictor import TorchPredictor

OPSET = 18
INPUT = "images"
BATCH = "batch"


def export_fp32(predictor: TorchPredictor) -> bytes:
    """A float32 ONNX file of any batch size; input ``images`` is NCHW, see `Preprocessing`."""
    return to_onnx(predictor.detector, predictor.detector, predictor.preprocessing, any_batch=True)


def to_onnx(
    network: Module, detector: Detector, preprocessing: Preprocessing, *, any_batch: bool
) -> bytes:
    """Canonical ONNX of ``network``, which takes and gives what ``detector`` does.

    Args:
        network: The detector itself, or a quantised copy of it.
        any_batch: Leave the batch dimension free; else it is one frame.

    Raises:
        ContractError: The exporter gave no program.
    """
    import torch

    from workbench.export.canonical import canonical

    count = 2 if any_batch else 1  # an example of one would make the exporter fix it
    example = torch.zeros(count, 3, preprocessing.height, preprocessing.width)
    free = ({0: torch.export.Dim(BATCH, min=1, max=4096)},) if any_batch else None
    with quietly():
        program = torch.onnx.export(
            network,
            (example,),
            dynamo=True,
            opset_version=OPSET,
            external_data=False,
            input_names=[INPUT],
            output_names=list(detector.config.output_names),
            dynamic_shapes=free,
            verbose=False,
        )
    if program is None:
        raise ContractError("torch gave no ONNX program for the detector")
    return canonical(program.model_proto, to_metadata(detector.config, preprocessing))


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    """Without the exporters' remarks about packages that are not meant to be there."""
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
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)
