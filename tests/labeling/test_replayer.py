"""Replay: known labels with deterministic noise."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from tests.labeling.conftest import HEIGHT, SCHEMA, WIDTH, Sample
from workbench.core.errors import ParameterError
from workbench.labeling.regions import ParsedResult, enclosing_box, parse_result, rotated_corners
from workbench.labeling.replayer import (
    ReplayNoise,
    _known_labels,
    _missing_users,
    _random_generator,
    draw_labels,
    replay_email,
)
from workbench.records.frames import Label, LabelSchema, Origin, Question, RotatedBox
from workbench.records.types import LabelBatch

TURNED = RotatedBox(cx=120.5, cy=70.25, w=60.125, h=20.5, degrees=33.3)
OUTLINE = ((150.5, 20.25), (220.75, 30.5), (180.1, 90.9))


def drawn(sample: Sample, noise: ReplayNoise, *, seed: int = 1, user: int = 0, flip: bool = False):
    frame = sample.frames[2]
    labels = sample.boxes(frame.id)
    regions = draw_labels(
        labels[::-1] if flip else labels,
        frame,
        noise,
        _random_generator(seed, frame.id, user),
        SCHEMA,
    )
    read = parse_result(regions, WIDTH, HEIGHT, SCHEMA)
    assert not read.invalid
    return [box.box for box in read.objects]


def test_without_noise_the_known_boxes_come_back(sample: Sample) -> None:
    known = sorted(label.box.xyxy for label in sample.boxes(sample.frames[2].id))
    replayed = sorted(box.xyxy for box in drawn(sample, ReplayNoise(px=0, relative=0)))
    np.testing.assert_allclose(replayed, known, atol=1e-6)


def test_noise_repeats_and_differs_by_seed_and_user(sample: Sample) -> None:
    first = drawn(sample, ReplayNoise())
    assert first == drawn(sample, ReplayNoise(), flip=True)
    assert first != drawn(sample, ReplayNoise(), seed=2)
    assert first != drawn(sample, ReplayNoise(), user=1)


def test_noise_is_as_large_as_stated(sample: Sample) -> None:
    known = sorted(label.box.x for label in sample.boxes(sample.frames[2].id))
    noise = ReplayNoise(px=2, relative=0)
    errors = [
        box - true
        for seed in range(300)
        for box, true in zip(
            sorted(each.x for each in drawn(sample, noise, seed=seed)), known, strict=True
        )
        if true > 8
    ]
    assert np.std(errors) == pytest.approx(2, rel=0.15)


def test_extreme_noise_gives_valid_boxes(sample: Sample) -> None:
    for seed in range(50):
        assert len(drawn(sample, ReplayNoise(px=500), seed=seed)) == 2


def test_rotated_boxes_and_polygons_keep_their_shape(sample: Sample) -> None:
    frame = sample.frames[0]
    known = [
        shaped(frame.id, turned=TURNED, track="7", attributes={"doors": "open", "odd": "yes"}),
        shaped(frame.id, polygon=OUTLINE),
    ]
    full = SCHEMA.model_copy(
        update={
            "shapes": ("box", "turned", "polygon"),
            "box_questions": (Question(name="doors", answers=("open", "shut")),),
            "tracks": True,
        }
    )

    def replayed(schema: LabelSchema, noise: ReplayNoise, seed: int = 1) -> ParsedResult:
        regions = draw_labels(
            tuple(known), frame, noise, _random_generator(seed, frame.id, 0), schema
        )
        read = parse_result(regions, WIDTH, HEIGHT, schema)
        assert not read.invalid and len(read.objects) == 2
        return read

    exact = replayed(full, ReplayNoise(0, 0)).objects
    turned = next(one for one in exact if one.turned is not None)
    outline = next(one for one in exact if one.polygon is not None)
    assert turned.turned is not None and outline.polygon is not None
    assert turned.turned.model_dump() == pytest.approx(TURNED.model_dump(), abs=1e-6)
    assert (turned.track, turned.attributes) == ("7", {"doors": "open"})
    np.testing.assert_allclose(outline.polygon, OUTLINE, atol=1e-6)

    for seed in range(50):
        moved = replayed(full, ReplayNoise(px=4), seed).objects
        assert {bool(one.turned) for one in moved} == {True, False}
        assert {bool(one.polygon) for one in moved} == {True, False}
    assert all(
        one.turned is None and one.polygon is None and one.track is None
        for one in replayed(SCHEMA, ReplayNoise(0, 0)).objects
    )


def test_a_shape_that_leaves_the_image_is_drawn_upright(sample: Sample) -> None:
    out = TURNED.model_copy(update={"cx": 3.0})
    full = SCHEMA.model_copy(update={"shapes": ("box", "turned")})
    frame = sample.frames[0]
    label = shaped(frame.id, turned=out)
    regions = draw_labels((label,), frame, ReplayNoise(), _random_generator(1, frame.id, 0), full)
    read = parse_result(regions, WIDTH, HEIGHT, full)
    assert not read.invalid and read.objects[0].turned is None


def shaped(frame: str, **about: Any) -> Label:
    points = about.get("polygon") or rotated_corners(about["turned"])
    return Label(frame=frame, cls="car", box=enclosing_box(points), origin=Origin.HUMAN, **about)


def test_unlabeled_answers_are_a_parameter_error(sample: Sample) -> None:
    batch = sample.store.get(sample.batch(), LabelBatch)
    with pytest.raises(ParameterError, match="no ground-truth labels"):
        _known_labels(batch, replace(sample.dataset, labels=()))
    guessed = tuple(
        label.model_copy(update={"origin": Origin.MODEL}) for label in sample.dataset.labels
    )
    with pytest.raises(ParameterError, match="no ground-truth labels"):
        _known_labels(batch, replace(sample.dataset, labels=guessed))


def test_answers_must_cover_the_batch(sample: Sample) -> None:
    batch = sample.store.get(sample.batch(), LabelBatch)
    last = sample.frames[-1].id
    with pytest.raises(ParameterError, match="1 frame of the batch"):
        _known_labels(batch, sample.dataset.where(lambda frame: frame.id != last))


def test_only_missing_answers_are_replayed() -> None:
    frame = "00000001" + "0" * 56
    assert _missing_users(frame, 1, 2, set()) == [1]
    assert _missing_users(frame, 2, 2, set()) == [1, 0]
    assert _missing_users(frame, 2, 2, {replay_email(1)}) == [0]
    assert _missing_users(frame, 1, 2, {"ada@example.org"}) == []
