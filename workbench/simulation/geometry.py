"""Camera projection, and meshes projected to polygons in the image.

A mesh consists of flat faces and round limbs, drawn back to front: its groups (a face with details
painted on it) and limbs are sorted by depth. Meshes this simple need no depth buffer, and the union
of the polygons is the exact silhouette for boxes and occlusion.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from workbench.simulation.scenario import Camera, Pose, Road

__all__ = ()

_Points = NDArray[np.float64]

NEAR_M = 0.5
"""Distance of the near clipping plane."""


@dataclass(frozen=True, eq=False)
class _BodyTransform:
    """Position of a body in the ego frame: rotation about the vertical, then translation."""

    rotation: _Points
    translation: _Points

    def points(self, points: _Points) -> _Points:
        """Points ``(n, 3)`` from the body's frame to the ego frame, in metres."""
        return points @ self.rotation.T + self.translation

    def directions(self, vectors: _Points) -> _Points:
        """Vectors ``(n, 3)`` from the body's frame to the ego frame."""
        return vectors @ self.rotation.T


def body_transform(road: Road, ego: Pose, base: Pose) -> _BodyTransform:
    """Transform of a body with its origin at ``base`` to the ego frame.

    The road's curvature bends everything along an arc around the ego position.
    """
    x, y, turn = _on_arc(road.curvature, base.s_m - ego.s_m, base.d_m)
    y -= ego.d_m
    if ego.heading_rad:
        c, s = math.cos(ego.heading_rad), math.sin(ego.heading_rad)
        x, y = c * x + s * y, c * y - s * x
    heading = base.heading_rad + turn - ego.heading_rad
    cos, sin = math.cos(heading), math.sin(heading)
    rotation = np.array([[cos, -sin, 0.0], [sin, cos, 0.0], [0.0, 0.0, 1.0]])
    return _BodyTransform(rotation, np.array([x, y, 0.0]))


def _on_arc(curvature: float, along: float, left: float) -> tuple[float, float, float]:
    if abs(curvature) < 1e-9:
        return along, left, 0.0
    radius, turn = 1.0 / curvature, curvature * along
    x = (radius - left) * math.sin(turn)
    return x, radius - (radius - left) * math.cos(turn), turn


def project(camera: Camera, points: _Points) -> tuple[_Points, NDArray[np.float64]]:
    """Pixels ``(n, 2)`` and depths ``(n,)`` in metres of ego-frame points ``(n, 3)``.

    Depth is along the optical axis; the caller clips at `NEAR_M` first.
    """
    x, y, depth = _to_camera(camera, points)
    pixels = np.stack((camera.fx * x / depth + camera.cx, camera.fy * y / depth + camera.cy), 1)
    return pixels, depth


def depths(camera: Camera, points: _Points) -> NDArray[np.float64]:
    """Depths ``(n,)`` in metres of ego-frame points ``(n, 3)``."""
    return _to_camera(camera, points)[2]


