"""Bodies in view at a moment, in drawing order, with shadows and lamps."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from workbench.core.errors import ParameterError
from workbench.core.text import did_you_mean
from workbench.simulation import geometry, lighting, people, roadside, vehicles
from workbench.simulation.geometry import (
    FIXED_POINT_BITS,
    NEAR_M,
    Lamp,
    Mesh,
    Stroke,
    mesh_strokes,
    to_fixed_point,
)
from workbench.simulation.lighting import Flare, SceneLight
from workbench.simulation.scenario import Actor, Pose, Scenario

__all__ = ()

_SIGNS = ("limit", "warning", "stop", "parking", "direction")
SHAPES = (
    *vehicles.CAR_SHAPES,
    *("box-truck", "tractor", "bus", "motorcycle", "bicycle", "adult", "child", "deer"),
    *("signal", *_SIGNS, "cone", "load", "ball", "barrier"),
)
_PHASES = 12
_STRIDE_M = {"adult": 1.5, "child": 1.0, "bicycle": 5.0, "deer": 1.6}
_SIGNAL_S = (14.0, 2.0, 12.0)


def body_mesh(  # noqa: PLR0911, PLR0912 - one case per shape
    actor: Actor, pose: Pose, *, time_s: float, lit: bool
) -> Mesh:
    """Mesh of an actor at a moment; equal looks share one mesh.

    Args:
        actor: The actor.
        pose: Its pose; the distance travelled gives the phase of its stride.
        time_s: Gives the state of a traffic light.
        lit: Whether lamps are on.

    Raises:
        ParameterError: The actor's shape is unknown.
    """
    shape, look = actor.shape, actor.look
    match shape:
        case "box-truck" | "tractor":
            return vehicles.truck_mesh(shape, look, lit)
        case "bus":
            return vehicles.bus_mesh(look, lit)
        case "motorcycle":
            return people.motorcycle_mesh(look, lit)
        case "bicycle":
            return people.cyclist_mesh(look, _stride_phase(actor, pose), lit)
        case "adult" | "child":
            moving = pose.speed_mps > 0.05
            return people.walker_mesh(shape, look, _stride_phase(actor, pose), moving)
        case "deer":
            return people.deer_mesh(look, _stride_phase(actor, pose))
        case "signal":
            return roadside.traffic_light_mesh(_signal_state(look, time_s), look % 2 == 0)
        case "cone":
            return roadside.cone_mesh(look % 2 == 0)
        case "load":
            return roadside.lost_load_mesh(look)
        case "ball":
            return roadside.ball_mesh(look)
        case "barrier":
            return roadside.barrier_mesh(lit)
    if shape in vehicles.CAR_SHAPES:
        return vehicles.car_mesh(shape, look, lit)
    if shape in _SIGNS:
        return roadside.sign_mesh(shape, look)
    raise ParameterError(
        f"unknown shape {shape!r}", where=actor.track, hint=did_you_mean(shape, SHAPES)
    )


def support_mesh(actor: Actor) -> Mesh | None:
    """The post below a sign or a traffic light: visible, but not part of its box."""
    if actor.cls == "traffic_light":
        return roadside.post_mesh(2.5)
    if actor.cls == "traffic_sign":
        return roadside.post_mesh(2.2)
    return None


def _stride_phase(actor: Actor, pose: Pose) -> float:
    turns = pose.travelled_m / _STRIDE_M[actor.shape] + (actor.look % 97) / 97
    return int(turns % 1.0 * _PHASES) / _PHASES


def _signal_state(look: int, time_s: float) -> int:
    moment = (time_s + look % 28) % sum(_SIGNAL_S)
    if moment < _SIGNAL_S[0]:
        return 0
    return 2 if moment < _SIGNAL_S[0] + _SIGNAL_S[2] else 1


_FAR_M = 95.0
_GLARE = np.array([0.9])


@dataclass(eq=False)
class VisibleBody:
    """A body in view.

    Attributes:
        actor: None for scenery.
        colours: Of its strokes by number, 0 to 255, after light and air.
        number: Of its pixels in the canvas of owners.
    """

    actor: Actor | None
    mesh: Mesh
    points: NDArray[np.float64]
    strokes: list[Stroke]
    colours: list[list[float]]
    near: float
    far: float
    aside: float
    behind: bool
    number: int = 0

    @property
    def depth(self) -> float:
        return (self.near + self.far) / 2


def _colours(
    mesh: Mesh,
    normals: NDArray[np.float64],
    own: NDArray[np.float32],
    light: SceneLight,
    depth: float,
) -> list[list[float]]:
    facing = np.where(normals.any(1), 0.45 + 0.55 * np.abs(normals[:, 0]), 1.0)
    falling = light.shade(normals) + np.outer(facing, own)
    glow = mesh.glow[:, None]
    lit = mesh.colours * (falling * (1 - glow) + glow)
    air = lighting.attenuate(light, depth, mesh.glow)[:, None]
    mixed: list[list[float]] = np.clip(255 * (lit + (light.air - lit) * air), 0, 255).tolist()
    return mixed


def visible_bodies(scenario: Scenario, time_s: float, light: SceneLight) -> list[VisibleBody]:
    """Everything in view in drawing order, farthest first."""
    ego = scenario.ego(time_s)
    bodies = []
    for actor, mesh, pose, behind in _all_bodies(scenario, time_s, ego, light):
        if not -15.0 < pose.s_m - ego.s_m < _FAR_M:
            continue
        body = _posed(scenario, light, ego, actor, mesh, pose, behind)
        if body is not None:
            bodies.append(body)
    ordered = _by_depth(bodies)
    boxed = [body for body in ordered if body.actor is not None]
    for number, body in enumerate(boxed[-255:], start=1):
        body.number = number
    return [body for body in ordered if body.actor is None or body.number]


def _all_bodies(
    scenario: Scenario, time_s: float, ego: Pose, light: SceneLight
) -> Iterator[tuple[Actor | None, Mesh, Pose, bool]]:
    for prop in roadside.roadside_props(scenario, ego.s_m, light.lit):
        yield None, prop.mesh, prop.pose, prop.behind
    for actor in scenario.actors:
        pose = actor.pose(time_s)
        if pose is None or not -15.0 < pose.s_m - ego.s_m < _FAR_M:
            continue
        support = support_mesh(actor)
        if support is not None:
            yield None, support, pose, False
        yield actor, body_mesh(actor, pose, time_s=time_s, lit=light.lit), pose, False


def _posed(
    scenario: Scenario,
    light: SceneLight,
    ego: Pose,
    actor: Actor | None,
    mesh: Mesh,
    pose: Pose,
    behind: bool,
) -> VisibleBody | None:
    transform = geometry.body_transform(scenario.road, ego, pose)
    points = transform.points(mesh.points)
    depth = geometry.depths(scenario.camera, points)
    near, far = float(depth.min()), float(depth.max())
    if far < NEAR_M or (behind and far < 3.0) or not _in_view(scenario, points, depth):
        return None
    normals = transform.directions(mesh.normals)
    centres = transform.points(mesh.centres)
    drawn = mesh_strokes(mesh, points, normals, centres, scenario.camera)
    if not drawn:
        return None
    middle = points.mean(0).astype(np.float32)
    own = lighting.headlights_and_lamps(
        light, middle[0:1], middle[1:2], np.array([pose.s_m], np.float32)
    )[0]
    colours = _colours(mesh, normals, own, light, (near + far) / 2)
    return VisibleBody(
        actor, mesh, points, drawn, colours, near, far, abs(float(middle[1])), behind
    )


def _in_view(scenario: Scenario, points: NDArray[np.float64], depth: NDArray[np.float64]) -> bool:
    """Whether a part may be inside the image, with a margin of a body's width."""
    camera = scenario.camera
    reach = np.maximum(depth, NEAR_M) * (0.55 * camera.width / camera.fx) + 2.0
    return bool((np.abs(points[:, 1]) < reach).any()) or bool(
        points[:, 1].min() < 0 < points[:, 1].max()
    )


