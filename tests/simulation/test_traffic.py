"""Fleets: mixed conditions, rare events, reproducible by seed."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from workbench.core.errors import ParameterError
from workbench.simulation import events, scene, traffic
from workbench.simulation.drives import write_drive
from workbench.simulation.rendering import render_frame
from workbench.simulation.scenario import CLASSES, OBSTACLE, Scenario
from workbench.simulation.traffic import (
    LONG_TAIL_PROFILE,
    STANDARD_PROFILE,
    TINY_PROFILE,
    FleetProfile,
)


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
def test_every_rare_event_occurs_in_less_than_one_percent(seed: int) -> None:
    fleet = traffic.random_fleet(STANDARD_PROFILE, seed)
    frames = sum(scenario.frames for scenario in fleet)
    counts = _event_frames(fleet)
    assert frames == 900
    assert set(counts) == set(events.EVENTS)
    assert all(0 < count < 0.01 * frames for count in counts.values())


def test_large_pools_keep_events_rare_or_have_none() -> None:
    pool = FleetProfile("pool", drives=200, frames_per_drive=30)
    counts = _event_frames(traffic.random_fleet(pool))
    assert all(0.003 < counts[name] / pool.frames < 0.008 for name in events.EVENTS)
    plain = FleetProfile("plain", drives=20, frames_per_drive=10, rare=False)
    assert not _event_frames(traffic.random_fleet(plain))


@pytest.mark.parametrize("seed", [0, 1])
def test_a_long_tail_has_eleven_slices_of_a_sixth_of_a_percent(seed: int) -> None:
    fleet = traffic.random_fleet(LONG_TAIL_PROFILE, seed)
    counts = _event_frames(fleet)
    assert set(counts) == set(events.LONG_TAIL_EVENTS) and len(events.LONG_TAIL_EVENTS) == 11
    assert all(0.001 < count / LONG_TAIL_PROFILE.frames < 0.002 for count in counts.values())
    known = {*CLASSES, OBSTACLE}
    for scenario in fleet:
        tracks = [actor.track for actor in scenario.actors]
        assert len(tracks) == len(set(tracks))
        assert {actor.cls for actor in scenario.actors} <= known


def test_built_in_profiles_have_no_long_tail_events() -> None:
    """Their drives must stay what they were: reports and records were made from their bytes."""
    assert {e.name for s in traffic.random_fleet(STANDARD_PROFILE) for e in s.events} == set(
        events.EVENTS
    )
    same = FleetProfile(
        "standard", drives=60, frames_per_drive=15, events=events.EVENTS, rare_share=0.005
    )
    assert traffic.random_fleet(same) == traffic.random_fleet(STANDARD_PROFILE)


@pytest.mark.parametrize("profile", [STANDARD_PROFILE, TINY_PROFILE])
def test_conditions_and_vehicles_are_mixed(profile: FleetProfile) -> None:
    fleet = traffic.random_fleet(profile)
    assert len({scenario.drive for scenario in fleet}) == profile.drives >= 10
    assert {scenario.light for scenario in fleet} == {"day", "dusk", "night"}
    assert {scenario.weather for scenario in fleet} == {"clear", "rain", "fog"}
    heights = {
        kind: [s.camera.height_m for s in fleet if s.vehicle_type == kind]
        for kind in ("car", "truck")
    }
    assert max(heights["car"]) + 0.8 < min(heights["truck"])


def test_same_seed_same_fleet_other_seed_other_fleet() -> None:
    assert traffic.random_fleet(TINY_PROFILE, 4) == traffic.random_fleet(TINY_PROFILE, 4)
    assert (
        traffic.random_fleet(TINY_PROFILE, 4)[0].actors
        != traffic.random_fleet(TINY_PROFILE, 5)[0].actors
    )


def test_actors_have_known_class_and_shape_and_a_unique_track() -> None:
    for scenario in traffic.random_fleet(STANDARD_PROFILE):
        tracks = [actor.track for actor in scenario.actors]
        assert len(tracks) == len(set(tracks))
        assert {actor.cls for actor in scenario.actors} <= set(CLASSES)
        assert {actor.shape for actor in scenario.actors} <= set(scene.SHAPES)


@pytest.mark.parametrize("event", events.LONG_TAIL_EVENTS)
def test_event_is_visible_in_its_interval(event: str) -> None:
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
        seen += [event in render_frame(scenario, index).events for index in indices]
    assert sum(seen) >= 0.5 * len(seen)


def test_obstacles_are_visible_but_not_labelled(tmp_path: Path) -> None:
    scenario = traffic.random_drive(3, event="debris")
    marked = scenario.events[0]
    index = next(i for i in range(scenario.frames) if scenario.time_s(i) >= marked.start_s)
    frame = render_frame(scenario, index)
    assert [box.cls for box in frame.boxes if box.track == marked.track] == [OBSTACLE]
    cleared = render_frame(replace(scenario, actors=scenario.actors[:-1], events=()), index)
    assert np.abs(frame.image.astype(int) - cleared.image).max() > 40
    (tmp_path / "images").mkdir()
    _, boxes = write_drive(scenario, tmp_path)
    assert boxes[index]
    assert all(box["track"] != marked.track for found in boxes for box in found)


def test_no_actor_collides_with_the_ego_vehicle() -> None:
    for scenario in traffic.random_fleet(STANDARD_PROFILE):
        for index in range(scenario.frames):
            time_s = scenario.time_s(index)
            ego = scenario.ego(time_s)
            for actor in scenario.actors:
                pose = actor.pose(time_s)
                if pose is not None and abs(pose.d_m - ego.d_m) < 1.0:
                    assert not -1.0 < pose.s_m - ego.s_m < 4.0, (scenario.drive, actor.track, index)


def test_unknown_event_and_empty_profile_are_rejected() -> None:
    with pytest.raises(ParameterError, match="animal"):
        traffic.random_drive(0, event="meteor")
    with pytest.raises(ParameterError, match="at least one drive"):
        traffic.random_fleet(FleetProfile("none", drives=0, frames_per_drive=5))
    with pytest.raises(ParameterError, match="too small"):
        traffic.random_fleet(FleetProfile("dot", drives=1, frames_per_drive=1, width=8, height=8))
