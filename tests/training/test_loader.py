from __future__ import annotations

import cv2
import numpy as np
import pytest

from tests.training.scenes import CLASSES, SPEC, TINY, scenes
from workbench.core.workspace import Workspace
from workbench.detection.boxes import as_boxes
from workbench.detection.preprocessing import load_rgb, preprocess
from workbench.records.dataset import media_path
from workbench.training import Augmentation, TrainingConfig
from workbench.training.augment import DRAW_COUNT, color_table, random_geometry
from workbench.training.loader import DataLoader, TaskSpec
from workbench.training.targets import Targets

MATERIAL = TaskSpec(CLASSES, SPEC)


def loader(workspace: Workspace, config: TrainingConfig = TINY, count: int = 6) -> DataLoader:
    dataset = scenes(workspace, count)
    return DataLoader(dataset, config, MATERIAL)


def test_a_batch_depends_on_its_step_alone(workspace: Workspace) -> None:
    source = loader(workspace)
    in_order = list(source.batches(0, 5))
    for step in (4, 0, 2):
        again = source.batch(step)
        assert (again.images == in_order[step].images).all()
        for one, other in zip(again.targets, in_order[step].targets, strict=True):
            assert (one.boxes == other.boxes).all()
    assert (in_order[0].images != in_order[2].images).any()
    later = next(source.batches(3, 5))
    assert (later.images == in_order[3].images).all()


def test_every_frame_is_used_in_an_epoch(workspace: Workspace) -> None:
    dataset = scenes(workspace, 6)
    plain = TINY.replace(batch=3, augment=Augmentation.none())
    source = DataLoader(dataset, plain, MATERIAL)
    seen = [image.tobytes() for step in (2, 3) for image in source.batch(step).images]
    expected = [
        preprocess(load_rgb(media_path(workspace, frame)), SPEC)[0].tobytes()
        for frame in dataset.frames
    ]
    assert sorted(seen) == sorted(expected)  # and through the one preprocessing, to the bit
    other_epoch = [image.tobytes() for step in (0, 1) for image in source.batch(step).images]
    assert other_epoch != seen


def test_fewer_frames_than_a_batch(workspace: Workspace) -> None:
    assert loader(workspace, TINY.replace(batch=8), 3).batch(0).images.shape == (8, 3, 64, 96)


def test_batches_are_the_same_beyond_the_memory_limit(workspace: Workspace) -> None:
    size = 96 * 64 * 3
    count = (1 << 20) // size + 1
    dataset = scenes(workspace, count)
    kept = DataLoader(dataset, TINY, MATERIAL)
    decoded = DataLoader(dataset, TINY.replace(memory_mib=1), MATERIAL)
    assert (kept.in_memory, decoded.in_memory) == (True, False)
    assert (kept.batch(1).images == decoded.batch(1).images).all()


@pytest.mark.parametrize("seed", range(12))
def test_boxes_move_with_the_image(seed: int) -> None:
    pixels = np.zeros((64, 96, 3), np.uint8)
    pixels[20:44, 30:66] = 255
    targets = Targets(as_boxes([(30, 20, 66, 44)]), np.array([0]), np.array([False]))
    how = Augmentation(zoom=(0.7, 1.8), shift=0.2, brightness=0, gamma=1, colour=0)
    draws = np.random.default_rng(seed).random(DRAW_COUNT)
    moved, found = random_geometry(pixels, targets, how, 0, draws)
    if not len(found.boxes):
        assert (moved > 127).mean() < 0.02
        return
    rows, columns = np.nonzero(moved[..., 0] > 127)
    seen = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
    assert seen == pytest.approx(found.boxes[0].tolist(), abs=1.01)


def test_color_changes_pixels_only(workspace: Workspace) -> None:
    pixels = np.full((64, 96, 3), 100, np.uint8)
    targets = Targets(as_boxes([(30, 20, 66, 44)]), np.array([0]), np.array([False]))
    how = Augmentation.none().replace(brightness=0.4, gamma=1.5, colour=0.1)
    seen = set()
    for seed in range(8):
        draws = np.random.default_rng(seed).random(DRAW_COUNT)
        moved, found = random_geometry(pixels, targets, how, 0, draws)
        assert (moved == pixels).all()
        assert (found.boxes == targets.boxes).all()
        table = color_table(how, draws)
        assert table is not None
        lit = cv2.LUT(pixels, table[None])
        assert (lit == lit[0, 0]).all()
        seen.add(int(lit[0, 0, 0]))
    assert len(seen) > 5
    assert (pixels == 100).all()  # what is kept in memory stays as it was
