"""What a detection model has to offer, so that it can be trained, judged and kept."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

if TYPE_CHECKING:
    from torch import Tensor

    from workbench.perception.contract import DetectorConfig


@dataclass(frozen=True)
class Truth:
    """Objects and ignore regions of a batch, padded to the fullest frame.

    ``boxes`` ``[n, m, 4]`` xyxy network pixels, ``classes`` ``[n, m]``, ``real`` ``[n, m]`` 1 for
    an object, ``ignore`` ``[n, m]`` 1 for an ignore region, ``weights`` ``[n, m]`` in [0, 1]: how
    far a label is trusted.
    """

    boxes: Tensor
    classes: Tensor
    real: Tensor
    ignore: Tensor
    weights: Tensor

    def part(self, rows: slice) -> Truth:
        """Some frames of the batch."""
        return self._each(lambda tensor: tensor[rows])

    def to(self, device: str) -> Truth:
        return self._each(lambda tensor: tensor.to(device))

    def _each(self, change: Any) -> Truth:
        parts = (self.boxes, self.classes, self.real, self.ignore, self.weights)
        return Truth(*(change(part) for part in parts))


@dataclass(frozen=True)
class Losses:
    """``total`` to minimise, and its parts without gradients."""

    total: Tensor
    cls: Tensor
    box: Tensor


class DetectionModel(Protocol):
    """A `torch.nn.Module` that finds boxes.

    Its ``config`` says all that rebuilds it without weights: ``architecture`` names its family in
    the `registry`, ``network`` holds whatever else the family wants, as plain JSON. Calling it
    takes float32 ``[n, 3, height, width]``, prepared by the `Preprocessing` that is kept with it,
    and gives raw outputs, which its family's ``decode`` turns into boxes. It is trained with the
    compact detector's loss if its outputs are cell maps like those of `Detector.forward`; else it
    brings ``losses``, see `OwnLosses`.
    """

    config: DetectorConfig

    def __call__(self, images: Tensor) -> tuple[Tensor, ...]: ...

    def state_dict(self) -> dict[str, Any]: ...


@runtime_checkable
class OwnLosses(Protocol):
    """A model that says itself how wrong it is."""

    def losses(self, images: Tensor, truth: Truth) -> Losses:
        """Of a batch, the mean over its objects."""
        ...


@runtime_checkable
class WithFeatures(Protocol):
    """A model whose inner maps can be had, so that frames and boxes can be compared by them."""

    def features(self, images: Tensor) -> tuple[Tensor, ...]:
        """Maps ``[n, c, height/stride, width/stride]`` over the whole input, finest first."""
        ...

    def features_and_outputs(self, images: Tensor) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        """The same maps and the raw outputs, from one pass."""
        ...
