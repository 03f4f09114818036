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

SHIFT = 4
"""Bits behind the binary point in the coordinates given to OpenCV."""

DETAIL_PX = 7.0
"""Details are left out on bodies lower than this."""


@dataclass(frozen=True)
class Face:
    """A planar polygon, or several of ``corners`` corners each that do not overlap."""

    start: int
    stop: int
    corners: int = 0


@dataclass(frozen=True, eq=False)
class Paint:
    """A detail to put on a face, see ``Builder.face``."""

    points: Sequence[Sequence[float]]
    colour: Colour
    glow: float = 0.0
    corners: int = 0


@dataclass(frozen=True)
class Group:
    """Faces ``first`` to ``last`` (exclusive) in one plane, the first one below the others.

    They are drawn when their front is seen. ``under``: before the rest, wherever it is.
    """

    first: int
    last: int
    two_sided: bool = False
    under: bool = False


@dataclass(frozen=True)
class Lamp:
    """A light source at a point, seen from ahead (``facing`` 1), behind (-1) or anywhere (0)."""

    at: int
    colour: Colour
    power: float
    facing: int = 0


@dataclass(frozen=True, eq=False)
class Mesh:
    """A body at rest. Faces are numbered first, then limbs; looks are kept by that number.

    ``points`` ``(n, 3)`` metres: x forward, y left, z up, origin on the ground below.
    ``normals`` ``(faces + limbs, 3)``, zero for limbs; ``colours`` likewise; ``glow`` one each: the
    share of its colour that a thing gives off itself, whatever the light around.
    ``limbs`` ``(m, 2)`` point numbers and ``radii`` ``(m, 2)`` metres: round bars.
    ``footprint`` is length and width of the shadow in metres.
    """

    points: Points
    faces: tuple[Face, ...]
    groups: tuple[Group, ...]
    limbs: NDArray[np.int64]
    radii: NDArray[np.float64]
    colours: NDArray[np.float64]
    glow: NDArray[np.float64]
    normals: NDArray[np.float64]
    centres: Points
    lamps: tuple[Lamp, ...] = ()
    footprint: tuple[float, float] = (0.0, 0.0)


@dataclass(frozen=True, eq=False)
class Stroke:
    """A polygon in continuous pixels (several if ``corners``) and the number of its look.

    ``fixed`` is the same in OpenCV's fixed point of ``SHIFT`` bits, whose integers are pixel
    centres. A ``detail`` lies on an earlier stroke or close to it.
    """

    polygon: NDArray[np.float64]
    fixed: NDArray[np.int32]
    number: int
    corners: int = 0
    detail: bool = False


class Builder:
    """Collects points, faces and limbs."""

    def __init__(self) -> None:
        self._points: list[Sequence[float]] = []
        self._faces: list[tuple[Face, Colour, float, Colour]] = []
        self._groups: list[Group] = []
        self._limbs: list[tuple[int, tuple[float, float], Colour, float]] = []
        self._lamps: list[Lamp] = []

    def face(
        self,
        points: Iterable[Sequence[float]],
        colour: Colour,
        *,
        details: Iterable[Paint] = (),
        two_sided: bool = False,
        under: bool = False,
        glow: float = 0.0,
    ) -> None:
        """A polygon, counter-clockwise seen from outside, with details painted on it."""
        outline = list(points)
        normal = _normal(*outline[:3])
        first = len(self._faces)
        for paint in (Paint(outline, colour, glow), *details):
            start = len(self._points)
            self._points += list(paint.points)
            face = Face(start, len(self._points), paint.corners)
            self._faces.append((face, paint.colour, paint.glow, normal))
        self._groups.append(Group(first, len(self._faces), two_sided, under))

    def box(
        self,
        x: tuple[float, float],
        y: tuple[float, float],
        z: tuple[float, float],
        colour: Colour,
        *,
        under: bool = False,
    ) -> None:
        """An axis-aligned cuboid without its bottom."""
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
        """A round bar with one radius or one at each end; of no length it is a ball."""
        ends = radius if isinstance(radius, tuple) else (radius, radius)
        self._limbs.append((len(self._points), ends, colour, glow))
        self._points += [a, b]

    def lamp(self, at: Sequence[float], colour: Colour, power: float, facing: int = 0) -> None:
        self._points.append(at)
        self._lamps.append(Lamp(len(self._points) - 1, colour, power, facing))

    def build(self, footprint: tuple[float, float] = (0.0, 0.0)) -> Mesh:
        """The finished body; ``footprint`` is length and width of its shadow in metres."""
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
    """Unit normal of a triangle; in plain Python, since numpy is slow on three numbers."""
    ux, uy, uz = b[0] - a[0], b[1] - a[1], b[2] - a[2]
    vx, vy, vz = c[0] - b[0], c[1] - b[1], c[2] - b[2]
    x, y, z = uy * vz - uz * vy, uz * vx - ux * vz, ux * vy - uy * vx
    length = max(math.sqrt(x * x + y * y + z * z), 1e-9)
    return (x / length, y / length, z / length)


