"""What lines the road, laid out from the drive's seed in cells along it: houses, trees, lamps.

A cell's content depends on the seed and the cell only, so any frame can be drawn alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from workbench.simulation import street
from workbench.simulation.light import LAMP_SPACING_M
from workbench.simulation.mesh import Mesh
from workbench.simulation.scenario import Pose, Scenario

_HOUSE_M = 15.5
_TREE_M = 11.0
_RAIL_M = 20.0
_AHEAD_M = 95.0


@dataclass(frozen=True, eq=False)
class Prop:
    """A body that has no box. ``behind``: it stands behind everybody else beside the road."""

    mesh: Mesh
    pose: Pose
    behind: bool = False


def around(scenario: Scenario, ego_s_m: float, lit: bool) -> Iterator[Prop]:
    """Everything along the road that can be seen from ``ego_s_m``."""
    kind = scenario.road.surroundings
    if kind in ("town", "avenue"):
        yield from _each(scenario, ego_s_m, _HOUSE_M, 0, lit)
        yield from _each(scenario, ego_s_m, LAMP_SPACING_M, 1, lit)
    elif kind == "motorway":
        yield from _each(scenario, ego_s_m, _RAIL_M, 2, lit)
    yield from _each(scenario, ego_s_m, _TREE_M, 3, lit)


def _each(
    scenario: Scenario, ego_s_m: float, cell_m: float, layer: int, lit: bool
) -> Iterator[Prop]:
    first, last = int(ego_s_m // cell_m), int((ego_s_m + _AHEAD_M) // cell_m)
    road = scenario.road
    for cell in range(first, last + 1):
        for side in (-1, 1):
            yield from _cell(scenario.seed, road.surroundings, road.edge_m, cell, side, layer, lit)


@lru_cache(maxsize=8192)
def _cell(
    seed: int, kind: str, edge: float, cell: int, side: int, layer: int, lit: bool
) -> tuple[Prop, ...]:
    rng = np.random.default_rng([seed, 19, layer, cell + 1000, side + 1])
    look = int(rng.integers(4000))
    return _LAYERS[layer](rng, kind, edge, cell, side, look, lit)


def _house(
    rng: np.random.Generator, kind: str, edge: float, cell: int, side: int, look: int, lit: bool
) -> tuple[Prop, ...]:
    if rng.random() < 0.14:
        return ()
    near = 3.6 if kind == "town" else 6.0
    d = side * (edge + near + float(rng.uniform(0.0, 3.0)))
    spot = Pose((cell + 0.5) * _HOUSE_M, d, 0.0, 0.0)
    return (Prop(street.house(look % 160, lit, side), spot, behind=True),)


def _lamp(
    rng: np.random.Generator, kind: str, edge: float, cell: int, side: int, look: int, lit: bool
) -> tuple[Prop, ...]:
    if (cell + (side > 0)) % 2:
        return ()
    spot = Pose(cell * LAMP_SPACING_M, side * (edge + 0.5), 0.0, 0.0)
    return (Prop(street.lamp_post(side, lit), spot),)


def _rail(
    rng: np.random.Generator, kind: str, edge: float, cell: int, side: int, look: int, lit: bool
) -> tuple[Prop, ...]:
    spot = Pose(cell * _RAIL_M, side * (edge + 0.3), 0.0, 0.0)
    return (Prop(street.guard_rail(_RAIL_M), spot, behind=True),)


_TREES = {
    "town": (0.3, 2.2, 3.2),
    "avenue": (0.65, 2.4, 5.0),
    "country": (0.85, 2.5, 16.0),
    "motorway": (0.6, 6.0, 22.0),
}
"""Chance of a tree in a cell, and how far from the kerb it may stand."""


def _tree(
    rng: np.random.Generator, kind: str, edge: float, cell: int, side: int, look: int, lit: bool
) -> tuple[Prop, ...]:
    chance, near, far = _TREES[kind]
    if rng.random() > chance:
        return ()
    s = (cell + float(rng.uniform(0.1, 0.9))) * _TREE_M
    spot = Pose(s, side * (edge + float(rng.uniform(near, far))), float(rng.uniform(0, 6)), 0.0)
    return (Prop(street.tree(look % 240), spot),)


_LAYERS = (_house, _lamp, _rail, _tree)
