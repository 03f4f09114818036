"""Projection, compared with formulas written by hand."""

from __future__ import annotations

import numpy as np
import pytest

from workbench.simulation import geometry
from workbench.simulation.geometry import MeshBuilder, mesh_strokes
from workbench.simulation.scenario import Camera, Pose, Road

LEVEL = Camera(height_m=1.5, pitch_deg=0.0, fx=400, fy=420, cx=240, cy=130, width=480, height=288)
EGO = Pose(0.0, -1.75, 0.0, 10.0)


def test_cuboid_ahead_has_the_analytic_box() -> None:
    """Length 4, width 2, height 3 with its near face 18 m ahead, 1 m left of the camera."""
    builder = MeshBuilder()
    builder.box((-2, 2), (-1, 1), (0, 3), (0.5, 0.5, 0.5))
    mesh = builder.build()
    placed = geometry.body_transform(Road(), EGO, Pose(20.0, -0.75, 0.0, 0.0))
    found = mesh_strokes(
        mesh,
        placed.points(mesh.points),
        placed.directions(mesh.normals),
        placed.points(mesh.centres),
        LEVEL,
    )
    corners = np.concatenate([stroke.polygon for stroke in found])
    near = 18.0
    assert corners.min(0) == pytest.approx([240 - 400 * 2 / near, 130 - 420 * 1.5 / near])
    assert corners.max(0) == pytest.approx([240 + 0, 130 + 420 * 1.5 / near])


def test_pitch_moves_the_horizon_and_the_optical_axis() -> None:
    pitched = Camera(height_m=1.5, pitch_deg=5.0, fx=400, fy=400, cx=240, cy=130)
    meets_road = 1.5 / np.tan(np.radians(5.0))
    pixels, depth = geometry.project(pitched, np.array([[meets_road, 0.0, 0.0]]))
    assert pixels[0] == pytest.approx([240, 130])
    assert depth[0] == pytest.approx(1.5 / np.sin(np.radians(5.0)))
    far, _ = geometry.project(pitched, np.array([[1e7, 0.0, 0.0]]))
    assert far[0, 1] == pytest.approx(geometry.horizon_row(pitched), abs=1e-3)


@pytest.mark.parametrize("curvature", [0.0, 0.002, -0.003])
def test_ground_map_and_projection_are_inverse(curvature: float) -> None:
    camera = Camera(height_m=2.5, pitch_deg=5.0)
    first, along, left, _ = geometry.ground_map(camera, curvature, EGO.d_m)
    row, column = 60, 333
    pose = Pose(float(along[row, column]), float(left[row, column]), 0.0, 0.0)
    placed = geometry.body_transform(Road(curvature=curvature), EGO, pose)
    pixels, _ = geometry.project(camera, placed.points(np.zeros((1, 3))))
    assert pixels[0] == pytest.approx([column + 0.5, float(first) + row + 0.5], abs=1e-2)


def test_polygon_through_the_camera_is_clipped_at_the_near_plane() -> None:
    wall = np.array([[-5.0, 2, 0], [30, 2, 0], [30, 2, 4], [-5, 2, 4]])
    kept = geometry.clip_near(LEVEL, wall)
    assert geometry.depths(LEVEL, kept).min() == pytest.approx(geometry.NEAR_M)
    assert kept[:, 0].max() == 30
    behind = wall - np.array([40.0, 0, 0])
    assert len(geometry.clip_near(LEVEL, behind)) == 0