def _to_camera(
    camera: Camera, points: _Points
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    pitch = np.radians(camera.pitch_deg)
    cos, sin = np.cos(pitch), np.sin(pitch)
    below = points[:, 2] - camera.height_m
    return (
        -points[:, 1],
        -points[:, 0] * sin - below * cos,
        points[:, 0] * cos - below * sin,
    )


def clip_near(camera: Camera, polygon: _Points) -> _Points:
    """The part of a planar polygon beyond `NEAR_M` (Sutherland-Hodgman, one plane)."""
    depth = depths(camera, polygon)
    if depth.min() >= NEAR_M:
        return polygon
    kept: list[_Points] = []
    for here, there, a, b in zip(
        polygon, np.roll(polygon, -1, 0), depth, np.roll(depth, -1), strict=True
    ):
        if a >= NEAR_M:
            kept.append(here)
        if (a >= NEAR_M) != (b >= NEAR_M):
            kept.append(here + (there - here) * ((NEAR_M - a) / (b - a)))
    return np.array(kept).reshape(-1, 3)


def horizon_row(camera: Camera) -> float:
    """Row of the horizon, in continuous pixels."""
    return float(camera.cy - camera.fy * np.tan(np.radians(camera.pitch_deg)))


@lru_cache(maxsize=8)
def ground_map(
    camera: Camera, curvature: float, ego_d_m: float, heading_rad: float = 0.0
) -> tuple[NDArray[np.float32], ...]:
    """Road position of every pixel below the horizon, for an ego at a heading to the road.

    Returns:
        First row below the horizon as a 0-d array, then distance along the road, lateral position
        and depth, each float32 ``(rows, width)`` in metres.
    """
    first = int(np.clip(np.ceil(horizon_row(camera) + 0.2), 0, camera.height))
    v = (np.arange(first, camera.height) + 0.5 - camera.cy) / camera.fy
    u = (np.arange(camera.width) + 0.5 - camera.cx) / camera.fx
    pitch = np.radians(camera.pitch_deg)
    fall = np.sin(pitch) + v * np.cos(pitch)
    depth = (camera.height_m / fall)[:, None] * np.ones_like(u)[None]
    x = depth * (np.cos(pitch) - v * np.sin(pitch))[:, None]
    y = -depth * u[None]
    if heading_rad:
        c, s = math.cos(heading_rad), math.sin(heading_rad)
        x, y = c * x - s * y, c * y + s * x
    y = ego_d_m + y
    if abs(curvature) < 1e-9:
        along, left = x, y
    else:
        radius = 1.0 / curvature
        side = np.sign(radius)
        along = np.arctan2(x * side, (radius - y) * side) * radius
        left = radius - side * np.hypot(x, radius - y)
    return tuple(np.asarray(a, np.float32) for a in (first, along, left, depth))


Colour = tuple[float, float, float]
"""RGB reflectance in [0, 1]."""

FIXED_POINT_BITS = 4
"""Fractional bits of the coordinates given to OpenCV."""

_DETAIL_PX = 7.0
"""Bodies with a lower height in the image are drawn without details."""


@dataclass(frozen=True)
class _FaceSpec:
    """A planar polygon, or several of ``corners`` corners each that do not overlap."""

    start: int
    stop: int
    corners: int = 0


@dataclass(frozen=True, eq=False)
class PaintedFace:
    """A detail on a face, see `MeshBuilder.face`."""

    points: Sequence[Sequence[float]]
    colour: Colour
    glow: float = 0.0
    corners: int = 0


@dataclass(frozen=True)
class _FaceGroup:
    """Faces ``first`` to ``last`` (exclusive) in one plane, the first one below the others.

    Drawn when the front is visible; with ``under`` before all others, at any depth.
    """

    first: int
    last: int
    two_sided: bool = False
    under: bool = False


@dataclass(frozen=True)
class Lamp:
    """A light source, visible from ahead (``facing`` 1), behind (-1) or everywhere (0)."""

    at: int
    colour: Colour
    power: float
    facing: int = 0


@dataclass(frozen=True, eq=False)
class Mesh:
    """A body in its own frame. Parts are numbered: faces first, then limbs.

    Attributes:
        points: ``(n, 3)`` metres: x forward, y left, z up, origin on the ground.
        limbs: ``(m, 2)`` point indices of round bars.
        radii: ``(m, 2)`` metres, at both ends.
        colours: ``(parts, 3)``.
        glow: ``(parts,)`` share of the colour that is emitted, regardless of the light.
        normals: ``(parts, 3)``, zero for limbs.
        centres: ``(groups + limbs, 3)``.
        footprint: Length and width of the shadow in metres.
    """

    points: _Points
    faces: tuple[_FaceSpec, ...]
    groups: tuple[_FaceGroup, ...]
    limbs: NDArray[np.int64]
    radii: NDArray[np.float64]
    colours: NDArray[np.float64]
    glow: NDArray[np.float64]
    normals: NDArray[np.float64]
    centres: _Points
    lamps: tuple[Lamp, ...] = ()
    footprint: tuple[float, float] = (0.0, 0.0)


@dataclass(frozen=True, eq=False)
class Stroke:
    """A polygon in the image.

    Attributes:
        polygon: Continuous pixels; several polygons if ``corners``.
        fixed: The same in OpenCV's fixed-point format, whose integers are pixel centres.
        number: Of the part of the mesh.
        detail: Whether it lies on an earlier stroke.
    """

    polygon: NDArray[np.float64]
    fixed: NDArray[np.int32]
    number: int
    corners: int = 0
    detail: bool = False


class MeshBuilder:
    """Builds a `Mesh` from faces, boxes and limbs."""

    def __init__(self) -> None:
        self._points: list[Sequence[float]] = []
        self._faces: list[tuple[_FaceSpec, Colour, float, Colour]] = []
        self._groups: list[_FaceGroup] = []
        self._limbs: list[tuple[int, tuple[float, float], Colour, float]] = []
        self._lamps: list[Lamp] = []

    def face(
        self,
        points: Iterable[Sequence[float]],
        colour: Colour,
        *,
        details: Iterable[PaintedFace] = (),
        two_sided: bool = False,
        under: bool = False,
        glow: float = 0.0,
    ) -> None:
        """Add a polygon, counter-clockwise seen from outside, with details painted on it."""
        outline = list(points)
        normal = _normal(*outline[:3])
        first = len(self._faces)
        for paint in (PaintedFace(outline, colour, glow), *details):
            start = len(self._points)
            self._points += list(paint.points)
            face = _FaceSpec(start, len(self._points), paint.corners)
            self._faces.append((face, paint.colour, paint.glow, normal))
        self._groups.append(_FaceGroup(first, len(self._faces), two_sided, under))

    def box(
        self,
        x: tuple[float, float],
        y: tuple[float, float],
        z: tuple[float, float],
        colour: Colour,
        *,
        under: bool = False,
    ) -> None:
        """Add an axis-aligned cuboid without its bottom."""
        (x0, x1), (y0, y1), (z0, z1) = x, y, z
        self.face([(x0, y1, z0), (x0, y0, z0), (x0, y0, z1), (x0, y1, z1)], colour, under=under)
        self.face([(x1, y0, z0), (x1, y1, z0), (x1, y1, z1), (x1, y0, z1)], colour, under=under)
        self.face([(x0, y0, z0), (x1, y0, z0), (x1, y0, z1), (x0, y0, z1)], colour, under=under)
        self.face([(x1, y1, z0), (x0, y1, z0), (x0, y1, z1), (x1, y1, z1)], colour, under=under)
        self.face([(x0, y0, z1), (x1, y0, z1), (x1, y1, z1), (x0, y1, z1)], colour, under=under)

    def limb(
        self,
        a: Sequence[float],
        b: Sequence[float],
        radius: float | tuple[float, float],
        colour: Colour,
        glow: float = 0.0,
    ) -> None:
        """Add a round bar with one radius or one for each end; a ball where both ends are equal."""
        ends = radius if isinstance(radius, tuple) else (radius, radius)
        self._limbs.append((len(self._points), ends, colour, glow))
        self._points += [a, b]

    def lamp(self, at: Sequence[float], colour: Colour, power: float, facing: int = 0) -> None:
        """Add a light source, see `Lamp`."""
        self._points.append(at)
        self._lamps.append(Lamp(len(self._points) - 1, colour, power, facing))

    def build(self, footprint: tuple[float, float] = (0.0, 0.0)) -> Mesh:
        """The mesh; ``footprint`` is length and width of its shadow in metres."""
        points = np.array(self._points, dtype=np.float64).reshape(-1, 3)
        faces = tuple(row[0] for row in self._faces)
        firsts = [faces[group.first] for group in self._groups]
        centres = [points[face.start : face.stop].mean(0) for face in firsts]
        starts = [row[0] for row in self._limbs]
        centres += [(points[start] + points[start + 1]) / 2 for start in starts]
        normals = [row[3] for row in self._faces] + [(0.0, 0.0, 0.0)] * len(starts)
        return Mesh(
            points,
            faces,
            tuple(self._groups),
            np.array([(start, start + 1) for start in starts], dtype=np.int64).reshape(-1, 2),
            np.array([row[1] for row in self._limbs], dtype=np.float64).reshape(-1, 2),
            np.array([row[1] for row in self._faces] + [row[2] for row in self._limbs]),
            np.array([row[2] for row in self._faces] + [row[3] for row in self._limbs]),
            np.array(normals, dtype=np.float64).reshape(-1, 3),
            np.array(centres).reshape(-1, 3),
            tuple(self._lamps),
            footprint,
        )


def _normal(a: Sequence[float], b: Sequence[float], c: Sequence[float]) -> Colour:
    """Unit normal of a triangle; in plain Python, which is faster for three numbers."""
    ux, uy, uz = b[0] - a[0], b[1] - a[1], b[2] - a[2]
    vx, vy, vz = c[0] - b[0], c[1] - b[1], c[2] - b[2]
    x, y, z = uy * vz - uz * vy, uz * vx - ux * vz, ux * vy - uy * vx
    length = max(math.sqrt(x * x + y * y + z * z), 1e-9)
    return (x / length, y / length, z / length)


def mesh_strokes(
    mesh: Mesh, points: _Points, normals: _Points, centres: _Points, camera: Camera
) -> list[Stroke]:
    """Visible polygons of a body, farthest first.

    Args:
        mesh: The body.
        points: Its points in the ego frame.
        normals: Its normals in the ego frame.
        centres: Its centres in the ego frame.
        camera: The camera.
    """
    depth = depths(camera, points)
    away = depths(camera, centres)
    whole = bool(depth.min() >= NEAR_M)
    pixels = project(camera, points)[0] if whole else np.empty((0, 2))
    fixed = to_fixed_point(pixels)
    fine = not whole or float(np.ptp(pixels[:, 1])) >= _DETAIL_PX
    firsts = [group.first for group in mesh.groups]
    eye = np.array([0.0, 0.0, camera.height_m])
    starts = [mesh.faces[first].start for first in firsts]
    fronts = ((eye - points[starts]) * normals[firsts]).sum(1) > 0 if firsts else np.empty(0)
    drawn: list[tuple[float, list[Stroke]]] = []
    for index, group in enumerate(mesh.groups):
        if not fronts[index] and not group.two_sided:
            continue
        parts = []
        for number in range(group.first, group.last if fine else group.first + 1):
            face = mesh.faces[number]
            span, corners = slice(face.start, face.stop), face.corners
            if whole:
                polygon, exact = pixels[span], fixed[span]
            else:
                polygon, corners = _clipped_corners(camera, points[span], corners)
                exact = to_fixed_point(polygon)
            if len(polygon) >= 3:
                parts.append(Stroke(polygon, exact, number, corners, number > group.first))
        drawn.append((math.inf if group.under else float(away[index]), parts))
    if len(mesh.limbs):
        if not whole:
            ahead = depth >= NEAR_M
            pixels = np.zeros((len(points), 2))
            pixels[ahead] = project(camera, points[ahead])[0]
        for index, stroke in _limb_strokes(mesh, pixels, depth, camera):
            drawn.append((float(away[len(mesh.groups) + index]), [stroke]))
    drawn.sort(key=lambda pair: -pair[0])
    return [stroke for _, parts in drawn for stroke in parts]


def to_fixed_point(pixels: NDArray[np.float64]) -> NDArray[np.int32]:
    """Continuous pixels in the fixed-point format of OpenCV's drawing functions."""
    return np.rint(pixels * (1 << FIXED_POINT_BITS) - (1 << FIXED_POINT_BITS - 1)).astype(np.int32)


def _clipped_corners(camera: Camera, points: _Points, corners: int) -> tuple[_Points, int]:
    """Pixels of a face that reaches behind the camera; of several polygons only whole ones."""
    if corners == 0:
        clipped = clip_near(camera, points)
        return (project(camera, clipped)[0], 0) if len(clipped) else (np.empty((0, 2)), 0)
    near = depths(camera, points).reshape(-1, corners).min(1)
    kept = points.reshape(-1, corners, 3)[near >= NEAR_M].reshape(-1, 3)
    return (project(camera, kept)[0], corners) if len(kept) else (np.empty((0, 2)), corners)


_HALF_TURN = np.linspace(-math.pi / 2, math.pi / 2, 6)


def _limb_strokes(
    mesh: Mesh, pixels: NDArray[np.float64], depth: NDArray[np.float64], camera: Camera
) -> list[tuple[int, Stroke]]:
    """Limbs as two joined half circles: a round bar without perspective along it."""
    ends = depth[mesh.limbs]
    kept = np.flatnonzero(ends.min(1) >= NEAR_M)
    if len(kept) == 0:
        return []
    middles = pixels[mesh.limbs[kept]]
    radii = mesh.radii[kept] * camera.fy / ends[kept]
    step = middles[:, 1] - middles[:, 0]
    angles = np.arctan2(step[:, 1], step[:, 0])[:, None] + _HALF_TURN
    front = np.stack((np.cos(angles), np.sin(angles)), 2)
    far = middles[:, 1, None] + radii[:, 1, None, None] * front
    near = middles[:, 0, None] - radii[:, 0, None, None] * front
    polygons = np.concatenate((far, near), 1)
    first = len(mesh.faces)
    return [
        (int(index), Stroke(polygon, fixed, first + int(index)))
        for index, polygon, fixed in zip(kept, polygons, to_fixed_point(polygons), strict=True)
    ]
