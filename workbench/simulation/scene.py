"""Bodies in view at a moment: drawing order, shadows, lamps, and the meshes of people and deer."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np
from numpy.typing import NDArray

from workbench.core.errors import ParameterError
from workbench.core.text import did_you_mean
from workbench.simulation import geometry, lighting, roadside, vehicles
from workbench.simulation.geometry import (
    FIXED_POINT_BITS,
    NEAR_M,
    Colour,
    Lamp,
    Mesh,
    MeshBuilder,
    Stroke,
    mesh_strokes,
    to_fixed_point,
)
from workbench.simulation.lighting import Flare, SceneLight
from workbench.simulation.scenario import Actor, Pose, Scenario

__all__ = ()


_Point = tuple[float, float, float]

_SKINS: tuple[Colour, ...] = ((0.87, 0.68, 0.55), (0.72, 0.52, 0.38), (0.48, 0.33, 0.24))
_HAIRS: tuple[Colour, ...] = ((0.12, 0.09, 0.08), (0.35, 0.22, 0.12), (0.62, 0.5, 0.3))
_COATS: tuple[Colour, ...] = (
    (0.70, 0.16, 0.16),
    (0.16, 0.28, 0.55),
    (0.14, 0.14, 0.16),
    (0.86, 0.86, 0.84),
    (0.85, 0.66, 0.18),
    (0.24, 0.42, 0.28),
    (0.52, 0.36, 0.55),
    (0.45, 0.40, 0.34),
)
_TROUSERS: tuple[Colour, ...] = (
    (0.14, 0.17, 0.28),
    (0.10, 0.10, 0.11),
    (0.34, 0.32, 0.29),
    (0.24, 0.30, 0.42),
)
_TYRE: Colour = (0.06, 0.06, 0.065)
_METAL: Colour = (0.5, 0.52, 0.55)


def _pick_colour(rng: np.random.Generator, colours: tuple[Colour, ...]) -> Colour:
    return colours[int(rng.integers(len(colours)))]


def _scaled_point(point: _Point, size: float) -> _Point:
    return (point[0] * size, point[1] * size, point[2] * size)


@lru_cache(maxsize=4096)
def _walker_mesh(shape: str, look: int, phase: float, moving: bool) -> Mesh:
    """An adult or a child, scaled from an adult of 1.75 m."""
    rng = np.random.default_rng(look)
    size = float(rng.uniform(0.62, 0.74) if shape == "child" else rng.uniform(0.92, 1.07))
    skin, hair = _pick_colour(rng, _SKINS), _pick_colour(rng, _HAIRS)
    coat, trousers = _pick_colour(rng, _COATS), _pick_colour(rng, _TROUSERS)
    swing = 0.36 * math.sin(2 * math.pi * phase) if moving else 0.04
    builder = MeshBuilder()

    def limb(a: _Point, b: _Point, radius: tuple[float, float], colour: Colour) -> None:
        ends = (radius[0] * size, radius[1] * size)
        builder.limb(_scaled_point(a, size), _scaled_point(b, size), ends, colour)

    for side, reach in ((0.09, swing), (-0.09, -swing)):
        knee: _Point = (reach * 0.55 + 0.04, side, 0.5)
        foot: _Point = (reach - (0.12 if reach < 0 else 0.0), side, 0.09 + max(0.0, -reach) * 0.25)
        limb((0.0, side, 0.9), knee, (0.095, 0.075), trousers)
        limb(knee, foot, (0.072, 0.055), trousers)
        limb(foot, (foot[0] + 0.14, side, max(foot[2] - 0.04, 0.045)), (0.05, 0.045), _TYRE)
    for side in (-0.11, 0.0, 0.11):
        limb((0.0, side * 0.85, 0.92), (0.0, side, 1.36), (0.115, 0.12), coat)
    for side, reach in ((0.25, -swing), (-0.25, swing)):
        elbow: _Point = (reach * 0.45 - 0.02, side, 1.12)
        hand: _Point = (reach * 0.85 + 0.08, side * 0.96, 0.9)
        limb((0.0, side * 0.88, 1.38), elbow, (0.06, 0.052), coat)
        limb(elbow, hand, (0.05, 0.04), coat)
        limb(hand, hand, (0.045, 0.045), skin)
    if rng.random() < 0.35:
        bag = _pick_colour(rng, _COATS)
        limb((-0.2, 0.0, 1.05), (-0.2, 0.0, 1.3), (0.14, 0.12), bag)
    limb((0.0, 0.0, 1.45), (0.01, 0.0, 1.55), (0.06, 0.06), skin)
    limb((0.02, 0.0, 1.62), (0.02, 0.0, 1.64), (0.105, 0.105), skin)
    limb((-0.02, 0.0, 1.66), (-0.02, 0.0, 1.67), (0.11, 0.105), hair)
    return builder.build((0.45 * size, 0.5 * size))


def _tyre_ring(builder: MeshBuilder, x: float, radius: float, thick: float) -> None:
    """A wheel standing in the direction of travel: a flat ring, and a bar for its edge-on view."""
    turns = np.linspace(0, 2 * math.pi, 17)
    outer = [(x + radius * math.cos(t), 0.0, radius + radius * math.sin(t)) for t in turns]
    small = radius - thick
    inner = [(x + small * math.cos(t), 0.0, radius + small * math.sin(t)) for t in turns[::-1]]
    builder.face([*outer, *inner], _TYRE, two_sided=True)
    builder.limb((x, 0.0, thick), (x, 0.0, 2 * radius - thick), thick * 0.55, _TYRE)


@lru_cache(maxsize=2048)
def _cyclist_mesh(look: int, phase: float, lit: bool) -> Mesh:
    """A bicycle and its rider."""
    rng = np.random.default_rng(look)
    size = float(rng.uniform(0.94, 1.06))
    coat, trousers = _pick_colour(rng, _COATS), _pick_colour(rng, _TROUSERS)
    frame = _pick_colour(rng, _COATS)
    builder = MeshBuilder()
    wheel = 0.34
    _tyre_ring(builder, -0.52, wheel, 0.06)
    _tyre_ring(builder, 0.54, wheel, 0.06)
    hub, seat, bars = (-0.05, 0.0, 0.3), (-0.2, 0.0, 0.9), (0.4, 0.0, 0.95)
    for a, b in (
        ((-0.52, 0.0, wheel), hub),
        ((-0.52, 0.0, wheel), (-0.17, 0.0, 0.75)),
        (hub, seat),
        (hub, (0.38, 0.0, 0.78)),
        ((-0.17, 0.0, 0.75), (0.38, 0.0, 0.8)),
        ((0.54, 0.0, wheel), bars),
        ((0.42, -0.25, 0.98), (0.42, 0.25, 0.98)),
    ):
        builder.limb(a, b, 0.022, frame)
    turn = 2 * math.pi * phase
    for side, angle in ((0.1, turn), (-0.1, turn + math.pi)):
        foot = (hub[0] + 0.16 * math.cos(angle), side, hub[2] + 0.02 + 0.16 * math.sin(angle))
        knee = (0.22 + 0.05 * math.cos(angle), side, 0.68 + 0.08 * math.sin(angle))
        builder.limb((-0.18, side, 0.95), knee, (0.09, 0.07), trousers)
        builder.limb(knee, foot, (0.068, 0.05), trousers)
        builder.limb(foot, (foot[0] + 0.12, side, foot[2]), 0.045, _TYRE)
    _rider_top(builder, rng, (-0.16, 0.98), (0.12, 1.42), (0.4, 1.02), coat, size, helmet=0.7)
    if lit:
        builder.lamp((-0.6, 0.0, 0.7), (1.0, 0.12, 0.08), 0.3, -1)
        builder.lamp((0.55, 0.0, 0.85), (1.0, 0.95, 0.85), 0.5, 1)
    return builder.build((1.6, 0.4))


@lru_cache(maxsize=1024)
def _motorcycle_mesh(look: int, lit: bool) -> Mesh:
    """A motorcycle and its rider."""
    rng = np.random.default_rng(look)
    coat, paint = _pick_colour(rng, _COATS[:3]), _pick_colour(rng, _COATS)
    builder = MeshBuilder()
    _tyre_ring(builder, -0.68, 0.32, 0.12)
    _tyre_ring(builder, 0.72, 0.32, 0.11)
    builder.limb((-0.25, 0.0, 0.42), (0.3, 0.0, 0.45), 0.22, _METAL)
    builder.limb((-0.75, 0.0, 0.78), (-0.1, 0.0, 0.78), 0.12, _TYRE)
    builder.limb((0.0, 0.0, 0.82), (0.42, 0.0, 0.86), (0.17, 0.2), paint)
    builder.limb((0.72, 0.0, 0.34), (0.45, 0.0, 0.95), 0.07, _METAL)
    builder.limb((0.45, -0.33, 1.02), (0.45, 0.33, 1.02), 0.03, _TYRE)
    builder.limb((-0.86, -0.05, 0.78), (-0.86, 0.05, 0.78), 0.06, (0.8, 0.06, 0.05), 0.6)
    builder.limb((0.62, 0.0, 0.9), (0.64, 0.0, 0.9), 0.1, (1.0, 0.95, 0.85), 0.8)
    for side in (0.17, -0.17):
        builder.limb((-0.2, side, 0.88), (0.2, side * 1.3, 0.72), (0.11, 0.09), _TYRE)
        builder.limb((0.2, side * 1.3, 0.72), (-0.05, side * 1.3, 0.34), (0.08, 0.07), _TYRE)
    _rider_top(builder, rng, (-0.22, 0.92), (-0.02, 1.38), (0.42, 1.05), coat, 1.0, helmet=1.0)
    if lit:
        builder.lamp((-0.9, 0.0, 0.78), (1.0, 0.12, 0.08), 0.5, -1)
        builder.lamp((0.75, 0.0, 0.9), (1.0, 0.95, 0.85), 1.5, 1)
    return builder.build((2.1, 0.6))


def _rider_top(
    builder: MeshBuilder,
    rng: np.random.Generator,
    hip: tuple[float, float],
    neck: tuple[float, float],
    grip: tuple[float, float],
    coat: Colour,
    size: float,
    *,
    helmet: float,
) -> None:
    """Trunk, arms and head of somebody leaning forward; points are ``(x, z)``."""
    skin, hair = _pick_colour(rng, _SKINS), _pick_colour(rng, _HAIRS)
    head = _pick_colour(rng, _COATS) if rng.random() < helmet else hair
    rise = 1.42 * (size - 1.0)
    for side in (-0.1, 0.0, 0.1):
        start, end = (hip[0], side * 0.8, hip[1]), (neck[0], side * 1.1, neck[1] + rise)
        builder.limb(start, end, (0.12, 0.125), coat)
    for side in (-0.23, 0.23):
        elbow = ((neck[0] + grip[0]) / 2, side * 1.15, (neck[1] + grip[1]) / 2 - 0.06)
        builder.limb((neck[0], side * 0.9, neck[1] + rise), elbow, 0.06, coat)
        builder.limb(elbow, (grip[0], side, grip[1]), 0.05, coat)
    x, z = neck[0] + 0.1, neck[1] + rise + 0.24
    builder.limb((x, 0.0, z - 0.02), (x, 0.0, z), 0.115, skin)
    builder.limb((x - 0.03, 0.0, z + 0.05), (x - 0.02, 0.0, z + 0.05), 0.125, head)


@lru_cache(maxsize=512)
def _deer_mesh(look: int, phase: float) -> Mesh:
    """A roe deer or a larger red deer, running."""
    rng = np.random.default_rng(look)
    size = float(rng.uniform(0.9, 1.3))
    coat: Colour = (0.50, 0.34, 0.19) if rng.random() < 0.6 else (0.42, 0.31, 0.22)
    dark: Colour = (0.26, 0.18, 0.11)
    builder = MeshBuilder()

    def limb(a: _Point, b: _Point, radius: tuple[float, float], colour: Colour) -> None:
        ends = (radius[0] * size, radius[1] * size)
        builder.limb(_scaled_point(a, size), _scaled_point(b, size), ends, colour)

    swing = 0.26 * math.sin(2 * math.pi * phase)
    for x, side, reach in (
        (-0.4, 0.1, swing),
        (-0.42, -0.1, -swing * 0.7),
        (0.38, 0.1, -swing),
        (0.4, -0.1, swing),
    ):
        knee: _Point = (x + reach * 0.5, side, 0.38)
        limb((x, side, 0.72), knee, (0.085, 0.045), coat)
        limb(knee, (x + reach * 1.2, side, 0.03), (0.04, 0.03), dark)
    limb((-0.42, 0.0, 0.82), (0.38, 0.0, 0.84), (0.2, 0.19), coat)
    limb((-0.3, 0.0, 0.7), (0.25, 0.0, 0.7), (0.1, 0.1), (0.72, 0.62, 0.48))
    limb((0.42, 0.0, 0.92), (0.66, 0.0, 1.25), (0.13, 0.075), coat)
    limb((0.66, 0.0, 1.3), (0.86, 0.0, 1.22), (0.085, 0.045), coat)
    limb((-0.62, 0.0, 0.86), (-0.66, 0.0, 0.78), (0.06, 0.04), (0.88, 0.84, 0.76))
    for side in (-0.06, 0.06):
        limb((0.62, side, 1.36), (0.58, side * 2.4, 1.46), (0.03, 0.02), coat)
    if rng.random() < 0.5:
        for side in (-0.05, 0.05):
            limb((0.66, side, 1.38), (0.6, side * 3.5, 1.68), (0.022, 0.015), dark)
            limb((0.63, side * 2.2, 1.52), (0.76, side * 3.0, 1.64), (0.018, 0.012), dark)
    return builder.build((1.2 * size, 0.4 * size))


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
            return _motorcycle_mesh(look, lit)
        case "bicycle":
            return _cyclist_mesh(look, _stride_phase(actor, pose), lit)
        case "adult" | "child":
            moving = pose.speed_mps > 0.05
            return _walker_mesh(shape, look, _stride_phase(actor, pose), moving)
        case "deer":
            return _deer_mesh(look, _stride_phase(actor, pose))
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


def _support_mesh(actor: Actor) -> Mesh | None:
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
        support = _support_mesh(actor)
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
