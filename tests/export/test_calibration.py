"""Calibration frames: spread over conditions, and never those that a model is judged on."""

from __future__ import annotations

from dataclasses import replace

import pytest

from workbench.core.errors import ParameterError
from workbench.core.workspace import Workspace
from workbench.export import calibration
from workbench.records.dataset import Dataset
from workbench.records.frames import Role


def test_frames_are_spread_over_light_and_weather(dataset: Dataset) -> None:
    picked = calibration.pick_calibration_frames(dataset, 15)
    assert picked.slices == {"day/clear": 6, "day/fog": 3, "night/clear": 6}
    assert len(set(picked.frames)) == 15
    assert picked.available == 41
    assert picked.simulated


def test_all_frames_are_used_when_there_are_not_enough(dataset: Dataset) -> None:
    picked = calibration.pick_calibration_frames(dataset, 1000)
    assert len(picked.frames) == picked.available == sum(picked.slices.values()) == 41


def test_the_choice_depends_on_seed_but_not_on_order(dataset: Dataset) -> None:
    turned = replace(dataset, frames=dataset.frames[::-1])
    assert calibration.pick_calibration_frames(turned, 12) == calibration.pick_calibration_frames(
        dataset, 12
    )
    assert calibration.pick_calibration_frames(
        dataset, 12, seed=1
    ) != calibration.pick_calibration_frames(dataset, 12)


def test_frames_that_models_are_judged_on_are_never_picked(dataset: Dataset) -> None:
    judged = {frame.id for frame in dataset.frames if frame.role in (Role.SAFETY, Role.VAL)}
    assert judged
    assert not judged & set(calibration.pick_calibration_frames(dataset, 1000).frames)
    with pytest.raises(ParameterError, match="role seed or train"):
        only_judged = replace(dataset.role(Role.SAFETY, Role.VAL), ref=dataset.ref)
        calibration.pick_calibration_frames(only_judged, 4)


@pytest.mark.parametrize("role", [Role.VAL, Role.SAFETY, Role.BLIND, Role.POOL, None])
def test_a_calibration_that_names_a_forbidden_frame_is_refused(
    kept: Workspace, dataset: Dataset, role: Role | None
) -> None:
    picked = calibration.pick_calibration_frames(dataset, 4)
    wrong = tuple(
        frame.model_copy(update={"role": role}) if frame.id == picked.frames[2] else frame
        for frame in dataset.frames
    )
    with pytest.raises(ParameterError, match="cannot calibrate"):
        list(calibration.calibration_images(kept, replace(dataset, frames=wrong), picked))


def test_variants_make_up_for_missing_frames(kept: Workspace, dataset: Dataset) -> None:
    few = replace(dataset, frames=dataset.role(Role.TRAIN).frames[:4])
    picked = calibration.pick_calibration_frames(few, 10)
    pixels = list(calibration.calibration_images(kept, few, picked))
    assert (len(picked.frames), picked.variants, len(pixels)) == (4, 6, 10)
    assert pixels[4].mean() == pytest.approx(0.6 * pixels[0].mean(), abs=1)
    assert pixels[8].mean() > pixels[0].mean()
    assert calibration.pick_calibration_frames(few, 4).variants == 0
    assert (
        len(
            list(
                calibration.calibration_images(
                    kept, few, calibration.pick_calibration_frames(few, 500)
                )
            )
        )
        == 24
    )


def test_the_images_are_the_picked_frames(kept: Workspace, dataset: Dataset) -> None:
    pixels = list(
        calibration.calibration_images(
            kept, dataset, calibration.pick_calibration_frames(dataset, 5)
        )
    )
    assert [image.shape for image in pixels] == [(90, 120, 3)] * 5


def test_zero_frames_and_unstored_datasets_are_refused(dataset: Dataset) -> None:
    with pytest.raises(ParameterError, match="0 frames"):
        calibration.pick_calibration_frames(dataset, 0)
    with pytest.raises(ParameterError, match="stored dataset"):
        calibration.pick_calibration_frames(replace(dataset, ref=None), 4)
