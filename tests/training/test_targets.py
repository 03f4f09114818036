from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from tests.training.scenes import CLASSES, SPEC, TINY, scenes
from workbench.core.errors import DataError, ParameterError
from workbench.core.workspace import Workspace
from workbench.detection.boxes import as_boxes
from workbench.detection.preprocessing import letterbox_transform
from workbench.records.frames import ANY_CLASS, Box, Label, Origin, Role
from workbench.training import TrainingConfig
from workbench.training.targets import ALL_CLASSES, Targets, check_dataset, frame_targets

FRAME = "0" * 64


def label(cls: str, box: tuple[float, ...], **more: object) -> Label:
    x, y, w, h = box
    where = Box(x=x, y=y, w=w, h=h)
    return Label.model_validate(
        {"frame": FRAME, "cls": cls, "box": where, "origin": Origin.HUMAN, **more}
    )


def test_labels_become_boxes_in_network_pixels() -> None:
    placement = letterbox_transform(192, 128, SPEC)
    labels = [
        label("cyclist", (20, 40, 60, 20)),
        label(ANY_CLASS, (0, 0, 20, 20), ignore=True),
        label("car", (0, 0, 20, 20), ignore=True),
        label("car", (5, 5, 3, 30)),  # 1.5 network pixels wide
        label("animal", (5, 5, 30, 30)),
    ]
    found = frame_targets(labels, CLASSES, placement)
    assert found.boxes[0].tolist() == [10, 20, 40, 30]
    assert found.classes.tolist() == [1, ALL_CLASSES, 0, 0]
    assert found.ignore.tolist() == [False, True, True, True]


def test_boxes_clipped_at_the_edge_are_kept_ignored_or_dropped() -> None:
    three = Targets(as_boxes(np.zeros((3, 4))), np.array([0, 1, 0]), np.zeros(3, bool))
    moved = three.with_boxes(
        np.array([[-5, 0, 15, 10], [-15, 0, 5, 10], [-30, 0, -10, 10]]), (0, 0, 96, 64)
    )
    assert moved.boxes.tolist() == [[0, 0, 15, 10], [0, 0, 5, 10]]
    assert moved.ignore.tolist() == [False, True]
    assert moved.classes.tolist() == [0, 1]


@pytest.mark.parametrize("role", [Role.POOL, Role.VAL, Role.SAFETY, Role.BLIND])
def test_frames_of_other_roles_are_refused(workspace: Workspace, role: Role) -> None:
    with pytest.raises(DataError, match=f"role {role}"):
        check_dataset(scenes(workspace, 2, role=role), CLASSES)


def test_a_models_own_boxes_are_refused(workspace: Workspace) -> None:
    dataset = scenes(workspace, 2)
    own = dataset.labels[0].model_copy(update={"origin": Origin.MODEL, "score": 0.9})
    with pytest.raises(DataError, match="not ground truth"):
        check_dataset(replace(dataset, labels=(own, *dataset.labels[1:])), CLASSES)


def test_no_frames_and_unknown_classes_are_refused(workspace: Workspace) -> None:
    dataset = scenes(workspace, 2)
    with pytest.raises(DataError, match="no frames"):
        check_dataset(dataset.where(lambda frame: False), CLASSES)
    odd = dataset.labels[0].model_copy(update={"cls": "tram"})
    with pytest.raises(DataError, match="tram"):
        check_dataset(replace(dataset, labels=(odd,)), CLASSES)
    check_dataset(dataset, ("car",))  # fewer classes than the schema has are fine


@pytest.mark.parametrize(
    "wrong",
    [{"steps": 0}, {"epochs": 0}, {"lr": -1.0}, {"ema": 1.0}, {"warmup": 1.0}, {"seed": -1},
     {"threads": 0}, {"augment": {"zoom": (2, 1)}}],
)  # fmt: skip
def test_invalid_configurations_name_the_field(wrong: dict[str, object]) -> None:
    with pytest.raises(ParameterError, match=next(iter(wrong))):
        TrainingConfig(**wrong)  # type: ignore[arg-type]


def test_steps_and_rate() -> None:
    config = TrainingConfig(steps=100, batch=16, lr=1.0, warmup=0.2)
    assert config.steps_for(5) == config.steps_for(5000) == 100
    assert config.replace(epochs=3).steps_for(33) == 9
    rates = [config.learning_rate(step, 100) for step in range(100)]
    assert max(rates) == rates[19] == pytest.approx(1.0)
    assert rates[:20] == sorted(rates[:20])
    assert rates[20:] == sorted(rates[20:], reverse=True)
    assert rates[-1] == pytest.approx(0.002)


def test_the_cache_size_is_not_recorded() -> None:
    assert TINY.as_json() == TINY.replace(memory_mib=1).as_json()
    assert TINY.as_json() != TINY.replace(seed=6).as_json()
