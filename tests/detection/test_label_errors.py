"""Planted label errors are reported first, with the right kind."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from workbench.detection import label_errors
from workbench.records.dataset import Dataset
from workbench.records.frames import Box, Drive, Frame, Label, LabelSchema, Origin, Role
from workbench.records.types import Prediction

SCHEMA = LabelSchema(name="t", version=1, classes=("car", "truck", "pedestrian"))


def frame(number: int, role: Role = Role.TRAIN) -> Frame:
    name = f"{number:064x}"
    return Frame(id=name, drive="d", index=number, width=640, height=384, suffix=".png", role=role)


def label(number: int, cls: str, box: Box, **more: object) -> Label:
    given = {"frame": f"{number:064x}", "cls": cls, "box": box, "origin": Origin.HUMAN, **more}
    return Label.model_validate(given)


def dataset_of(frames: list[Frame], labels: list[Label]) -> Dataset:
    return Dataset(
        name="t",
        label_schema=SCHEMA,
        drives=(Drive(id="d"),),
        frames=tuple(frames),
        labels=tuple(labels),
    )


@pytest.fixture
def world() -> tuple[list[Frame], list[Label], list[Prediction]]:
    """100 frames of three objects each, and a model that is right but for a little noise."""
    rng = np.random.default_rng(5)
    frames = [frame(number) for number in range(100)]
    labels, predictions = [], []
    for number in range(100):
        for position in range(3):
            cls = SCHEMA.classes[int(rng.integers(3))]
            x, y = 20 + 200 * position + rng.uniform(0, 40), rng.uniform(20, 220)
            w, h = rng.uniform(40, 120), rng.uniform(40, 120)
            labels.append(label(number, cls, Box(x=x, y=y, w=w, h=h)))
            jitter = rng.normal(0, 1, 4)
            seen = Box(x=x + jitter[0], y=y + jitter[1], w=w + jitter[2], h=h + jitter[3])
            score = float(rng.uniform(0.55, 0.95))
            predictions.append(Prediction(frame=frames[number].id, cls=cls, box=seen, score=score))
        if number % 5 == 0:
            ghost = Box(x=rng.uniform(0, 560), y=300, w=40, h=40)
            score = float(rng.uniform(0.1, 0.35))
            predictions.append(
                Prediction(frame=frames[number].id, cls="car", box=ghost, score=score)
            )
    return frames, labels, predictions


def test_clean_labels_give_no_likely_errors(
    world: tuple[list[Frame], list[Label], list[Prediction]],
) -> None:
    frames, labels, predictions = world
    assert not label_errors.find_label_errors(dataset_of(frames, labels), predictions)


def test_planted_errors_come_first_with_their_kind(
    world: tuple[list[Frame], list[Label], list[Prediction]],
) -> None:
    frames, labels, predictions = world
    changed = list(labels)
    planted: dict[tuple[str, str], int] = {}
    for number in range(0, 30, 3):  # boxes nobody drew
        planted[changed[number].frame, "missed"] = number
    for number in range(31, 60, 3):
        wrong = "truck" if changed[number].cls != "truck" else "car"
        changed[number] = changed[number].model_copy(update={"cls": wrong})
        planted[changed[number].frame, "class"] = number
    for number in range(62, 92, 3):
        box = changed[number].box
        moved = box.model_copy(update={"x": box.x + 0.4 * box.w})
        changed[number] = changed[number].model_copy(update={"box": moved})
        planted[changed[number].frame, "placed"] = number
    for number in range(93, 123, 3):
        box = changed[number].box
        twice = changed[number].model_copy(
            update={"box": box.model_copy(update={"x": box.x + 1.5})}
        )
        changed.append(twice)
        planted[changed[number].frame, "twice"] = number
    missing = {planted[key] for key in planted if key[1] == "missed"}
    kept = [one for number, one in enumerate(changed) if number not in missing]
    found = label_errors.find_label_errors(dataset_of(frames, kept), predictions)
    first = {(one.frame, one.kind) for one in found[: len(planted)]}
    assert len(first & planted.keys()) >= 0.95 * len(planted)
    kinds = Counter(kind for _, kind in planted)
    assert {kind for kind, count in kinds.items() if count == 10} == set(kinds)
    assert "without a label" in next(one.why for one in found if one.kind == "missed")
    assert "label says" in next(one.why for one in found if one.kind == "class")


def test_predictions_of_an_unreliable_class_have_low_weight(
    world: tuple[list[Frame], list[Label], list[Prediction]],
) -> None:
    """A score counts as much as it has proved right: sure ghosts of one class rank low."""
    frames, labels, predictions = world
    ghosts = [
        Prediction(frame=one.id, cls="pedestrian", box=Box(x=600, y=4, w=30, h=60), score=0.4)
        for one in frames
    ]
    missed = next(one for one in labels[1:] if one.cls == "car")
    kept = [one for one in labels if one is not missed]
    found = label_errors.find_label_errors(dataset_of(frames, kept), [*predictions, *ghosts])
    assert (found[0].frame, found[0].kind) == (missed.frame, "missed")
    assert not [one for one in found if one.box.x == 600]


def test_pool_frames_and_ignore_regions_are_left_out() -> None:
    box = Box(x=100, y=100, w=80, h=60)
    pool, judged = frame(1, Role.POOL), frame(2)
    region = label(2, "car", Box(x=80, y=80, w=200, h=200), ignore=True)
    sure = [Prediction(frame=one.id, cls="car", box=box, score=0.99) for one in (pool, judged)]
    assert label_errors.find_label_errors(dataset_of([pool, judged], [region]), sure) == []


def test_labels_made_by_a_model_are_left_out() -> None:
    box = Box(x=100, y=100, w=80, h=60)
    frames = [frame(number) for number in range(40)]
    drawn = [label(number, "car", box) for number in range(39)]
    own = label(39, "car", box, origin=Origin.MODEL, score=0.9)
    sure = [Prediction(frame=one.id, cls="car", box=box, score=0.9) for one in frames]
    (error,) = label_errors.find_label_errors(dataset_of(frames, [*drawn, own]), sure)
    assert (error.frame, error.kind) == (frames[39].id, "missed")


def test_without_predictions_only_large_visible_labels_are_reported() -> None:
    large = label(1, "truck", Box(x=10, y=10, w=400, h=300))
    hidden = label(2, "truck", Box(x=10, y=10, w=400, h=300), occluded=0.8)
    small = label(3, "pedestrian", Box(x=10, y=10, w=8, h=16))
    frames = [frame(number) for number in (1, 2, 3)]
    (error,) = label_errors.find_label_errors(dataset_of(frames, [large, hidden, small]), [])
    assert (error.frame, error.kind) == (large.frame, "nothing")
