"""Bodies made of flat faces and round limbs, and how a posed body becomes polygons in the image.

A body is drawn back to front: its groups (a face with the details painted on it) and limbs sorted
by depth. No depth buffer is needed for bodies as simple as these, and the union of the polygons is
the exact silhouette that boxes and occlusion are measured on.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from workbench.simulation.camera import NEAR_M, Points, clip_near, depths, project
from workbench.simulation.scenario import Camera

Colour = tuple[float, float, float]
"""Linear-ish RGB reflectance in [0, 1]."""

DETAIL_PX = 7.0
"""Details are left out on bodies lower than this."""


@dataclass(frozen=True)
class Face:
    """A planar polygon. ``glow`` > 0 gives off its own light, whatever the light around."""

    start: int
    stop: int
    colour: Colour
    glow: float = 0.0


@dataclass(frozen=True)
class Group:
    """Faces in one plane, the first one below the others; drawn when its front is seen."""

    faces: tuple[Face, ...]
    normal: Colour
    two_sided: bool = False


@dataclass(frozen=True)
class Limb:
    """A round bar between points ``a`` and ``b`` (indices) with a radius at each end, metres."""

    a: int
    b: int
    radius_a: float
    radius_b: float
    colour: Colour


@dataclass(frozen=True)
class Lamp:
    """A light source at a point, seen from ahead (``facing`` 1), behind (-1) or anywhere (0)."""

    at: int
    colour: Colour
    power: float
    facing: int = 0


@dataclass(frozen=True, eq=False)
class Mesh:
    """``points`` ``(n, 3)`` metres: x forward, y left, z up, origin on the ground below."""

    points: Points
    groups: tuple[Group, ...]
    limbs: tuple[Limb, ...] = ()
    lamps: tuple[Lamp, ...] = ()
    footprint: tuple[float, float] = (0.0, 0.0)


@dataclass(frozen=True, eq=False)
class Stroke:
    """A polygon in continuous pixels. ``normal`` is in the ego frame; None for round limbs."""

    polygon: NDArray[np.float64]
    colour: Colour
    glow: float
    depth: float
    normal: NDArray[np.float64] | None


class Builder:
    """Collects points and faces; every method returns nothing and only appends."""

    def __init__(self) -> None:
        self._points: list[Sequence[float]] = []
        self._groups: list[Group] = []
        self._limbs: list[Limb] = []
        self._lamps: list[Lamp] = []

    def face(
        self,
        points: Iterable[Sequence[float]],
        colour: Colour,
        *,
        details: Iterable[tuple[Iterable[Sequence[float]], Colour, float]] = (),
        two_sided: bool = False,
        glow: float = 0.0,
    ) -> None:
        """A polygon, counter-clockwise seen from outside, with details painted on it."""
        faces = [self._polygon(points, colour, glow)]
        a, b, c = (np.array(self._points[faces[0].start + i], dtype=float) for i in range(3))
        normal = np.cross(b - a, c - b)
        normal /= max(float(np.linalg.norm(normal)), 1e-9)
        faces += [self._polygon(*detail) for detail in details]
        self._groups.append(
            Group(tuple(faces), (float(normal[0]), float(normal[1]), float(normal[2])), two_sided)
        )

    def box(
        self,
        x: tuple[float, float],
        y: tuple[float, float],
        z: tuple[float, float],
        colour: Colour,
    ) -> None:
        """An axis-aligned cuboid without its bottom."""
        (x0, x1), (y0, y1), (z0, z1) = x, y, z
        self.face([(x0, y1, z0), (x0, y0, z0), (x0, y0, z1), (x0, y1, z1)], colour)
        self.face([(x1, y0, z0), (x1, y1, z0), (x1, y1, z1), (x1, y0, z1)], colour)
        self.face([(x0, y0, z0), (x1, y0, z0), (x1, y0, z1), (x0, y0, z1)], colour)
        self.face([(x1, y1, z0), (x0, y1, z0), (x0, y1, z1), (x1, y1, z1)], colour)
        self.face([(x0, y0, z1), (x1, y0, z1), (x1, y1, z1), (x0, y1, z1)], colour)

    def limb(
        self,
        a: Sequence[float],
        b: Sequence[float],
        radius: float | tuple[float, float],
        colour: Colour,
    ) -> None:
        ends = radius if isinstance(radius, tuple) else (radius, radius)
        first = len(self._points)
        self._points += [a, b]
        self._limbs.append(Limb(first, first + 1, ends[0], ends[1], colour))

    def lamp(self, at: Sequence[float], colour: Colour, power: float, facing: int = 0) -> None:
        self._points.append(at)
        self._lamps.append(Lamp(len(self._points) - 1, colour, power, facing))

    def build(self, footprint: tuple[float, float] = (0.0, 0.0)) -> Mesh:
        """The finished body; ``footprint`` is length and width of its shadow in metres."""
        points = np.array(self._points, dtype=np.float64).reshape(-1, 3)
        return Mesh(points, tuple(self._groups), tuple(self._limbs), tuple(self._lamps), footprint)

    def _polygon(
        self, points: Iterable[Sequence[float]], colour: Colour, glow: float = 0.0
    ) -> Face:
        start = len(self._points)
        self._points += list(points)
        return Face(start, len(self._points), colour, glow)


def strokes(mesh: Mesh, points: Points, turn: NDArray[np.float64], camera: Camera) -> list[Stroke]:
    """Visible polygons of a body, farthest first.

    Args:
        mesh: The body.
        points: Its points in the ego frame.
        turn: ``(3, 3)`` rotation from the body's frame to the ego frame, for normals.
        camera: Where it is seen from.
    """
    depth = depths(camera, points)
    if depth.max() < NEAR_M:
        return []
    whole = bool(depth.min() >= NEAR_M)
    pixels = project(camera, points)[0] if whole else np.empty((0, 2))
    height = np.ptp(pixels[:, 1]) if whole else math.inf
    eye = np.array([0.0, 0.0, camera.height_m])
    drawn: list[tuple[float, list[Stroke]]] = []
    for group in mesh.groups:
        first = group.faces[0]
        normal = turn @ np.array(group.normal)
        if float(normal @ (eye - points[first.start])) <= 0:
            if not group.two_sided:
                continue
            normal = -normal
        away = float(depth[first.start : first.stop].mean())
        faces = group.faces if height >= DETAIL_PX else group.faces[:1]
        parts = []
        for face in faces:
            if whole:
                polygon = pixels[face.start : face.stop]
            else:
                clipped = clip_near(camera, points[face.start : face.stop])
                if len(clipped) < 3:
                    continue
                polygon = project(camera, clipped)[0]
            parts.append(Stroke(polygon, face.colour, face.glow, away, normal))
        drawn.append((away, parts))
    for limb in mesh.limbs:
        if min(depth[limb.a], depth[limb.b]) >= NEAR_M:
            away = float(depth[limb.a] + depth[limb.b]) / 2
            ends = project(camera, points[[limb.a, limb.b]])[0]
            drawn.append((away, [_bar(ends, limb, depth, camera.fy)]))
    drawn.sort(key=lambda pair: -pair[0])
    return [stroke for _, parts in drawn for stroke in parts]


_HALF_TURN = np.linspace(-math.pi / 2, math.pi / 2, 6)


def _bar(ends: NDArray[np.float64], limb: Limb, depth: NDArray[np.float64], focal: float) -> Stroke:
    """Two half circles joined: how a round bar looks, give or take perspective inside it."""
    step = ends[1] - ends[0]
    angle = math.atan2(step[1], step[0])
    radius_a = limb.radius_a * focal / depth[limb.a]
    radius_b = limb.radius_b * focal / depth[limb.b]
    front = np.stack((np.cos(_HALF_TURN + angle), np.sin(_HALF_TURN + angle)), 1)
    polygon = np.concatenate((ends[1] + radius_b * front, ends[0] - radius_a * front))
    away = float(depth[limb.a] + depth[limb.b]) / 2
    return Stroke(polygon, limb.colour, 0.0, away, None)
