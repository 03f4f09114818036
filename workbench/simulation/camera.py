"""From road coordinates to pixels.

Three frames: the *road* (``s`` along, ``d`` left, ``z`` up), the *ego* frame (x forward, y left, z
up, metres, origin on the road below the camera) and the *image* (continuous pixels, origin at the
top left corner of the top left pixel, u right, v down). A box from ``u0`` to ``u1`` is therefore
``u1 - u0`` wide, without any plus one.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from workbench.simulation.scenario import Camera, Pose, Road

Points = NDArray[np.float64]

NEAR_M = 0.5
"""Nothing closer than this to the image plane is drawn."""


def to_ego(road: Road, ego: Pose, points: Points, base: Pose) -> Points:
    """Body points of whatever stands at ``base``, in the ego frame.

    Args:
        road: Its curvature bends everything along an arc around the ego position.
        ego: Pose of the ego vehicle; it looks along the road.
        points: ``(n, 3)`` in the body's own frame (x forward, y left, z up).
        base: Pose of the body's origin.

    Returns:
        ``(n, 3)`` metres.
    """
    x, y, turn = _on_arc(road.curvature, base.s_m - ego.s_m, base.d_m)
    heading = base.heading_rad + turn
    cos, sin = np.cos(heading), np.sin(heading)
    moved = np.empty_like(points)
    moved[:, 0] = points[:, 0] * cos - points[:, 1] * sin + x
    moved[:, 1] = points[:, 0] * sin + points[:, 1] * cos + y - ego.d_m
    moved[:, 2] = points[:, 2]
    return moved


def _on_arc(curvature: float, along: float, left: float) -> tuple[float, float, float]:
    if abs(curvature) < 1e-9:
        return along, left, 0.0
    radius, turn = 1.0 / curvature, curvature * along
    x = (radius - left) * np.sin(turn)
    return float(x), float(radius - (radius - left) * np.cos(turn)), turn


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
        along = np.arctan2(x * side, (radius - y) * side) * radius * side
        left = radius - side * np.hypot(x, radius - y)
    return tuple(np.asarray(a, np.float32) for a in (first, along, left, depth))
