from __future__ import annotations

import numpy as np
import pytest
import torch

from workbench.detection.boxes import as_boxes, iou_matrix
from workbench.detection.config import DetectorConfig
from workbench.detection.families import decode
from workbench.training.losses import DetectionLoss, pad_targets, paired_giou, pairwise_iou
from workbench.training.targets import ALL_CLASSES, Targets

CONFIG = DetectorConfig(classes=("car", "cyclist"))
WIDTH, HEIGHT = 96, 64


def maps(seed: int = 0, *, gradient: bool = False) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    made = []
    for stride in CONFIG.strides:
        for channels, shift in ((2, -3.0), (4, 1.0)):
            shape = (1, channels, HEIGHT // stride, WIDTH // stride)
            made.append(torch.randn(shape, generator=generator) * 0.3 + shift)
    return [level.requires_grad_(gradient) for level in made]


def targets(*boxes: tuple[float, ...], cls: int = 0, ignore: bool = False) -> Targets:
    count = len(boxes)
    return Targets(as_boxes(list(boxes)), np.full(count, cls), np.full(count, ignore))


def loss(outputs: list[torch.Tensor], found: Targets) -> torch.Tensor:
    return DetectionLoss(CONFIG)(outputs, pad_targets([found])).total


def test_overlaps_agree_with_numpy() -> None:
    rng = np.random.default_rng(0)
    corners = rng.uniform(0, 60, (12, 2, 2))
    boxes = np.concatenate([corners.min(1), corners.max(1)], axis=1).astype(np.float32)
    first, second = boxes[:5], boxes[5:]
    ours = pairwise_iou(torch.from_numpy(first)[None], torch.from_numpy(second)[None])[0]
    assert ours.numpy() == pytest.approx(iou_matrix(first, second), abs=1e-5)


def test_generalised_overlap_of_known_boxes() -> None:
    first = torch.tensor([[0.0, 0, 10, 10]] * 3)
    second = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 5], [20, 0, 30, 10]])
    assert paired_giou(first, second).tolist() == pytest.approx([1, 0.5, -1 / 3], abs=1e-5)


def test_training_and_deployment_decode_alike() -> None:
    outputs = maps()
    outputs[0][0, 0, 3, 5] = 6.0  # make one cell sure of itself
    (found,) = decode([level.numpy() for level in outputs], CONFIG, score_threshold=0.9)
    judge = DetectionLoss(CONFIG)
    judge._place_cells(outputs[0])
    raw = torch.cat([level.flatten(2).transpose(1, 2) for level in outputs[1::2]], dim=1)
    own = judge._boxes(raw)[0, 3 * (WIDTH // 8) + 5]
    assert found.boxes[0] == pytest.approx(own.clamp(min=0).numpy(), abs=1e-4)


def test_a_better_prediction_costs_less() -> None:
    outputs = maps()
    truth = targets((30, 14, 66, 50))
    before = loss(outputs, truth)
    for level, stride in zip((0, 2, 4), CONFIG.strides, strict=True):
        del stride
        outputs[level][:] = -8.0
    missed = loss(outputs, truth)
    outputs[2][0, 0, 2, 2] = outputs[2][0, 0, 1, 2] = 4.0
    hit = loss(outputs, truth)
    wrong_class = [level.clone() for level in outputs]
    wrong_class[2] = outputs[2].flip(1)
    assert hit < missed
    assert hit < before
    assert hit < loss(wrong_class, truth)


@pytest.mark.parametrize("box", [(30, 14, 66, 50), (41, 21, 44, 24), (0, 0, 96, 64)])
def test_every_object_finds_a_cell(box: tuple[float, ...]) -> None:
    """A thing smaller than a cell, between cells, and one that fills the picture."""
    judge = DetectionLoss(CONFIG)
    outputs = maps()
    judge._place_cells(outputs[0])
    raw = torch.cat([level.flatten(2).transpose(1, 2) for level in outputs[1::2]], dim=1)
    scores = torch.cat([level.flatten(2).transpose(1, 2) for level in outputs[::2]], dim=1)
    truth = pad_targets([targets(box)])
    _, quality = judge._assign(scores.sigmoid(), judge._boxes(raw), truth)
    assert 1 <= int((quality > 0).sum()) <= 9
    assert float(quality.max()) >= 0.05


def gradients(found: Targets) -> list[torch.Tensor]:
    outputs = maps(gradient=True)
    loss(outputs, found).backward()
    return [level.grad for level in outputs[::2] if level.grad is not None]


def test_ignored_regions_are_neither_right_nor_wrong() -> None:
    region = (0.0, 0.0, 42.0, 64.0)
    columns = (5, 3, 1)  # of each level, whose centres lie in the region
    nothing = gradients(targets())
    hidden = gradients(targets(region, cls=1, ignore=True))
    everything = gradients(targets(region, cls=ALL_CLASSES, ignore=True))
    for level, (without, one, both) in enumerate(zip(nothing, hidden, everything, strict=True)):
        left, right = slice(0, columns[level]), slice(columns[level], None)
        assert (without != 0).all()  # background teaches everywhere
        assert (one[:, 1, :, left] == 0).all()
        assert (one[:, 0, :, left] != 0).all()
        assert (both[:, :, :, left] == 0).all()
        assert (both[:, :, :, right] == without[:, :, :, right]).all()


def test_an_object_inside_an_ignored_region_still_counts() -> None:
    boxes = as_boxes([(0, 0, 96, 64), (30, 14, 66, 50)])
    both = Targets(boxes, np.array([ALL_CLASSES, 0]), np.array([True, False]))
    found = gradients(both)
    assert any((level[:, 0] < 0).any() for level in found)  # pulled up somewhere


def test_frames_without_objects_cost_their_false_alarms_only() -> None:
    outputs = maps()
    judged = DetectionLoss(CONFIG)(outputs, pad_targets([targets()]))
    assert float(judged.box) == 0
    assert float(judged.total) > 0
    for level in outputs[::2]:
        level[:] = -12.0
    assert float(loss(outputs, targets())) < 1e-6
