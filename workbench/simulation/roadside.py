"""Meshes beside and on the road, and their layout along a drive.

Scenery is laid out in cells along the road. The content of a cell depends only on the drive's seed
and the cell, so any frame can be rendered on its own.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from workbench.simulation.geometry import Colour, Mesh, MeshBuilder, PaintedFace
from workbench.simulation.lighting import LAMP_SPACING_M
from workbench.simulation.scenario import Pose, Scenario

__all__ = ()

_Point = tuple[float, float, float]
_Floats = NDArray[np.float64]

_WOOD: tuple[Colour, ...] = ((0.62, 0.47, 0.29), (0.52, 0.38, 0.24), (0.70, 0.56, 0.36))
_WRAPS: tuple[Colour, ...] = ((0.20, 0.42, 0.62), (0.82, 0.82, 0.78), (0.24, 0.44, 0.26))
_BALLS: tuple[Colour, ...] = ((0.90, 0.16, 0.12), (0.95, 0.80, 0.12), (0.15, 0.45, 0.85))


@lru_cache(maxsize=128)
def lost_load_mesh(look: int) -> Mesh:
    """A stack of crates on a broken pallet, 1.0 to 1.4 m high, one crate beside it."""
    rng = np.random.default_rng(look)
    height = float(rng.uniform(1.0, 1.4))
    wood, dark = _WOOD[int(rng.integers(len(_WOOD)))], _WOOD[1]
    wrap = _WRAPS[int(rng.integers(len(_WRAPS)))]
    side = -1.0 if rng.random() < 0.5 else 1.0
    builder = MeshBuilder()
    builder.box((-0.6, 0.6), (-0.8, 0.8), (0.0, 0.16), dark)
    builder.box((-0.5, 0.45), (-0.55, 0.5), (0.16, 0.6 * height), wood)
    builder.box((-0.3, 0.35), (-0.25, 0.45), (0.6 * height, height), wrap)
    low, high = sorted((side * 0.95, side * 1.5))
    builder.box((-0.5, 0.1), (low, high), (0.0, 0.45), wood)
    builder.limb((-0.7, -side * 0.9, 0.06), (0.5, -side * 1.3, 0.06), 0.06, dark)
    return builder.build((1.3, 2.0))


@lru_cache(maxsize=32)
def ball_mesh(look: int) -> Mesh:
    """A child's ball, 0.34 m across, in mid bounce."""
    colour = _BALLS[look % len(_BALLS)]
    builder = MeshBuilder()
    builder.limb((0.0, 0.0, 0.3), (0.0, 0.0, 0.3), 0.17, colour)
    builder.limb((-0.04, 0.0, 0.36), (-0.04, 0.0, 0.36), 0.09, (0.95, 0.95, 0.92))
    return builder.build((0.3, 0.3))


_POLE: Colour = (0.42, 0.43, 0.45)
_DARK: Colour = (0.08, 0.08, 0.09)
_WHITE: Colour = (0.93, 0.93, 0.92)
_RED: Colour = (0.80, 0.08, 0.08)
_BLUE: Colour = (0.10, 0.25, 0.62)
_GREEN: Colour = (0.08, 0.40, 0.22)
_YELLOW: Colour = (0.95, 0.76, 0.12)
_ORANGE: Colour = (0.95, 0.36, 0.08)

_SIGN_GLOW = 0.3
"""Stands for the retroreflection of headlights by signs."""

_LAMPS: tuple[tuple[Colour, Colour], ...] = (
    ((1.0, 0.12, 0.08), (0.24, 0.05, 0.05)),
    ((1.0, 0.72, 0.10), (0.24, 0.18, 0.05)),
    ((0.15, 1.0, 0.45), (0.04, 0.22, 0.11)),
)


def _round(radius: float, z: float, x: float, corners: int = 16, turn: float = 0.0) -> list[_Point]:
    """A regular polygon that faces approaching drivers."""
    turns = [turn + 2 * math.pi * k / corners for k in range(corners)]
    return [(x, -radius * math.cos(t), z + radius * math.sin(t)) for t in turns]


def _plate(y: tuple[float, float], z: tuple[float, float], x: float) -> list[_Point]:
    return [(x, y[1], z[0]), (x, y[0], z[0]), (x, y[0], z[1]), (x, y[1], z[1])]