def _by_depth(bodies: Sequence[VisibleBody]) -> list[VisibleBody]:
    """Far to near; of two bodies at overlapping distances the one farther aside is behind."""
    ordered = sorted(bodies, key=lambda body: (not body.behind, -body.depth))
    for _ in range(3):
        for k in range(len(ordered) - 1):
            first, second = ordered[k], ordered[k + 1]
            beside = first.near < second.far and second.near < first.far
            if beside and first.behind == second.behind and first.aside < second.aside - 0.8:
                ordered[k], ordered[k + 1] = second, first
    return ordered


def cast_shadows(
    image: NDArray[np.uint8], drawn: Sequence[VisibleBody], scenario: Scenario, light: SceneLight
) -> None:
    """Darken the ground below bodies and in their shadow."""
    mask = np.zeros(image.shape[:2], np.uint8)
    for body in drawn:
        length, width = body.mesh.footprint
        if length == 0 or body.far > 70 or body.behind:
            continue
        polygon = _shadow_outline(body, scenario, light, (length, width))
        if polygon is not None:
            cv2.fillConvexPoly(mask, polygon, 255, cv2.LINE_8, FIXED_POINT_BITS)
    top = int(geometry.horizon_row(scenario.camera)) + 1
    if not mask.any() or top >= len(mask):
        return
    soft = cv2.GaussianBlur(mask[top:], (0, 0), 1.5 * scenario.camera.width / 480)
    keep = 255 - cv2.convertScaleAbs(soft, alpha=max(light.shadow, 0.35))
    image[top:] = cv2.multiply(image[top:], cv2.merge((keep, keep, keep)), scale=1 / 255)


