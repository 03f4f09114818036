"""Meshes of pedestrians, riders and deer."""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np

from workbench.simulation.geometry import Colour, Mesh, MeshBuilder

__all__ = ()

Point = tuple[float, float, float]

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


def _scaled_point(point: Point, size: float) -> Point:
    return (point[0] * size, point[1] * size, point[2] * size)


@lru_cache(maxsize=4096)
def walker_mesh(shape: str, look: int, phase: float, moving: bool) -> Mesh:
    """An adult or a child, scaled from an adult of 1.75 m."""
    rng = np.random.default_rng(look)
    size = float(rng.uniform(0.62, 0.74) if shape == "child" else rng.uniform(0.92, 1.07))
    skin, hair = _pick_colour(rng, _SKINS), _pick_colour(rng, _HAIRS)
    coat, trousers = _pick_colour(rng, _COATS), _pick_colour(rng, _TROUSERS)
    swing = 0.36 * math.sin(2 * math.pi * phase) if moving else 0.04
    builder = MeshBuilder()

    def limb(a: Point, b: Point, radius: tuple[float, float], colour: Colour) -> None:
        ends = (radius[0] * size, radius[1] * size)
        builder.limb(_scaled_point(a, size), _scaled_point(b, size), ends, colour)

    for side, reach in ((0.09, swing), (-0.09, -swing)):
        knee: Point = (reach * 0.55 + 0.04, side, 0.5)
        foot: Point = (reach - (0.12 if reach < 0 else 0.0), side, 0.09 + max(0.0, -reach) * 0.25)
        limb((0.0, side, 0.9), knee, (0.095, 0.075), trousers)
        limb(knee, foot, (0.072, 0.055), trousers)
        limb(foot, (foot[0] + 0.14, side, max(foot[2] - 0.04, 0.045)), (0.05, 0.045), _TYRE)
    for side in (-0.11, 0.0, 0.11):
        limb((0.0, side * 0.85, 0.92), (0.0, side, 1.36), (0.115, 0.12), coat)
    for side, reach in ((0.25, -swing), (-0.25, swing)):
        elbow: Point = (reach * 0.45 - 0.02, side, 1.12)
        hand: Point = (reach * 0.85 + 0.08, side * 0.96, 0.9)
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
def cyclist_mesh(look: int, phase: float, lit: bool) -> Mesh:
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
def motorcycle_mesh(look: int, lit: bool) -> Mesh:
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
def deer_mesh(look: int, phase: float) -> Mesh:
    """A roe deer or a larger red deer, running."""
    rng = np.random.default_rng(look)
    size = float(rng.uniform(0.9, 1.3))
    coat: Colour = (0.50, 0.34, 0.19) if rng.random() < 0.6 else (0.42, 0.31, 0.22)
    dark: Colour = (0.26, 0.18, 0.11)
    builder = MeshBuilder()

    def limb(a: Point, b: Point, radius: tuple[float, float], colour: Colour) -> None:
        ends = (radius[0] * size, radius[1] * size)
        builder.limb(_scaled_point(a, size), _scaled_point(b, size), ends, colour)

    swing = 0.26 * math.sin(2 * math.pi * phase)
    for x, side, reach in (
        (-0.4, 0.1, swing),
        (-0.42, -0.1, -swing * 0.7),
        (0.38, 0.1, -swing),
        (0.4, -0.1, swing),
    ):
        knee: Point = (x + reach * 0.5, side, 0.38)
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