@lru_cache(maxsize=64)
def traffic_light_mesh(state: int, large: bool) -> Mesh:
    """A traffic light's housing; ``state`` 0 red, 1 amber, 2 green. The post is scenery."""
    size = 1.15 if large else 1.0
    low, high, half = 2.45, 2.45 + 1.0 * size, 0.19 * size
    builder = MeshBuilder()
    lenses = []
    for number, (on, off) in enumerate(_LAMPS):
        z = high - (0.17 + 0.33 * number) * size
        lit = number == state
        lenses.append(
            PaintedFace(_round(0.125 * size, z, -0.16, 12), on if lit else off, float(lit))
        )
        if lit:
            builder.lamp((-0.17, 0.0, z), on, 0.5, -1)
    builder.box((-0.1, 0.14), (-half, half), (low, high), _DARK)
    builder.face(_plate((-half, half), (low, high), -0.15), _DARK, details=lenses)
    return builder.build()


@lru_cache(maxsize=512)
def sign_mesh(shape: str, look: int) -> Mesh:
    """A sign's plate, facing drivers; the post is scenery."""
    rng = np.random.default_rng(look)
    z, x, glow = float(rng.uniform(2.1, 2.6)), -0.06, _SIGN_GLOW
    size = float(rng.uniform(0.9, 1.15))
    builder = MeshBuilder()
    if shape == "limit":
        digits = [
            PaintedFace(_plate((y - 0.09, y + 0.05), (z - 0.14, z + 0.14), x), _DARK)
            for y in (0.12, -0.1)
        ]
        inner = PaintedFace(_round(0.29 * size, z, x), _WHITE, glow)
        builder.face(_round(0.38 * size, z, x), _RED, details=[inner, *digits], glow=glow)
    elif shape == "warning":
        up = math.pi / 2
        inner = PaintedFace(_round(0.3 * size, z, x, 3, up), _WHITE, glow)
        mark = PaintedFace(_plate((-0.04, 0.04), (z - 0.1, z + 0.12), x), _DARK)
        builder.face(_round(0.5 * size, z, x, 3, up), _RED, details=[inner, mark], glow=glow)
    elif shape == "stop":
        bar = PaintedFace(_plate((-0.26, 0.26), (z - 0.07, z + 0.07), x), _WHITE, glow)
        octagon = _round(0.42 * size, z, x, 8, math.pi / 8)
        builder.face(octagon, _RED, details=[bar], glow=glow)
    elif shape == "parking":
        stem = PaintedFace(_plate((0.04, 0.13), (z - 0.2, z + 0.2), x), _WHITE, glow)
        bowl = PaintedFace(_plate((-0.14, 0.04), (z, z + 0.2), x), _WHITE, glow)
        square = _plate((-0.33 * size, 0.33 * size), (z - 0.33 * size, z + 0.33 * size), x)
        builder.face(square, _BLUE, details=[stem, bowl], glow=glow)
    else:
        colour = (_BLUE, _GREEN, _YELLOW)[int(rng.integers(3))]
        ink = _DARK if colour == _YELLOW else _WHITE
        lines = [
            PaintedFace(
                _plate((-0.55 + 0.2 * k, 0.6), (z + 0.02 - 0.25 * k, z + 0.12 - 0.25 * k), x),
                ink,
                glow,
            )
            for k in (0, 1)
        ]
        board = _plate((-0.8 * size, 0.8 * size), (z - 0.42 * size, z + 0.42 * size), x)
        builder.face(board, colour, details=lines, glow=glow)
    # The back of the sign.
    builder.face([(0.0, -p[1], p[2]) for p in _round(0.36 * size, z, 0.0, 10)], _POLE)
    return builder.build()


@lru_cache(maxsize=4)
def post_mesh(height_m: float) -> Mesh:
    """The post of a sign or a traffic light."""
    builder = MeshBuilder()
    builder.limb((0.0, 0.0, 0.0), (0.0, 0.0, height_m), 0.05, _POLE)
    return builder.build()


