"""The detection loss, and the model wrapped with its loss for one process or DDP.

Assignment is task-aligned (TOOD, Feng et al. 2021): each object goes to the cells that already
predict it best. Classes are scored by the varifocal loss (Zhang et al. 2021), which makes a score
estimate the overlap; boxes by the generalised IoU (Rezatofighi et al. 2019). Everything is dense
masks over all cells: without boolean indexing, work and result do not depend on the data.

Shapes: ``n`` frames, ``a`` cells of all levels, ``m`` objects of the fullest frame, ``c`` classes.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel

from workbench.detection.config import (
    PYRAMID_FAMILIES,
    ComputesLosses,
    DetectorConfig,
    GroundTruthBatch,
    Losses,
)
from workbench.detection.families import cell_centres
from workbench.training.config import TrainingConfig
from workbench.training.targets import ALL_CLASSES, Targets

__all__ = ()

_TOP_K = 9
_ALIGN_SCORE, _ALIGN_OVERLAP = 0.5, 4.0
_NEAR_STRIDES = 0.75  # cells this close to a center may take an object smaller than a cell
_VFL_ALPHA, _VFL_GAMMA = 0.75, 2.0
_BOX_WEIGHT = 2.5
_EPS = 1e-7
_AUTOCAST_DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16}


def pad_targets(targets: Sequence[Targets]) -> GroundTruthBatch:
    """Targets of a batch as tensors padded to the fullest frame."""
    most = max(1, *(len(target.boxes) for target in targets))
    boxes = torch.zeros(len(targets), most, 4)
    classes = torch.zeros(len(targets), most, dtype=torch.long)
    real, ignore = torch.zeros(len(targets), most), torch.zeros(len(targets), most)
    weights = torch.ones(len(targets), most)
    for row, target in enumerate(targets):
        count = len(target.boxes)
        boxes[row, :count] = torch.from_numpy(target.boxes)
        classes[row, :count] = torch.from_numpy(target.classes)
        hidden = torch.from_numpy(target.ignore).float()
        ignore[row, :count], real[row, :count] = hidden, 1 - hidden
        if target.weights is not None:
            weights[row, :count] = torch.from_numpy(target.weights)
    return GroundTruthBatch(boxes, classes, real, ignore, weights)


class DetectionLoss:
    """The loss of the compact detector's raw maps against ground truth.

    Args:
        config: The detector's strides and classes.
    """

    def __init__(self, config: DetectorConfig) -> None:
        self._levels = config.strides
        self._classes = len(config.classes)
        self._shape: torch.Size | None = None

    def _place_cells(self, finest: Tensor) -> None:
        """Centers and strides of the cells of maps whose finest is ``[n, c, rows, columns]``."""
        if finest.shape[2:] == self._shape:
            return
        self._shape = finest.shape[2:]
        height, width = (side * self._levels[0] for side in self._shape)
        centers = [torch.from_numpy(cell_centres(width, height, s)) for s in self._levels]
        strides = [
            torch.full((len(c),), float(s)) for c, s in zip(centers, self._levels, strict=True)
        ]
        self._centers = torch.cat(centers).to(finest.device)
        self._strides = torch.cat(strides).to(finest.device)

    def __call__(self, outputs: Sequence[Tensor], truth: GroundTruthBatch) -> Losses:
        self._place_cells(outputs[0])
        logits = _flatten_levels(outputs[::2]).float()
        boxes = self._boxes(_flatten_levels(outputs[1::2]).float())
        with torch.no_grad():
            owner, quality = self._assign(logits.sigmoid(), boxes, truth)
            classes = truth.classes.gather(1, owner).clamp(min=0)
            scores = functional.one_hot(classes, self._classes) * quality.unsqueeze(-1)
            # The weight of a label applies to its own cells, for class and for box.
            trust = truth.weights.gather(1, owner)
            mask = self._score_mask(truth, quality)
            mask = mask * torch.where(quality > 0, trust, 1.0).unsqueeze(-1)
        amount = quality.sum().clamp(min=1.0)
        cls = (_varifocal(logits, scores) * mask).sum() / amount
        own_boxes = truth.boxes.gather(1, owner.unsqueeze(-1).expand(-1, -1, 4))
        box = ((1 - paired_giou(boxes, own_boxes)) * (quality * trust)).sum() / amount
        return Losses(cls + _BOX_WEIGHT * box, cls.detach(), box.detach())

    def _boxes(self, raw: Tensor) -> Tensor:
        """The decoding of `workbench.detection.families`, with gradients; ``[n, a, 4]`` xyxy."""
        reach = functional.elu(raw) + 0.5 * functional.relu(raw) ** 2
        reach = reach * self._strides[:, None]
        return torch.cat([self._centers - reach[..., :2], self._centers + reach[..., 2:]], dim=-1)

    def _assign(
        self, scores: Tensor, boxes: Tensor, truth: GroundTruthBatch
    ) -> tuple[Tensor, Tensor]:
        """The object of each cell ``[n, a]`` and the score to learn there, 0 for background."""
        near = self._near(truth) * truth.real.unsqueeze(-1)  # [n, m, a]
        overlap = pairwise_iou(truth.boxes, boxes) * near
        index = truth.classes.clamp(min=0).unsqueeze(-1).expand(-1, -1, scores.shape[1])
        own_score = scores.transpose(1, 2).gather(1, index)
        # A small overlap everywhere lets objects that nothing predicts yet find a cell.
        aligned = (own_score**_ALIGN_SCORE * (overlap + 1e-3) ** _ALIGN_OVERLAP) * near
        threshold = aligned.topk(min(_TOP_K, aligned.shape[-1]), dim=-1).values[..., -1:]
        chosen = aligned * (aligned >= threshold)
        best, owner = chosen.max(dim=1)  # a cell chosen by several goes to the best aligned
        chosen = chosen * functional.one_hot(owner, chosen.shape[1]).transpose(1, 2)
        strongest = chosen.amax(dim=-1, keepdim=True)
        reached = (overlap * (chosen > 0)).amax(dim=-1, keepdim=True)
        share = (chosen / (strongest + _EPS**3)) * reached.clamp(min=0.05)
        quality = share.amax(dim=1) * (best > 0)
        return owner, quality

    def _near(self, truth: GroundTruthBatch) -> Tensor:
        """1 where a cell's center lies in a box or near its center, ``[n, m, a]``."""
        middle = (truth.boxes[..., :2] + truth.boxes[..., 2:]) / 2
        half = (truth.boxes[..., 2:] - truth.boxes[..., :2]) / 2
        away = (self._centers - middle.unsqueeze(-2)).abs()
        reach = torch.maximum(
            half.unsqueeze(-2), _NEAR_STRIDES * self._strides[:, None].clamp(max=8)
        )
        return (away <= reach).all(dim=-1).float()

    def _score_mask(self, truth: GroundTruthBatch, quality: Tensor) -> Tensor:
        """1 where a cell's class score counts, ``[n, a, c]``: not inside ignore regions."""
        covered = self._near(truth) * truth.ignore.unsqueeze(-1)  # [n, m, a]
        every = (truth.classes == ALL_CLASSES).unsqueeze(-1)
        which = functional.one_hot(truth.classes.clamp(min=0), self._classes).bool() | every
        hidden = torch.bmm(covered.transpose(1, 2), which.float()) > 0
        return (~hidden | (quality > 0).unsqueeze(-1)).float()


