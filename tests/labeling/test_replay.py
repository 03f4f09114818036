"""What a replay draws: the known boxes, moved as stated, the same every time."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from tests.labeling.conftest import HEIGHT, SCHEMA, WIDTH, Sample
from workbench.errors import ParameterError
from workbench.labeling.regions import read_result
from workbench.labeling.replay import Noise, _generator, _known, _missing, draw, email_of
from workbench.records.frames import Origin
from workbench.records.types import LabelBatch


def drawn(sample: Sample, noise: Noise, *, seed: int = 1, user: int = 0, flip: bool = False):
    frame = sample.frames[2]
    labels = sample.boxes(frame.id)
    regions = draw(labels[::-1] if flip else labels, frame, noise, _generator(seed, frame.id, user))
    read = read_result(regions, WIDTH, HEIGHT, SCHEMA)
    assert not read.refused
    return [box.box for box in read.drawn]


def test_without_noise_the_known_boxes_come_back(sample: Sample) -> None:
    known = sorted(label.box.xyxy for label in sample.boxes(sample.frames[2].id))
    replayed = sorted(box.xyxy for box in drawn(sample, Noise(px=0, relative=0)))
    np.testing.assert_allclose(replayed, known, atol=1e-6)


def test_noise_repeats_and_differs_by_seed_and_user(sample: Sample) -> None:
    first = drawn(sample, Noise())
    assert first == drawn(sample, Noise(), flip=True)
    assert first != drawn(sample, Noise(), seed=2)
    assert first != drawn(sample, Noise(), user=1)


def test_noise_is_as_large_as_stated(sample: Sample) -> None:
    known = sorted(label.box.x for label in sample.boxes(sample.frames[2].id))
    noise = Noise(px=2, relative=0)
    errors = [
        box - true
        for seed in range(300)
        for box, true in zip(
            sorted(each.x for each in drawn(sample, noise, seed=seed)), known, strict=True
        )
        if true > 8
    ]
    assert np.std(errors) == pytest.approx(2, rel=0.15)


def test_extreme_noise_still_gives_usable_boxes(sample: Sample) -> None:
    for seed in range(50):
        assert len(drawn(sample, Noise(px=500), seed=seed)) == 2


def test_unlabeled_answers_are_a_parameter_error(sample: Sample) -> None:
    batch = sample.store.get(sample.batch(), LabelBatch)
    with pytest.raises(ParameterError, match="has none"):
        _known(batch, replace(sample.dataset, labels=()))
    guessed = tuple(
        label.model_copy(update={"origin": Origin.MODEL}) for label in sample.dataset.labels
    )
    with pytest.raises(ParameterError, match="has none"):
        _known(batch, replace(sample.dataset, labels=guessed))


def test_answers_must_cover_the_batch(sample: Sample) -> None:
    batch = sample.store.get(sample.batch(), LabelBatch)
    last = sample.frames[-1].id
    with pytest.raises(ParameterError, match="1 frames"):
        _known(batch, sample.dataset.where(lambda frame: frame.id != last))


def test_only_missing_answers_are_drawn() -> None:
    frame = "00000001" + "0" * 56
    assert _missing(frame, 1, 2, set()) == [1]
    assert _missing(frame, 2, 2, set()) == [1, 0]
    assert _missing(frame, 2, 2, {email_of(1)}) == [0]
    assert _missing(frame, 1, 2, {"ada@example.org"}) == []