def _shadow_outline(
    body: VisibleBody, scenario: Scenario, light: SceneLight, size: tuple[float, float]
) -> NDArray[np.int32] | None:
    """Outline of a shadow on the ground, in OpenCV's fixed-point format."""
    on_ground = body.points[:, :2]
    middle = (on_ground.min(0) + on_ground.max(0)) / 2
    spread = (on_ground.max(0) - on_ground.min(0)) / 2
    half = np.array(size) / 2 if body.actor is None else np.maximum(spread, 0.2)
    turns = np.linspace(0, 2 * np.pi, 10, endpoint=False)
    base = middle + np.stack((np.cos(turns), np.sin(turns)), 1) * half * 1.08
    outline = base
    if light.shadow > 0.5:
        height = float(body.points[:, 2].max()) * 0.8
        x, y, z = light.sun_way
        outline = np.concatenate((base, base - np.array([x, y]) * height / max(z, 0.35)))
    ground = np.concatenate((outline, np.zeros((len(outline), 1))), 1)
    if geometry.depths(scenario.camera, ground).min() < NEAR_M:
        return None
    pixels = geometry.project(scenario.camera, ground)[0]
    hull = cv2.convexHull(pixels.astype(np.float32))[:, 0]
    return to_fixed_point(np.asarray(hull, np.float64))


def lamp_flares(
    drawn: Sequence[VisibleBody], owners: NDArray[np.uint8], scenario: Scenario, light: SceneLight
) -> list[Flare]:
    """Glare of the lamps that are not occluded."""
    if not light.lit:
        return []
    camera, result = scenario.camera, []
    height, width = owners.shape
    dark = 1.0 if light.headlights > 0.5 else 0.55 if light.headlights else 0.3
    for body in drawn:
        for lamp in body.mesh.lamps:
            at = body.points[lamp.at]
            depth = float(geometry.depths(camera, at[None])[0])
            if depth < 2.0 or not _lamp_faces_camera(body, lamp):
                continue
            (u, v), foot = geometry.project(camera, np.array([at, [at[0], at[1], 0.0]]))[0]
            if not (0 <= u < width and 0 <= v < height):
                continue
            if int(owners[int(v), int(u)]) not in (body.number, 0):
                continue
            haze = float(1.0 - lighting.attenuate(light, depth, _GLARE)[0])
            radius = camera.fx * lamp.power * (0.5 + 0.017 * depth) / depth
            radius = min(max(radius, 2.5 * lamp.power + 1.0), 0.09 * width)
            strength = min(1.0, dark * lamp.power) * haze
            result.append(Flare(u, v, lamp.colour, radius, strength, float(foot[1])))
    return result


def _lamp_faces_camera(body: VisibleBody, lamp: Lamp) -> bool:
    """Whether the side of a body with the lamp is visible."""
    if lamp.facing == 0:
        return True
    reach = body.points[:, 0]
    return float(body.points[lamp.at, 0]) < float(reach.min() + reach.max()) / 2