def pairwise_iou(truth: Tensor, boxes: Tensor) -> Tensor:
    """IoU of xyxy boxes ``[n, m, 4]`` with ``[n, a, 4]``: ``[n, m, a]``."""
    low = torch.maximum(truth[:, :, None, :2], boxes[:, None, :, :2])
    high = torch.minimum(truth[:, :, None, 2:], boxes[:, None, :, 2:])
    common = _box_product(high - low)
    union = _area(truth)[:, :, None] + _area(boxes)[:, None, :] - common
    return common / (union + _EPS)


def paired_giou(first: Tensor, second: Tensor) -> Tensor:
    """Generalised IoU in [-1, 1] of pairs of boxes, ``[..., 4]`` to ``[...]``."""
    low = torch.maximum(first[..., :2], second[..., :2])
    high = torch.minimum(first[..., 2:], second[..., 2:])
    common = _box_product(high - low)
    union = _area(first) + _area(second) - common
    outer_low = torch.minimum(first[..., :2], second[..., :2])
    outer_high = torch.maximum(first[..., 2:], second[..., 2:])
    hull = _box_product(outer_high - outer_low)
    return common / (union + _EPS) - (hull - union) / (hull + _EPS)


def _varifocal(logits: Tensor, scores: Tensor) -> Tensor:
    entropy = functional.binary_cross_entropy_with_logits(logits, scores, reduction="none")
    with torch.no_grad():
        negative_weight = _VFL_ALPHA * logits.sigmoid() ** _VFL_GAMMA
        weight = torch.where(scores > 0, scores, negative_weight)
    return entropy * weight


