"""Fleets: mixed conditions, rare things rare, nothing by chance."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from workbench.errors import ParameterError
from workbench.simulation import rare, shapes, traffic
from workbench.simulation.drives import write_drive
from workbench.simulation.render import render
from workbench.simulation.scenario import CLASSES, OBSTACLE, Scenario
from workbench.simulation.traffic import LONG_TAIL, STANDARD, TINY, Profile


def _event_frames(fleet: tuple[Scenario, ...]) -> Counter[str]:
    """Frames that an event's interval covers: at least as many as are marked with it."""
    return Counter(
        event.name
        for scenario in fleet
        for event in scenario.events
        for index in range(scenario.frames)
        if event.start_s <= scenario.time_s(index) <= event.end_s
    )


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_every_rare_event_is_there_and_under_one_percent(seed: int) -> None:
    fleet = traffic.fleet(STANDARD, seed)
    frames = sum(scenario.frames for scenario in fleet)
    counts = _event_frames(fleet)
    assert frames == 900
    assert set(counts) == set(rare.EVENTS)
    assert all(0 < count < 0.01 * frames for count in counts.values())


def test_large_pools_keep_events_rare_and_can_do_without() -> None:
    pool = Profile("pool", drives=200, frames_per_drive=30)
    counts = _event_frames(traffic.fleet(pool))
    assert all(0.003 < counts[name] / pool.frames < 0.008 for name in rare.EVENTS)
    plain = Profile("plain", drives=20, frames_per_drive=10, rare=False)
    assert not _event_frames(traffic.fleet(plain))


@pytest.mark.parametrize("seed", [0, 1])
def test_a_long_tail_has_eleven_slices_of_a_sixth_of_a_percent(seed: int) -> None:
    fleet = traffic.fleet(LONG_TAIL, seed)
    counts = _event_frames(fleet)
    assert set(counts) == set(rare.LONG_TAIL) and len(rare.LONG_TAIL) == 11
    assert all(0.001 < count / LONG_TAIL.frames < 0.002 for count in counts.values())
    known = {*CLASSES, OBSTACLE}
    for scenario in fleet:
        tracks = [actor.track for actor in scenario.actors]
        assert len(tracks) == len(set(tracks))
        assert {actor.cls for actor in scenario.actors} <= known


def test_built_in_fleets_know_nothing_of_the_longer_tail() -> None:
    """Their drives must stay what they were: reports and records were made from their bytes."""
    assert {e.name for s in traffic.fleet(STANDARD) for e in s.events} == set(rare.EVENTS)
    same = Profile("standard", drives=60, frames_per_drive=15, events=rare.EVENTS, rare_share=0.005)
    assert traffic.fleet(same) == traffic.fleet(STANDARD)


@pytest.mark.parametrize("profile", [STANDARD, TINY])
def test_conditions_and_vehicles_are_mixed(profile: Profile) -> None:
    fleet = traffic.fleet(profile)
    assert len({scenario.drive for scenario in fleet}) == profile.drives >= 10
    assert {scenario.light for scenario in fleet} == {"day", "dusk", "night"}
    assert {scenario.weather for scenario in fleet} == {"clear", "rain", "fog"}
    heights = {
        kind: [s.camera.height_m for s in fleet if s.vehicle_type == kind]
        for kind in ("car", "truck")
    }
    assert max(heights["car"]) + 0.8 < min(heights["truck"])


def test_same_seed_same_fleet_other_seed_other_fleet() -> None:
    assert traffic.fleet(TINY, 4) == traffic.fleet(TINY, 4)
    assert traffic.fleet(TINY, 4)[0].actors != traffic.fleet(TINY, 5)[0].actors


def test_everybody_is_of_a_known_class_and_shape_and_has_one_name() -> None:
    for scenario in traffic.fleet(STANDARD):
        tracks = [actor.track for actor in scenario.actors]
        assert len(tracks) == len(set(tracks))
        assert {actor.cls for actor in scenario.actors} <= set(CLASSES)
        assert {actor.shape for actor in scenario.actors} <= set(shapes.SHAPES)


@pytest.mark.parametrize("event", rare.LONG_TAIL)
def test_an_event_can_be_seen_when_it_says_so(event: str) -> None:
    """Over a few seeds; a truck ahead may well hide one of them."""
    seen = []
    for seed in range(4):
        scenario = traffic.random_drive(seed, event=event)
        marked = scenario.events[0]
        indices = [
            i
            for i in range(scenario.frames)
            if marked.start_s <= scenario.time_s(i) <= marked.end_s
        ]
        seen += [event in render(scenario, index).events for index in indices]
    assert sum(seen) >= 0.5 * len(seen)


def test_what_has_no_class_is_seen_and_has_no_label(tmp_path: Path) -> None:
    scenario = traffic.random_drive(3, event="debris")
    marked = scenario.events[0]
    index = next(i for i in range(scenario.frames) if scenario.time_s(i) >= marked.start_s)
    frame = render(scenario, index)
    assert [box.cls for box in frame.boxes if box.track == marked.track] == [OBSTACLE]
    cleared = render(replace(scenario, actors=scenario.actors[:-1], events=()), index)
    assert np.abs(frame.image.astype(int) - cleared.image).max() > 40
    (tmp_path / "images").mkdir()
    _, boxes = write_drive(scenario, tmp_path)
    assert boxes[index]
    assert all(box["track"] != marked.track for found in boxes for box in found)


def test_nobody_drives_through_the_ego_vehicle() -> None:
    for scenario in traffic.fleet(STANDARD):
        for index in range(scenario.frames):
            time_s = scenario.time_s(index)
            ego = scenario.ego(time_s)
            for actor in scenario.actors:
                pose = actor.pose(time_s)
                if pose is not None and abs(pose.d_m - ego.d_m) < 1.0:
                    assert not -1.0 < pose.s_m - ego.s_m < 4.0, (scenario.drive, actor.track, index)


def test_unknown_event_and_empty_profile_are_refused() -> None:
    with pytest.raises(ParameterError, match="animal"):
        traffic.random_drive(0, event="meteor")
    with pytest.raises(ParameterError, match="at least one drive"):
        traffic.fleet(Profile("none", drives=0, frames_per_drive=5))
    with pytest.raises(ParameterError, match="too small"):
        traffic.fleet(Profile("dot", drives=1, frames_per_drive=1, width=8, height=8))
