"""Sampling, augmentation, precision, accumulation, label trust, validation, replay."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.training.scenes import CLASSES, SPEC, TINY, scenes
from workbench.core.errors import ParameterError
from workbench.core.workspace import Workspace
from workbench.detection.boxes import as_boxes
from workbench.detection.predictor import TorchPredictor
from workbench.records.dataset import Dataset
from workbench.records.frames import Conditions, Light, Origin
from workbench.training import (
    Augmentation,
    EarlyStopping,
    LabelTrust,
    Sampling,
    TrainingConfig,
    TrainingResult,
    Validation,
    train,
)
from workbench.training.augment import corrupt, mosaic
from workbench.training.early_stopping import ValidationHistory
from workbench.training.loader import (
    DataLoader,
    TaskSpec,
    repeat_factors,
    sample_order,
    sampling_weights,
)
from workbench.training.losses import DetectionLoss, pad_targets
from workbench.training.targets import Targets, label_weighting

STEPS = {"steps": 6, "batch": 4}


class Killed(Exception):
    pass


def run(dataset: Dataset, config: TrainingConfig, **more: object) -> TrainingResult:
    return train(dataset, config, classes=CLASSES, preprocessing=SPEC, **more)  # type: ignore[arg-type]


def equal(one: TrainingResult, other: TrainingResult) -> bool:
    return all(torch.equal(one.weights[name], other.weights[name]) for name in one.weights)


def by_night(dataset: Dataset, *numbers: int) -> Dataset:
    dark = Conditions(light=Light.NIGHT)
    frames = tuple(
        frame.model_copy(update={"conditions": dark}) if frame.index in numbers else frame
        for frame in dataset.frames
    )
    return replace(dataset, frames=frames)


EVERYTHING = TINY.replace(
    steps=9,
    batch=4,
    accumulate=2,
    precision="bfloat16",
    schedule="cosine",
    augment=Augmentation.driving(),
    sampling=Sampling(classes=0.5, slices=0.5),
    trust=LabelTrust(replayed=0.5),
    keep_minutes=1e-9,
)


@pytest.mark.parametrize("at", [1, 4, 5, 8])
def test_resuming_after_a_kill_at_any_step_gives_the_same_bits_with_all_options_on(
    at: int, workspace: Workspace, tmp_path: Path
) -> None:
    """Steps 1, 5 and 8 are inside an epoch of three steps."""
    dataset = by_night(scenes(workspace, 12), 2)
    whole = run(dataset, EVERYTHING)

    def stop(done: int, total: int) -> None:
        if done == at + 1:
            raise Killed

    state = tmp_path / "state"
    with pytest.raises(Killed):
        run(dataset, EVERYTHING, checkpoint_dir=state, progress=stop)
    resumed = run(dataset, EVERYTHING, checkpoint_dir=state)
    assert resumed.resumed_at == at
    assert equal(resumed, whole)
    assert resumed.curves == whole.curves


def test_gradient_accumulation_is_close_to_the_whole_step(workspace: Workspace) -> None:
    """Not to the bit: batch norm sees smaller parts. But it is the same step."""
    dataset = scenes(workspace)
    plain = TINY.replace(**STEPS, augment=Augmentation.none())
    whole, parts = (
        run(dataset, plain),
        run(dataset, plain.replace(accumulate=2)),
    )
    assert len(parts.curves["loss"]) == 6
    assert parts.curves["loss"][0] == pytest.approx(whole.curves["loss"][0], rel=0.3)
    assert not equal(whole, parts)
    with pytest.raises(ParameterError, match="multiple of accumulate"):
        plain.replace(accumulate=3)


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_mixed_precision_learns_and_keeps_float32_weights(
    precision: str, workspace: Workspace
) -> None:
    # float16 is slow on a CPU: it shows that it runs and that its gradients are scaled.
    size = {"steps": 30, "batch": 8, "lr": 6e-3} if precision == "bfloat16" else {"steps": 3}
    trained = run(scenes(workspace), TINY.replace(precision=precision, **size))  # type: ignore[arg-type]
    assert {w.dtype for w in trained.weights.values()} == {torch.float32, torch.int64}
    losses = trained.curves["loss"]
    assert np.isfinite(losses).all()
    if precision == "bfloat16":
        assert np.mean(losses[-5:]) < 0.8 * np.mean(losses[:5])
    assert trained.config.as_json()["precision"] == precision


def test_rare_classes_and_slices_are_repeated_and_recorded(workspace: Workspace) -> None:
    dataset = by_night(scenes(workspace, 20), 4)
    how = Sampling(slices=1.0, rare=0.2, cap=8)
    assert repeat_factors(dataset, CLASSES, how) == {"light=night": 4.0}
    weights = sampling_weights(dataset, CLASSES, how)
    assert weights is not None
    seen = np.bincount(sample_order(20, 20 * 50, weights, 0, 0), minlength=20)
    assert seen[4] / seen[3] == pytest.approx(4, rel=0.05)
    # An epoch keeps its length and always contains the frames of largest weight.
    one = sample_order(20, 20, weights, 3, 1)
    assert len(one) == 20
    assert 3 <= (one == 4).sum() <= 4
    config = TINY.replace(steps=2, sampling=how)
    trained = run(dataset, config)
    assert trained.facts["repeated"] == {"light=night": 4.0}
    assert "sampling" in config.as_json()
    rare = Sampling(
        slices=1.0, rare=0.2, definitions={"dark": {"environment.illumination": "night"}}
    )
    assert repeat_factors(dataset, CLASSES, rare) == {"dark": 4.0}
    with pytest.raises(ParameterError, match=r"unknown key 'environment\.light'"):
        repeat_factors(
            dataset, CLASSES, Sampling(slices=1, definitions={"x": {"environment.light": "night"}})
        )
    rare_class = Sampling(classes=0.5, rare=1.0)
    assert any(name.startswith("class=") for name in repeat_factors(dataset, CLASSES, rare_class))


def test_replay_mixes_old_frames_with_mined_ones(workspace: Workspace) -> None:
    dataset = scenes(workspace, 20)
    fresh = {frame.id for frame in dataset.frames[:4]}
    weights = sampling_weights(dataset, CLASSES, Sampling(), fresh=fresh, replay=0.25)
    assert weights is not None
    assert weights[:4].sum() == pytest.approx(0.75)
    picked = sample_order(20, 2000, weights, 0, 0)
    assert (picked >= 4).mean() == pytest.approx(0.25, abs=0.01)
    with pytest.raises(ParameterError, match="0 new"):
        sampling_weights(dataset, CLASSES, Sampling(), replay=0.25)
    config = TINY.replace(steps=2, replay=0.25)
    assert run(dataset, config, fresh=fresh).facts["fresh"] == 4


@pytest.mark.parametrize("kind", ["fog", "rain", "night", "noise", "blur"])
def test_each_corruption_changes_the_image_and_is_reproducible(kind: str) -> None:
    pixels = np.random.default_rng(0).integers(40, 220, (64, 96, 3)).astype(np.uint8)
    before = pixels.copy()
    how = Augmentation.none().replace(**{kind: 1.0})
    first, again, other = (corrupt(pixels, how, np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert (first == again).all()
    assert (first != other).any()
    assert (pixels == before).all()
    assert (first.dtype, first.shape) == (np.uint8, pixels.shape)
    if kind == "night":
        assert first.mean() < 0.7 * pixels.mean()
    if kind == "fog":  # far away, at the horizon, is greyer than near
        assert first[26].std() < 0.8 * first[60].std()
    if kind == "blur":
        assert first.std() < pixels.std()
    rare = how.replace(**{kind: 0.3})
    changed = [
        (corrupt(pixels, rare, np.random.default_rng(seed)) != pixels).any() for seed in range(60)
    ]
    assert 0.1 < np.mean(changed) < 0.55


@pytest.mark.parametrize("seed", range(8))
def test_a_mosaic_moves_every_box_with_its_image(seed: int) -> None:
    frames, colours = [], [(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0)]
    for colour in colours:
        pixels = np.zeros((64, 96, 3), np.uint8)
        pixels[20:44, 30:66] = colour
        boxes = as_boxes([(30, 20, 66, 44)])
        frames.append((pixels, Targets(boxes, np.array([0]), np.array([False]))))
    picture, found = mosaic(frames, 0, np.random.default_rng(seed))
    assert picture.shape == (64, 96, 3)
    shown = 0
    for colour in colours:
        rows, columns = np.nonzero(((picture > 127) == (np.array(colour) > 127)).all(axis=2))
        if len(rows) < 30:
            continue
        seen = np.array([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])
        assert min(np.abs(found.boxes - seen).max(axis=1)) < 1.01
        shown += 1
    assert shown >= 2


def test_label_trust_scales_the_loss(workspace: Workspace) -> None:
    dataset = scenes(workspace)
    trust = label_weighting(LabelTrust(replayed=0.25, disputed=0.5), {dataset.frames[0].id})
    assert trust is not None
    label = dataset.labels[0]
    assert trust(label) == 0.5
    replayed = label.model_copy(update={"origin": Origin.REPLAYED, "frame": dataset.frames[1].id})
    assert trust(replayed) == 0.25
    assert label_weighting(LabelTrust(), ()) is None

    material = TaskSpec(CLASSES, SPEC)
    loader = DataLoader(dataset, TINY, material)
    (found,) = [t for t in loader.targets() if len(t.boxes)][:1]
    model_out = [
        torch.full((1, c, SPEC.height // s, SPEC.width // s), v, requires_grad=True)
        for s in (8, 16, 32)
        for c, v in ((2, -3.0), (4, 1.0))
    ]
    from workbench.detection.config import DetectorConfig

    loss = DetectionLoss(DetectorConfig(classes=CLASSES))
    full = loss(model_out, pad_targets([found])).box
    half = replace(found, weights=np.full(len(found.boxes), 0.5, np.float32))
    assert float(loss(model_out, pad_targets([half])).box) == pytest.approx(float(full) / 2)


def planted(values: list[float]) -> Validation:
    """Metrics in this order, whatever the model."""
    left = list(values)

    def evaluate(predictor: TorchPredictor) -> Mapping[str, float]:
        value = left.pop(0)
        return {"all": value, "light=night": 1 - value}

    return Validation(evaluate, "planted")


def test_early_stopping_returns_the_best_weights(workspace: Workspace, tmp_path: Path) -> None:
    dataset = scenes(workspace)
    config = TINY.replace(steps=20, stopping=EarlyStopping(every=2, patience=2))
    values = [0.1, 0.5, 0.4, 0.5, 0.9]
    trained = run(dataset, config, validation=planted(values), checkpoint_dir=tmp_path / "state")
    assert len(trained.curves["loss"]) == 8
    assert trained.facts["ended"]["why"] == "stop"
    assert [look["step"] for look in trained.facts["watched"]] == [2, 4, 6, 8]
    upto_four: list[TorchPredictor] = []

    def keep(predictor: TorchPredictor) -> Mapping[str, float]:
        upto_four.append(predictor)
        return {"all": values[len(upto_four) - 1]}

    run(dataset, config, validation=Validation(keep, "again"))
    best = upto_four[1].detector.state_dict()
    assert all(torch.equal(trained.weights[name], best[name]) for name in best)
    # A stopped training is not continued.
    again = run(dataset, config, validation=planted([]), checkpoint_dir=tmp_path / "state")
    assert again.resumed_at == 8
    assert equal(again, trained)
    with pytest.raises(ParameterError, match="unknown validation metric"):
        bad = config.replace(stopping=EarlyStopping(every=2, patience=2, figure="snow"))
        run(dataset, bad, validation=planted(values))


def test_fine_tuning_stops_when_a_slice_regresses(workspace: Workspace) -> None:
    dataset = scenes(workspace)
    base = run(dataset, TINY.replace(steps=2))
    config = TINY.replace(steps=20, seed=9, stopping=EarlyStopping(every=2, forget=0.1))
    # "all" improves each time, and night drops by the same amount.
    trained = run(
        dataset,
        config,
        start=base.predictor(),
        validation=planted([0.5, 0.55, 0.58, 0.7]),
    )
    ended = trained.facts["ended"]
    assert ended["why"] == "forgot"
    assert ended["forgot"] == {"light=night": pytest.approx(0.2)}
    assert len(trained.curves["loss"]) == 6
    assert trained.facts["changed"]["light=night"] == [0.5, pytest.approx(0.3)]
    upto = run(
        dataset,
        config,
        start=base.predictor(),
        validation=planted([0.5, 0.55, 0.58, 0.58] * 9),
    )
    assert not equal(trained, upto)
    history = ValidationHistory(EarlyStopping(every=1, forget=0.1))
    history.add(0, {"all": 0.5, "old": 0.5})
    history.add(1, {"all": 0.6, "old": 0.45})
    assert history.changes() == {"all": [0.5, 0.6], "old": [0.5, 0.45]}


def test_schedules_rise_and_fall() -> None:
    for schedule in ("one-cycle", "cosine"):
        config = TrainingConfig(schedule=schedule)  # type: ignore[arg-type]
        rates = [config.learning_rate(step, 100) for step in range(100)]
        top = int(np.argmax(rates))
        assert max(rates) == pytest.approx(config.lr, rel=0.01)
        assert 8 <= top <= 11
        assert rates[0] < 0.2 * config.lr
        assert rates[-1] < 0.02 * config.lr


def test_unused_settings_are_not_recorded() -> None:
    assert set(TrainingConfig().as_json()) == {
        "steps", "epochs", "batch", "lr", "weight_decay", "warmup", "ema", "clip_norm", "width",
        "seed", "threads", "augment",
    }  # fmt: skip
    assert set(TrainingConfig().as_json()["augment"]) == {
        "flip", "zoom", "shift", "brightness", "gamma", "colour",
    }  # fmt: skip
    assert TrainingConfig(keep_minutes=1, limit_mib=9000).as_json() == TrainingConfig().as_json()
    assert TrainingConfig(trust=LabelTrust(replayed=0.5)).as_json()["trust"]["replayed"] == 0.5