@lru_cache(maxsize=8)
def cone_mesh(large: bool) -> Mesh:
    """A traffic cone."""
    size = 1.25 if large else 1.0
    builder = MeshBuilder()
    builder.box((-0.2, 0.2), (-0.2, 0.2), (0.0, 0.05), _DARK)
    ends = [0.05, 0.28, 0.42, 0.56, 0.66, 0.76]
    for k, (low, high) in enumerate(itertools.pairwise(ends)):
        wide, thin = 0.17 * (1 - low / 0.85), 0.17 * (1 - high / 0.85)
        white = k % 2 == 1
        quad = [
            (0.0, -wide, low * size),
            (0.0, wide, low * size),
            (0.0, thin, high * size),
            (0.0, -thin, high * size),
        ]
        builder.face(quad, _WHITE if white else _ORANGE, two_sided=True, glow=0.35)
    return builder.build((0.4, 0.4))


@lru_cache(maxsize=4)
def barrier_mesh(lit: bool) -> Mesh:
    """A striped board across a lane, 2.2 m wide, with amber warning lamps."""
    builder = MeshBuilder()
    half, low, high = 1.1, 0.7, 1.05
    count = 8
    step = 2 * half / count
    stripes: list[_Point] = []
    for k in range(0, count, 2):
        y = half - k * step
        stripes += [
            (-0.05, y, low),
            (-0.05, y - step, low),
            (-0.05, y - 1.4 * step, high),
            (-0.05, y - 0.4 * step, high),
        ]
    stripes = [(x, max(y, -half), z) for x, y, z in stripes]
    for y in (-0.9, 0.9):
        builder.limb((0.0, y, 0.0), (0.0, y, 1.1), 0.04, _POLE)
        builder.limb((0.0, y, 1.18), (0.0, y, 1.2), 0.11, (1.0, 0.7, 0.1), 0.9 if lit else 0.4)
        if lit:
            builder.lamp((-0.1, y, 1.18), (1.0, 0.7, 0.1), 0.5)
    paint = [PaintedFace(stripes, _RED, 0.35, 4)]
    builder.face(_plate((-half, half), (low, high), -0.05), _WHITE, details=paint, glow=0.35)
    return builder.build((0.3, 2.2))


_WALLS: tuple[Colour, ...] = (
    (0.66, 0.60, 0.52),
    (0.58, 0.42, 0.34),
    (0.72, 0.70, 0.66),
    (0.50, 0.47, 0.44),
    (0.74, 0.64, 0.46),
    (0.44, 0.46, 0.50),
    (0.62, 0.52, 0.48),
)


@lru_cache(maxsize=512)
def _house_mesh(look: int, lit: bool, side: int) -> Mesh:
    """A house that faces the road from its left (``side`` 1) or right (-1)."""
    rng = np.random.default_rng(look)
    wall = _WALLS[int(rng.integers(len(_WALLS)))]
    wide = float(rng.uniform(9, 15))
    floors = int(rng.integers(2, 6))
    height, deep, half = floors * 3.1 + 0.8, 10.0, wide / 2
    builder = MeshBuilder()
    columns = max(3, round(wide / 2.6))
    front = _windows(-half, half, floors, columns)
    flank = _windows(0.0, deep, floors, 3)
    pane: Colour = (0.24, 0.29, 0.34)
    warm: Colour = (0.98, 0.82, 0.5)

    def panes(cells: _Floats, wall_of: Callable[[float, float], _Point]) -> list[PaintedFace]:
        on = rng.random(len(cells)) < (0.3 if lit else 0.0)
        faces = []
        for chosen, colour, glow in ((~on, pane, 0.0), (on, warm, 0.85)):
            if chosen.any():
                points = [wall_of(a, z) for cell in cells[chosen] for a, z in cell]
                faces.append(PaintedFace(points, colour, glow, 4))
        return faces

    outline = [(-half, 0.0, 0.0), (half, 0.0, 0.0), (half, 0.0, height), (-half, 0.0, height)]
    details = panes(front, lambda a, z: (a, 0.0, z))
    builder.face(outline if side > 0 else outline[::-1], wall, details=details)
    back = side * deep
    for x, flip in ((-half, 1), (half, -1)):
        edge = [(x, 0.0, 0.0), (x, back, 0.0), (x, back, height), (x, 0.0, height)]
        edge = edge if flip * side < 0 else edge[::-1]
        details = panes(flank, lambda a, z, x=x: (x, side * a, z))  # type: ignore[misc]
        builder.face(edge, wall, details=details)
    roof: Colour = (0.36, 0.25, 0.21)
    ledge = [
        (-half, side * -0.25, height),
        (half, side * -0.25, height),
        (half, side * -0.25, height + 0.35),
        (-half, side * -0.25, height + 0.35),
    ]
    builder.face(ledge if side > 0 else ledge[::-1], roof)
    return builder.build()


