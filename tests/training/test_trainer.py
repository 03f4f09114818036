from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.training.scenes import CLASSES, SPEC, TINY, scenes
from workbench.core import digest
from workbench.core.errors import DataError, ParameterError, StepFailed
from workbench.core.workspace import Workspace
from workbench.detection.boxes import UNMATCHED, match_greedy
from workbench.detection.predictor import load_checkpoint
from workbench.detection.preprocessing import Preprocessing, load_rgb
from workbench.records.base import make_ref
from workbench.records.dataset import Dataset, media_path
from workbench.records.frames import ANY_CLASS
from workbench.records.model_types import Checkpoint
from workbench.records.store import Store
from workbench.training import Augmentation, TrainingConfig, TrainingResult, save_checkpoint, train

DATASET = make_ref("dataset", "1" * 64)


def run(dataset: Dataset, config: TrainingConfig = TINY, **more: object) -> TrainingResult:
    return train(dataset, config, classes=CLASSES, preprocessing=SPEC, **more)  # type: ignore[arg-type]


def weights_digest(trained: TrainingResult) -> str:
    from safetensors.torch import save as to_bytes

    return digest.of_bytes(to_bytes(trained.weights))


def test_the_detector_learns_the_scenes(workspace: Workspace) -> None:
    dataset = scenes(workspace, 16)
    config = TINY.replace(steps=140, batch=8, lr=6e-3, ema=0.95, augment=Augmentation(flip=0.5))
    trained = run(dataset, config)
    predictor = trained.predictor()
    right = wrong = 0
    for frame in dataset.frames:
        (found,) = predictor.predict([load_rgb(media_path(workspace, frame))])
        sure = found.above(0.35)
        labels = dataset.labels_by_frame[frame.id]
        truth = torch.tensor([label.box.xyxy for label in labels]).reshape(-1, 4).numpy()
        owner = match_greedy(
            sure.boxes, sure.scores, truth, classes=sure.classes,
            truth_classes=torch.tensor([CLASSES.index(label.cls) for label in labels]).numpy(),
        )  # fmt: skip
        right += int((owner != UNMATCHED).sum())
        wrong += int((owner == UNMATCHED).sum())
    assert right >= 0.8 * len(dataset.labels)
    assert wrong <= 0.2 * len(dataset.labels)
    losses = trained.curves["loss"]
    assert len(losses) == 140
    assert sum(losses[-20:]) < 0.5 * sum(losses[:20])


def test_equal_seeds_give_equal_weights_in_other_processes(workspace: Workspace) -> None:
    script = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from tests.training.test_trainer import *\n"
        "from workbench.core.workspace import find_workspace\n"
        "workspace = find_workspace()\n"
        "print(weights_digest(run(scenes(workspace))))\n"
    )
    tests = str(Path(__file__).resolve().parents[2])
    digests = {
        subprocess.run(
            [sys.executable, "-c", script, tests], capture_output=True, text=True, check=True
        ).stdout.strip()
        for _ in range(2)
    }
    assert digests == {weights_digest(run(scenes(workspace)))}
    assert weights_digest(run(scenes(workspace), TINY.replace(seed=6))) not in digests


class Killed(Exception):
    pass


def test_a_killed_training_resumes_to_the_same_weights(
    workspace: Workspace, tmp_path: Path
) -> None:
    config = TINY.replace(steps=14, keep_minutes=1e-9)
    whole = run(scenes(workspace), config)

    def stop_at_13(done: int, total: int) -> None:
        if done == 13:
            raise Killed

    with pytest.raises(Killed):
        run(scenes(workspace), config, checkpoint_dir=tmp_path, progress=stop_at_13)
    resumed = run(scenes(workspace), config, checkpoint_dir=tmp_path)
    assert resumed.resumed_at == 12
    assert weights_digest(resumed) == weights_digest(whole)
    assert resumed.curves == whole.curves
    # A finished training does nothing again; another training does not use its state.
    assert run(scenes(workspace), config, checkpoint_dir=tmp_path).resumed_at == 14
    other = config.replace(seed=1)
    assert run(scenes(workspace), other, checkpoint_dir=tmp_path).resumed_at == 0


def test_a_damaged_state_costs_time_only(workspace: Workspace, tmp_path: Path) -> None:
    config = TINY.replace(steps=3)
    folder = tmp_path / "state"
    first = run(scenes(workspace), config, checkpoint_dir=folder)
    (state,) = folder.iterdir()  # three steps took less than the least time between two states
    state.write_bytes(state.read_bytes()[:1000])
    again = run(scenes(workspace), config, checkpoint_dir=folder)
    assert again.resumed_at == 0
    assert weights_digest(again) == weights_digest(first)


