"""Planted faults of a training and their messages."""

from __future__ import annotations

import multiprocessing
import re
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.training.scenes import CLASSES, SPEC, TINY, scenes
from workbench.core.errors import DataError, ParameterError, StepFailed
from workbench.core.workspace import Workspace
from workbench.records.base import make_ref
from workbench.records.dataset import Dataset, media_path
from workbench.records.frames import Box
from workbench.records.model_types import Checkpoint
from workbench.records.store import Store
from workbench.training import TrainingResult, checkpoint, save_checkpoint, train
from workbench.training.loader import cache_limit_mib
from workbench.training.losses import DetectionLoss

DATASET = make_ref("dataset", "1" * 64)


def run(dataset: Dataset, config: object = TINY, **more: object) -> TrainingResult:
    return train(dataset, config, classes=CLASSES, preprocessing=SPEC, **more)  # type: ignore[arg-type]


def equal(one: TrainingResult, other: TrainingResult) -> bool:
    return all(torch.equal(one.weights[name], other.weights[name]) for name in one.weights)


def test_a_nan_in_the_loss_stops_at_its_step(
    workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = DetectionLoss.__call__, []

    def broken(self: DetectionLoss, *given: object) -> object:
        calls.append(1)
        found = real(self, *given)  # type: ignore[arg-type]
        return replace(found, total=found.total * float("nan")) if len(calls) == 4 else found

    monkeypatch.setattr(DetectionLoss, "__call__", broken)
    config = TINY.replace(keep_minutes=1e-9)
    with pytest.raises(StepFailed, match="the loss is nan at step 3"):
        run(scenes(workspace), config, checkpoint_dir=tmp_path / "state")
    # What is kept is from before it, and no step was taken with it.
    kept = sorted(path.name[9:18] for path in (tmp_path / "state").iterdir())
    assert kept == ["000000002", "000000003"]
    monkeypatch.undo()
    after = run(scenes(workspace), config, checkpoint_dir=tmp_path / "state")
    assert after.resumed_at == 3
    assert equal(after, run(scenes(workspace), config))


def test_a_class_without_labels_is_recorded(workspace: Workspace, store: Store) -> None:
    dataset = scenes(workspace)
    cars = tuple(label for label in dataset.labels if label.cls == "car")
    trained = run(replace(dataset, labels=cars), TINY.replace(steps=1))
    record = store.get(save_checkpoint(store, trained, DATASET), Checkpoint)
    assert record.training["findings"] == [
        "no frame has a label of cyclist: the model cannot learn that"
    ]


@pytest.mark.parametrize("how", ["cut short", "other bytes that decode", "gone"])
def test_an_image_that_breaks_in_epoch_three_stops_there_and_loses_nothing(
    how: str, workspace: Workspace, tmp_path: Path
) -> None:
    dataset = scenes(workspace, 64)
    path = media_path(workspace, dataset.frames[5])
    content, other = path.read_bytes(), media_path(workspace, dataset.frames[6]).read_bytes()
    config = TINY.replace(steps=60, memory_mib=1, batch=4)  # 16 steps an epoch, nothing cached
    whole = run(dataset, config)

    def break_it(done: int, total: int) -> None:
        if done == 32:
            broken = {"cut short": content[:200], "other bytes that decode": other}
            path.unlink() if how == "gone" else path.write_bytes(broken[how])

    with pytest.raises(DataError) as caught:
        run(dataset, config, checkpoint_dir=tmp_path / "state", progress=break_it)
    message = str(caught.value)
    assert "in epoch 3" in message
    assert dataset.frames[5].id[:12] in message
    assert "drive d (number 5)" in message
    path.write_bytes(content)
    repaired = run(dataset, config, checkpoint_dir=tmp_path / "state")
    assert repaired.resumed_at >= 32
    assert equal(repaired, whole)


def _errors_when_memory_is_short(root: Path) -> tuple[str, str, int]:
    dataset = scenes(Workspace(root), 2)
    run(dataset, TINY.replace(steps=1))  # what libraries take at their first use
    # 2,048 frames a step cannot fit into 64 MiB more.
    huge = TINY.replace(batch=2048, steps=1, limit_mib=int(_written_mib()) + 64)
    with pytest.raises(StepFailed) as out_of_memory:
        run(dataset, huge)
    with pytest.raises(ParameterError) as too_low:
        run(dataset, TINY.replace(limit_mib=10))
    return str(out_of_memory.value), str(too_low.value), np.ones(128 << 17).nbytes


def test_running_out_of_memory_names_the_remedy(workspace: Workspace) -> None:
    # In a process of its own: memory that earlier tests gave back would be used first.
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as apart:
        out_of_memory, too_low, after = apart.submit(
            _errors_when_memory_is_short, workspace.root
        ).result()
    assert re.search(r"out of memory of \d+ MiB.*accumulate", out_of_memory, re.DOTALL)
    assert re.search(r"already uses .* MiB", too_low)
    assert after == 128 << 20  # the limit is gone afterwards


def test_little_memory_shrinks_the_cache_not_the_result(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = scenes(workspace)
    whole = run(dataset)
    monkeypatch.setattr("workbench.training.loader._free_mib", lambda: 0.01)
    assert cache_limit_mib(TINY) < 0.01
    assert equal(whole, run(dataset))


@pytest.mark.parametrize("box", [(10, 10, 0, 20), (10, 10, 20, -3)])
def test_a_label_without_area_is_left_out_and_counted(
    box: tuple[float, ...], workspace: Workspace, store: Store
) -> None:
    dataset = scenes(workspace)
    x, y, w, h = box
    flat = dataset.labels[0].model_copy(update={"box": Box(x=x, y=y, w=w, h=h)})
    trained = run(replace(dataset, labels=(*dataset.labels, flat)), TINY.replace(steps=2))
    (warning,) = trained.facts["findings"]
    assert warning.startswith("1 label without area is left out")
    assert equal(trained, run(dataset, TINY.replace(steps=2)))


def test_a_truncated_state_is_never_read_and_the_older_one_is(
    workspace: Workspace, tmp_path: Path
) -> None:
    config = TINY.replace(steps=6, keep_minutes=1e-9)
    whole = run(scenes(workspace), config, checkpoint_dir=tmp_path / "state")
    older, newest = sorted((tmp_path / "state").iterdir())
    content = newest.read_bytes()
    for broken in (content[:-1], content[:100], b"", content[:-5] + bytes(5)):
        newest.write_bytes(broken)
        found = checkpoint.load_state(tmp_path / "state", "")
        assert found is None
        again = run(scenes(workspace), config, checkpoint_dir=tmp_path / "state")
        assert again.resumed_at == 5
        assert equal(again, whole)
        assert older.exists()


def test_a_truncated_checkpoint_is_refused(workspace: Workspace, store: Store) -> None:
    ref = save_checkpoint(store, run(scenes(workspace), TINY.replace(steps=1)), DATASET)
    weights = store.payload(ref, "weights.safetensors")
    content = weights.read_bytes()
    weights.chmod(0o644)
    weights.write_bytes(content[: len(content) // 2])
    from workbench.core.errors import WorkbenchError
    from workbench.detection.predictor import load_checkpoint

    with pytest.raises(WorkbenchError):
        load_checkpoint(store, ref)


def _written_mib() -> float:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmData:"):
            return int(line.split()[1]) / 1024
    raise AssertionError