def strokes(
    mesh: Mesh, points: Points, normals: Points, centres: Points, camera: Camera
) -> list[Stroke]:
    """Visible polygons of a posed body, farthest first.

    Args:
        mesh: The body.
        points: Its points in the ego frame.
        normals: Its normals in the ego frame.
        centres: Its groups' and limbs' centres in the ego frame.
        camera: Where it is seen from.
    """
    depth = depths(camera, points)
    away = depths(camera, centres)
    whole = bool(depth.min() >= NEAR_M)
    pixels = project(camera, points)[0] if whole else np.empty((0, 2))
    fixed = fixed_point(pixels)
    fine = not whole or float(np.ptp(pixels[:, 1])) >= DETAIL_PX
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
                polygon, corners = _clipped(camera, points[span], corners)
                exact = fixed_point(polygon)
            if len(polygon) >= 3:
                parts.append(Stroke(polygon, exact, number, corners, number > group.first))
        drawn.append((math.inf if group.under else float(away[index]), parts))
    if len(mesh.limbs):
        if not whole:
            ahead = depth >= NEAR_M
            pixels = np.zeros((len(points), 2))
            pixels[ahead] = project(camera, points[ahead])[0]
        for index, stroke in _bars(mesh, pixels, depth, camera):
            drawn.append((float(away[len(mesh.groups) + index]), [stroke]))
    drawn.sort(key=lambda pair: -pair[0])
    return [stroke for _, parts in drawn for stroke in parts]


def fixed_point(pixels: NDArray[np.float64]) -> NDArray[np.int32]:
    """Continuous pixels as OpenCV's drawing functions take them."""
    return np.rint(pixels * (1 << SHIFT) - (1 << SHIFT - 1)).astype(np.int32)


def _clipped(camera: Camera, points: Points, corners: int) -> tuple[Points, int]:
    """A face's pixels where it reaches behind the camera; of several polygons the whole ones."""
    if corners == 0:
        clipped = clip_near(camera, points)
        return (project(camera, clipped)[0], 0) if len(clipped) else (np.empty((0, 2)), 0)
    near = depths(camera, points).reshape(-1, corners).min(1)
    kept = points.reshape(-1, corners, 3)[near >= NEAR_M].reshape(-1, 3)
    return (project(camera, kept)[0], corners) if len(kept) else (np.empty((0, 2)), corners)


_HALF_TURN = np.linspace(-math.pi / 2, math.pi / 2, 6)


def _bars(
    mesh: Mesh, pixels: NDArray[np.float64], depth: NDArray[np.float64], camera: Camera
) -> list[tuple[int, Stroke]]:
    """Limbs as two half circles joined: how a round bar looks, give or take perspective in it."""
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
        for index, polygon, fixed in zip(kept, polygons, fixed_point(polygons), strict=True)
    ]