def _windows(low: float, high: float, floors: int, columns: int) -> _Floats:
    """``(n, 4, 2)`` window corners along a wall and up it."""
    step = (high - low) / columns
    cells = []
    for floor in range(floors):
        for column in range(columns):
            a, z = low + (column + 0.25) * step, floor * 3.1 + 1.1
            cells.append([(a, z), (a + 0.5 * step, z), (a + 0.5 * step, z + 1.5), (a, z + 1.5)])
    return np.array(cells)


@lru_cache(maxsize=512)
def _tree_mesh(look: int) -> Mesh:
    """A leafy tree or a conifer."""
    rng = np.random.default_rng(look)
    green: Colour = ((0.20, 0.34, 0.14), (0.26, 0.38, 0.16), (0.16, 0.28, 0.15))[
        int(rng.integers(3))
    ]
    builder = MeshBuilder()
    height = float(rng.uniform(5.0, 9.5))
    builder.limb((0, 0, 0), (0, 0, height * 0.5), (0.18, 0.13), (0.26, 0.19, 0.13))
    if rng.random() < 0.3:
        for k in range(4):
            low, wide = height * (0.16 + 0.2 * k), 0.24 * height * (1 - 0.22 * k)
            top = low + height * 0.34
            shade = 0.8 + 0.09 * k
            colour = (green[0] * shade * 0.8, green[1] * shade * 0.8, green[2] * shade)
            builder.limb((0, 0, low + wide * 0.5), (0, 0, top), (wide * 0.62, 0.05), colour)
        return builder.build((3.0, 3.0))
    for _ in range(6):
        angle, away = rng.uniform(0, 2 * math.pi), rng.uniform(0.2, 1.0) * height * 0.17
        z = height * float(rng.uniform(0.55, 0.86))
        shade = 0.7 + 0.45 * (z / height - 0.5) * 2
        at = (away * math.cos(angle), away * math.sin(angle), z)
        colour = (green[0] * shade, green[1] * shade, green[2] * shade)
        wide = height * float(rng.uniform(0.13, 0.2))
        builder.limb(at, at, wide, colour)
        crest = (at[0], at[1], z + 0.35 * wide)
        bright = (colour[0] * 1.22, colour[1] * 1.18, colour[2] * 1.12)
        builder.limb(crest, crest, 0.6 * wide, bright)
    return builder.build((3.5, 3.5))


@lru_cache(maxsize=16)
def _lamp_post_mesh(side: int, lit: bool) -> Mesh:
    """A street lamp whose arm reaches over the road from ``side``."""
    builder = MeshBuilder()
    arm = -side * 1.8
    builder.limb((0, 0, 0), (0, 0, 7.4), (0.09, 0.06), _POLE)
    builder.limb((0, 0, 7.4), (0, arm, 7.7), 0.04, _POLE)
    builder.limb((0, arm, 7.66), (0, arm * 1.25, 7.68), 0.1, (1.0, 0.86, 0.6), 1.0 if lit else 0.0)
    if lit:
        builder.lamp((0, arm * 1.1, 7.6), (1.0, 0.8, 0.5), 0.7)
    return builder.build()


@lru_cache(maxsize=4)
def _guard_rail_mesh(length_m: float) -> Mesh:
    """A guard rail along the road."""
    builder = MeshBuilder()
    for y in (-0.04, 0.04):
        rail = [(0, y, 0.5), (length_m, y, 0.5), (length_m, y, 0.8), (0, y, 0.8)]
        builder.face(rail if y < 0 else rail[::-1], (0.62, 0.63, 0.65))
    for k in range(3):
        builder.limb((k * length_m / 3, 0, 0), (k * length_m / 3, 0, 0.6), 0.05, _POLE)
    return builder.build()


