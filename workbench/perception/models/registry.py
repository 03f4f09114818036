"""Families of models by name: how each is built from its configuration and read.

A checkpoint names its family. The two that come with the workbench are known; another one is made
known by the module that has it, which must be imported before its checkpoints are read.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from workbench.errors import DataError, ParameterError
from workbench.perception.boxes import Floats
from workbench.perception.contract import COMPACT, HUGGING_FACE, DetectorConfig

if TYPE_CHECKING:
    from workbench.perception.decode import Detections


class Decode(Protocol):
    """Raw outputs of a batch to the detections of each frame, in network pixels."""

    def __call__(
        self,
        outputs: Sequence[Floats],
        config: DetectorConfig,
        *,
        score_threshold: float,
        nms_iou: float,
    ) -> list[Detections]: ...


@dataclass(frozen=True)
class Family:
    """One kind of model.

    Args:
        name: What ``DetectorConfig.architecture`` says; never change what a used name means.
        build: The model with fresh weights from its configuration alone.
        decode: Its raw outputs to boxes, in numpy, also for what ONNX Runtime gives.
        output_names: Of its raw outputs, in order.
        multiple: What the input's width and height must be multiples of.
    """

    name: str
    build: Callable[[DetectorConfig], Any]
    decode: Decode
    output_names: Callable[[DetectorConfig], tuple[str, ...]]
    multiple: int = 1


_KNOWN: dict[str, Family] = {}


def register(family: Family) -> None:
    """Make a family of one's own known; the same one twice is fine.

    Raises:
        ParameterError: The name is another family's.
    """
    if family.name in (COMPACT, HUGGING_FACE) or _KNOWN.get(family.name, family) != family:
        raise ParameterError(
            f"there is a family of models called {family.name!r} already",
            where="models.register",
            hint="Give yours another name; old checkpoints go by it",
        )
    _KNOWN[family.name] = family


def find(name: str) -> Family:
    """The family of this name; raises `DataError` where it is not known."""
    if name == COMPACT:
        return _compact()
    if name == HUGGING_FACE:
        return _hugging_face()
    if name not in _KNOWN:
        raise DataError(
            f"models of the family {name!r} are not known here",
            where="DetectorConfig.architecture",
            hint="Import the module that registers it with workbench.perception.models.register",
        )
    return _KNOWN[name]


def output_names(config: DetectorConfig) -> tuple[str, ...]:
    """Names of a model's raw outputs, in the order that its network gives them."""
    return find(config.architecture).output_names(config)


def _compact() -> Family:
    from workbench.perception.decode import cell_output_names, decode_cells

    def build(config: DetectorConfig) -> Any:
        from workbench.perception.detector import Detector

        return Detector(config)

    return Family(COMPACT, build, decode_cells, cell_output_names, 32)


def _hugging_face() -> Family:
    from workbench.perception.models.queries import OUTPUTS, decode

    def build(config: DetectorConfig) -> Any:
        from workbench.perception.models import huggingface

        return huggingface.build(config)

    return Family(HUGGING_FACE, build, decode, lambda config: OUTPUTS, 32)