def test_a_diverged_training_stops_with_the_reason(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(StepFailed, match=r"diverged.*step \d+.*learning rate"):
        run(
            scenes(workspace),
            TINY.replace(steps=40, lr=1e9, clip_norm=1e12, warmup=0.0),
        )


def test_frames_without_any_label_and_ignored_ones_train(workspace: Workspace) -> None:
    dataset = scenes(workspace)
    empty = run(replace(dataset, labels=()), TINY.replace(steps=2))
    assert empty.curves["loss_box"] == [0, 0]
    hidden = [
        label.model_copy(update={"ignore": True, "cls": ANY_CLASS}) for label in dataset.labels
    ]
    ignored = run(replace(dataset, labels=tuple(hidden)), TINY.replace(steps=2))
    assert ignored.curves["loss_box"] == [0, 0]


def test_invalid_data_and_models_are_refused_before_training(workspace: Workspace) -> None:
    dataset = scenes(workspace, 2)
    with pytest.raises(DataError, match="no frames"):
        run(dataset.where(lambda frame: False))
    with pytest.raises(ParameterError, match="multiples of 32"):
        train(dataset, TINY, classes=CLASSES, preprocessing=Preprocessing(width=100))
    small = run(dataset, TINY.replace(steps=1))
    with pytest.raises(ParameterError, match="other classes or another width"):
        run(dataset, TINY.replace(width=0.5), start=small.predictor())


def test_progress_and_curves_are_reported_live(workspace: Workspace) -> None:
    calls: list[tuple[int, int]] = []
    logged: list[tuple[str, int]] = []
    run(
        scenes(workspace, 4),
        TINY.replace(steps=2),
        progress=lambda done, total: calls.append((done, total)),
        log=lambda name, value, step: logged.append((name, step)),
    )
    assert calls == [(1, 2), (2, 2)]
    assert ("train/loss", 0) in logged
    assert ("train/lr", 1) in logged


def test_torch_settings_are_restored(workspace: Workspace) -> None:
    before = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    state = torch.get_rng_state()
    run(scenes(workspace, 2), TINY.replace(steps=1, threads=1))
    assert (torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()) == before
    assert (torch.get_rng_state() == state).all()


def test_a_checkpoint_holds_the_model_and_is_reproducible(
    workspace: Workspace, store: Store
) -> None:
    dataset = scenes(workspace, 4)
    config = TINY.replace(steps=2)
    trained = run(dataset, config)
    ref = save_checkpoint(store, trained, DATASET)
    assert save_checkpoint(store, run(dataset, config), DATASET) == ref
    record = store.get(ref, Checkpoint)
    assert record.classes == CLASSES
    assert record.training["seed"] == TINY.seed
    assert record.conditions["threads"] == 1
    curves = json.loads(store.payload(ref, "curves.json").read_text())
    assert curves == trained.curves
    assert store.side(ref, "speed")["images_per_second"] > 0

    loaded = load_checkpoint(store, ref)
    image = load_rgb(media_path(workspace, dataset.frames[0]))
    mine, kept = trained.predictor().predict([image])[0], loaded.predict([image])[0]
    assert (mine.scores == kept.scores).all()

    further = run(dataset, config.replace(seed=9), start=loaded)
    child = save_checkpoint(store, further, DATASET, parent=ref)
    assert store.get(child, Checkpoint).parent == ref


def test_resuming_after_sigkill_gives_the_same_bits(workspace: Workspace, tmp_path: Path) -> None:
    config = TINY.replace(steps=60, keep_minutes=1e-9)
    script = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from tests.training.test_trainer import *\n"
        "from workbench.core.workspace import find_workspace\n"
        "workspace = find_workspace()\n"
        "config = TINY.replace(steps=60, keep_minutes=1e-9)\n"
        "run(scenes(workspace), config, checkpoint_dir=Path(sys.argv[2]))\n"
    )
    state = tmp_path / "state"
    tests = str(Path(__file__).resolve().parents[2])
    process = subprocess.Popen([sys.executable, "-c", script, tests, str(state)])
    deadline = time.monotonic() + 60
    while len(list(state.glob("*.safetensors"))) < 2:
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    short = run(scenes(workspace), config, checkpoint_dir=state)
    assert 0 < short.resumed_at < 60
    assert weights_digest(short) == weights_digest(run(scenes(workspace), config))
