"""From road coordinates to pixels.

Three frames: the *road* (``s`` along, ``d`` left, ``z`` up), the *ego* frame (x forward, y left, z
up, metres, origin on the road below the camera) and the *image* (continuous pixels, origin at the
top left corner of the top left pixel, u right, v down). A box from ``u0`` to ``u1`` is therefore
``u1 - u0`` wide, without any plus one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from workbench.simulation.scenario import Camera, Pose, Road

Points = NDArray[np.float64]

NEAR_M = 0.5
"""Nothing closer than this to the image plane is drawn."""


@dataclass(frozen=True, eq=False)
class Placement:
    """A body's place in the ego frame: rotation about the vertical, then translation."""

    rotation: Points
    translation: Points

    def points(self, own: Points) -> Points:
        """Ego-frame metres of points ``(n, 3)`` in the body's own frame."""
        return own @ self.rotation.T + self.translation

    def directions(self, own: Points) -> Points:
        return own @ self.rotation.T


def place(road: Road, ego: Pose, base: Pose) -> Placement:
    """Where a body whose origin is at ``base`` stands, seen from the ego vehicle.

    The road's curvature bends everything along an arc around the ego position; the ego vehicle
    looks along the road.
    """
    x, y, turn = _on_arc(road.curvature, base.s_m - ego.s_m, base.d_m)
    heading = base.heading_rad + turn
    cos, sin = math.cos(heading), math.sin(heading)
    rotation = np.array([[cos, -sin, 0.0], [sin, cos, 0.0], [0.0, 0.0, 1.0]])
    return Placement(rotation, np.array([x, y - ego.d_m, 0.0]))


def _on_arc(curvature: float, along: float, left: float) -> tuple[float, float, float]:
    if abs(curvature) < 1e-9:
        return along, left, 0.0
    radius, turn = 1.0 / curvature, curvature * along
    x = (radius - left) * math.sin(turn)
    return x, radius - (radius - left) * math.cos(turn), turn


def project(camera: Camera, points: Points) -> tuple[Points, NDArray[np.float64]]:
    """Pixels ``(n, 2)`` and depths ``(n,)`` of ego-frame points ``(n, 3)`` in front of the camera.

    Depth is along the optical axis in metres; the caller clips at ``NEAR_M`` first.
    """
    x, y, depth = _in_camera(camera, points)
    pixels = np.stack((camera.fx * x / depth + camera.cx, camera.fy * y / depth + camera.cy), 1)
    return pixels, depth


def depths(camera: Camera, points: Points) -> NDArray[np.float64]:
    return _in_camera(camera, points)[2]


def _in_camera(
    camera: Camera, points: Points
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    pitch = np.radians(camera.pitch_deg)
    cos, sin = np.cos(pitch), np.sin(pitch)
    below = points[:, 2] - camera.height_m
    return (
        -points[:, 1],
        -points[:, 0] * sin - below * cos,
        points[:, 0] * cos - below * sin,
    )


def clip_near(camera: Camera, polygon: Points) -> Points:
    """The part of a planar polygon beyond ``NEAR_M`` (Sutherland and Hodgman, one plane)."""
    depth = depths(camera, polygon)
    if depth.min() >= NEAR_M:
        return polygon
    kept: list[Points] = []
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
def ground_map(camera: Camera, curvature: float, ego_d_m: float) -> tuple[NDArray[np.float32], ...]:
    """For every pixel that sees the ground: where on the road it looks.

    Returns:
        ``(first row, distance along, lateral d, depth)``: the first row below the horizon as a
        0-d array, then three ``(rows, width)`` float32 arrays in metres.
    """
    first = int(np.clip(np.ceil(horizon_row(camera) + 0.2), 0, camera.height))
    v = (np.arange(first, camera.height) + 0.5 - camera.cy) / camera.fy
    u = (np.arange(camera.width) + 0.5 - camera.cx) / camera.fx
    pitch = np.radians(camera.pitch_deg)
    fall = np.sin(pitch) + v * np.cos(pitch)
    depth = (camera.height_m / fall)[:, None] * np.ones_like(u)[None]
    x = depth * (np.cos(pitch) - v * np.sin(pitch))[:, None]
    y = ego_d_m - depth * u[None]
    if abs(curvature) < 1e-9:
        along, left = x, y
    else:
        radius = 1.0 / curvature
        side = np.sign(radius)
        along = np.arctan2(x * side, (radius - y) * side) * radius
        left = radius - side * np.hypot(x, radius - y)
    return tuple(np.asarray(a, np.float32) for a in (first, along, left, depth))
