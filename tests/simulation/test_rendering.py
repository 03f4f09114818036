"""Images and boxes of scenes built by hand."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from workbench.core.errors import ParameterError
from workbench.simulation import lighting, scene, traffic
from workbench.simulation.rendering import RenderedBox, render_frame
from workbench.simulation.scenario import Actor, Camera, Road, Scenario, Waypoint

EMPTY = Scenario(
    drive="built",
    seed=3,
    camera=Camera(height_m=1.5, pitch_deg=0.0),
    road=Road(lanes=2, surroundings="motorway"),
    ego_d_m=-1.75,
)


def _standing(shape: str, cls: str, s: float, d: float, look: int = 5, **more: float) -> Actor:
    return Actor(f"{shape}@{s}", cls, shape, (Waypoint(0.0, s, d),), look=look, **more)


def _boxes(*actors: Actor, **changes: object) -> dict[str, RenderedBox]:
    scenario = replace(EMPTY, actors=actors, **changes)
    return {box.track: box for box in render_frame(scenario, 0).boxes}


@pytest.mark.parametrize(
    ("shape", "cls"), [("sedan", "car"), ("tractor", "truck"), ("adult", "pedestrian")]
)
def test_box_bounds_the_pixels_that_the_body_changed(shape: str, cls: str) -> None:
    """At night headlights make bodies stand out of the dark; shadows and air are next to none."""
    actor = _standing(shape, cls, 14.0, -1.75, look=2)
    night = replace(EMPTY, light="night", road=Road(lanes=2, surroundings="country"))
    empty = render_frame(night, 0).image.astype(int)
    shown = render_frame(replace(night, actors=(actor,)), 0)
    box = shown.boxes[0]
    rows, columns = np.nonzero(np.abs(shown.image.astype(int) - empty).max(2) > 18)
    inside = (rows < box.y + box.h) & (rows > box.y + 0.3 * box.h)
    lit = columns[inside & (columns > box.x - 8) & (columns < box.x + box.w + 8)]
    assert abs(lit.min() - box.x) <= 2.5
    assert abs(lit.max() + 1 - (box.x + box.w)) <= 2.5
    assert abs(rows[rows > box.y - 8].min() - box.y) <= 2.5


def test_sign_half_behind_another_is_half_occluded() -> None:
    """Two equal squares, one twice as far, at the camera's height; the near one's edge on axis."""
    sign = _standing("parking", "traffic_sign", 0.0, 0.0, look=7)
    mesh = scene.body_mesh(sign, sign.pose(0.0), time_s=0.0, lit=False)
    square = mesh.points[mesh.faces[0].start : mesh.faces[0].stop]
    half, height = float(np.abs(square[:, 1]).max()), float(square[:, 2].mean())
    boxes = _boxes(
        replace(sign, track="near", path=(Waypoint(0, 6.0, -1.75 + half),)),
        replace(sign, track="far", path=(Waypoint(0, 12.0, -1.75),)),
        camera=Camera(height_m=height, pitch_deg=0.0),
    )
    assert boxes["near"].occluded == 0
    assert boxes["far"].occluded == pytest.approx(0.5, abs=0.06)
    assert boxes["far"].w == pytest.approx(2 * half * 400 / (12.0 - 0.06), rel=1e-3)
    assert boxes["near"].w == pytest.approx(2 * half * 400 / (6.0 - 0.06), rel=1e-3)


def test_hidden_bodies_have_no_box_and_barely_visible_ones_are_ignored() -> None:
    truck = _standing("box-truck", "truck", 12.0, -1.75)
    boxes = _boxes(truck, _standing("adult", "pedestrian", 25.0, -1.75))
    assert list(boxes) == ["box-truck@12.0"]
    peeking = _boxes(truck, _standing("sedan", "car", 28.0, -6.2))["sedan@28.0"]
    assert 0.3 < peeking.occluded < 1.0
    assert peeking.ignore == (peeking.occluded > 0.75)


def test_boxes_are_clipped_to_the_image_with_their_truncation() -> None:
    box = _boxes(_standing("suv", "car", 7.0, -5.25))["suv@7.0"]
    assert 0.1 < box.truncated < 0.9
    assert box.x + box.w == pytest.approx(480, abs=1.0)
    whole = _boxes(_standing("suv", "car", 20.0, -5.25))["suv@20.0"]
    assert whole.truncated == 0


def test_small_or_fog_covered_boxes_are_ignored() -> None:
    far = _standing("child", "pedestrian", 90.0, 1.0)
    assert all(box.ignore for box in _boxes(far).values())
    car = _standing("box-truck", "truck", 80.0, 0.5)
    assert not _boxes(car)["box-truck@80.0"].ignore
    dense = next(
        seed
        for seed in range(50)
        if lighting.scene_light(replace(EMPTY, weather="fog", seed=seed)).air_per_m > 0.03
    )
    assert _boxes(car, weather="fog", seed=dense)["box-truck@80.0"].ignore


def test_waypoints_give_position_and_speed() -> None:
    path = (Waypoint(0, 30.0, -6.0), Waypoint(2, 30.0, 0.0), Waypoint(4, 38.0, 0.0))
    actor = Actor("walker", "pedestrian", "adult", path)
    pose = actor.pose(1.0)
    assert pose is not None
    assert (pose.s_m, pose.d_m, pose.speed_mps) == pytest.approx((30.0, -3.0, 3.0))
    assert pose.heading_rad == pytest.approx(np.pi / 2)
    later = actor.pose(3.0)
    assert later is not None
    assert (later.s_m, later.speed_mps) == pytest.approx((34.0, 4.0))
    assert actor.pose(4.1) is None


@pytest.mark.parametrize("weather", ["clear", "rain", "fog"])
@pytest.mark.parametrize("hour", ["day", "dusk", "night"])
def test_every_condition_renders_the_same_twice(hour: str, weather: str) -> None:
    scenario = traffic.random_drive(11, light=hour, weather=weather)
    first, second = (
        render_frame(scenario, 4),
        render_frame(traffic.random_drive(11, light=hour, weather=weather), 4),
    )
    assert np.array_equal(first.image, second.image)
    assert first.boxes == second.boxes
    assert first.image.shape == (288, 480, 3)
    assert first.image.dtype == np.uint8


def test_light_and_weather_change_the_image() -> None:
    def picture(hour: str, weather: str) -> np.ndarray:
        return render_frame(replace(EMPTY, light=hour, weather=weather), 0).image.astype(float)

    day, dusk, night = (picture(hour, "clear").mean() for hour in ("day", "dusk", "night"))
    assert day > dusk > night
    assert picture("day", "fog")[110:150].std() < 0.6 * picture("day", "clear")[110:150].std()


def test_every_shape_has_a_mesh_and_others_are_rejected() -> None:
    for shape in scene.SHAPES:
        actor = _standing(shape, "car", 15.0, -1.75)
        assert render_frame(replace(EMPTY, actors=(actor,)), 0).boxes, shape
    with pytest.raises(ParameterError, match="sedan"):
        render_frame(replace(EMPTY, actors=(_standing("ufo", "car", 15.0, -1.75),)), 0)


def test_frame_index_out_of_range_is_rejected() -> None:
    with pytest.raises(ParameterError, match="0 to 29"):
        render_frame(EMPTY, 30)