def _flatten_levels(maps: Sequence[Tensor]) -> Tensor:
    """Levels ``[n, k, h, w]`` to one row of cells ``[n, a, k]``."""
    return torch.cat([level.flatten(2).transpose(1, 2) for level in maps], dim=1)


def _area(boxes: Tensor) -> Tensor:
    return _box_product(boxes[..., 2:] - boxes[..., :2])


def _box_product(sides: Tensor) -> Tensor:
    """Width times height, 0 for negative sides; `prod` has a slow gradient."""
    sides = sides.clamp(min=0)
    return sides[..., 0] * sides[..., 1]


class ModelWithLoss(nn.Module):
    """Maps images and ground truth to the losses ``(total, cls, box)``.

    Args:
        model: The detection model; one that implements `ComputesLosses` uses its own losses.
        config: Precision and device.
    """

    def __init__(self, model: Any, config: TrainingConfig) -> None:
        super().__init__()
        self.model = model
        self._dtype = _AUTOCAST_DTYPES.get(config.precision)
        self._device = config.device
        self._loss = None
        if not isinstance(model, ComputesLosses):
            self._loss = DetectionLoss(model.config)

    def forward(
        self, images: Tensor | tuple[Tensor, ...], truth: GroundTruthBatch
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Losses of images, or of the backbone's maps of images, finest first."""
        with self._autocast():
            if self._loss is None:
                losses = self.model.losses(images, truth)
                return losses.total.float(), losses.cls, losses.box
            if isinstance(images, tuple):
                maps = self.model.complete_maps(images)
                outputs = self.model.apply_heads(self.model.pyramid(maps))
            else:
                outputs = self.model(images)
        losses = self._loss(outputs, truth)
        return losses.total, losses.cls, losses.box

    def _autocast(self) -> contextlib.AbstractContextManager[Any]:
        if self._dtype is None:
            return contextlib.nullcontext()
        return torch.autocast(self._device, dtype=self._dtype)


def wrap_ddp(model: ModelWithLoss, config: TrainingConfig) -> Any:
    """The model in DDP where several processes train it."""
    if config.processes == 1:
        return model
    # Pretrained networks can have parameters without a gradient: heads that their loss leaves out.
    # Before its turn, see `TrainingOptions.heads_first`, a backbone has none either.
    known = model.model.config.architecture in PYRAMID_FAMILIES and not config.heads_first
    return DistributedDataParallel(model, find_unused_parameters=not known)


@contextlib.contextmanager
def gradient_sync(model: Any, last: bool) -> Iterator[None]:
    """Under DDP, synchronize gradients once a step: after its ``last`` micro-batch."""
    if isinstance(model, DistributedDataParallel) and not last:
        with model.no_sync():
            yield
    else:
        yield