_HOUSE_M = 15.5
_TREE_M = 11.0
_RAIL_M = 20.0
_AHEAD_M = 95.0


@dataclass(frozen=True, eq=False)
class _RoadsideProp:
    """Scenery without a box; with ``behind`` it is drawn before all other bodies."""

    mesh: Mesh
    pose: Pose
    behind: bool = False


def roadside_props(scenario: Scenario, ego_s_m: float, lit: bool) -> Iterator[_RoadsideProp]:
    """All scenery in view of the ego vehicle at ``ego_s_m``."""
    kind = scenario.road.surroundings
    if kind in ("town", "avenue"):
        yield from _props_in_cells(scenario, ego_s_m, _HOUSE_M, 0, lit)
        yield from _props_in_cells(scenario, ego_s_m, LAMP_SPACING_M, 1, lit)
    elif kind == "motorway":
        yield from _props_in_cells(scenario, ego_s_m, _RAIL_M, 2, lit)
    yield from _props_in_cells(scenario, ego_s_m, _TREE_M, 3, lit)


def _props_in_cells(
    scenario: Scenario, ego_s_m: float, cell_m: float, layer: int, lit: bool
) -> Iterator[_RoadsideProp]:
    first, last = int(ego_s_m // cell_m), int((ego_s_m + _AHEAD_M) // cell_m)
    road = scenario.road
    for cell in range(first, last + 1):
        for side in (-1, 1):
            yield from _cell_props(
                scenario.seed, road.surroundings, road.edge_m, cell, side, layer, lit
            )


@lru_cache(maxsize=8192)
def _cell_props(
    seed: int, kind: str, edge: float, cell: int, side: int, layer: int, lit: bool
) -> tuple[_RoadsideProp, ...]:
    rng = np.random.default_rng([seed, 19, layer, cell + 1000, side + 1])
    look = int(rng.integers(4000))
    return _LAYERS[layer](rng, kind, edge, cell, side, look, lit)


def _house_prop(
    rng: np.random.Generator, kind: str, edge: float, cell: int, side: int, look: int, lit: bool
) -> tuple[_RoadsideProp, ...]:
    if rng.random() < 0.14:
        return ()
    near = 3.6 if kind == "town" else 6.0
    d = side * (edge + near + float(rng.uniform(0.0, 3.0)))
    spot = Pose((cell + 0.5) * _HOUSE_M, d, 0.0, 0.0)
    return (_RoadsideProp(_house_mesh(look % 160, lit, side), spot, behind=True),)


def _lamp_prop(
    rng: np.random.Generator, kind: str, edge: float, cell: int, side: int, look: int, lit: bool
) -> tuple[_RoadsideProp, ...]:
    if (cell + (side > 0)) % 2:
        return ()
    spot = Pose(cell * LAMP_SPACING_M, side * (edge + 0.5), 0.0, 0.0)
    return (_RoadsideProp(_lamp_post_mesh(side, lit), spot),)


def _rail_prop(
    rng: np.random.Generator, kind: str, edge: float, cell: int, side: int, look: int, lit: bool
) -> tuple[_RoadsideProp, ...]:
    spot = Pose(cell * _RAIL_M, side * (edge + 0.3), 0.0, 0.0)
    return (_RoadsideProp(_guard_rail_mesh(_RAIL_M), spot, behind=True),)


_TREE_CHANCES = {
    "town": (0.3, 2.2, 3.2),
    "avenue": (0.65, 2.4, 5.0),
    "country": (0.85, 2.5, 16.0),
    "motorway": (0.6, 6.0, 22.0),
}
"""Probability of a tree in a cell, and its distance from the kerb in metres."""


def _tree_prop(
    rng: np.random.Generator, kind: str, edge: float, cell: int, side: int, look: int, lit: bool
) -> tuple[_RoadsideProp, ...]:
    chance, near, far = _TREE_CHANCES[kind]
    if rng.random() > chance:
        return ()
    s = (cell + float(rng.uniform(0.1, 0.9))) * _TREE_M
    spot = Pose(s, side * (edge + float(rng.uniform(near, far))), float(rng.uniform(0, 6)), 0.0)
    return (_RoadsideProp(_tree_mesh(look % 240), spot),)


_LAYERS = (_house_prop, _lamp_prop, _rail_prop, _tree_prop)
