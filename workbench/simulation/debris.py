"""Bodies that belong on no road: a load that fell off a lorry, a ball."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from workbench.simulation.mesh import Builder, Colour, Mesh

_WOOD: tuple[Colour, ...] = ((0.62, 0.47, 0.29), (0.52, 0.38, 0.24), (0.70, 0.56, 0.36))
_WRAPS: tuple[Colour, ...] = ((0.20, 0.42, 0.62), (0.82, 0.82, 0.78), (0.24, 0.44, 0.26))
_BALLS: tuple[Colour, ...] = ((0.90, 0.16, 0.12), (0.95, 0.80, 0.12), (0.15, 0.45, 0.85))


@lru_cache(maxsize=128)
def load(look: int) -> Mesh:
    """A stack of crates on a broken pallet, 1.0 to 1.4 m high, one crate beside it."""
    rng = np.random.default_rng(look)
    height = float(rng.uniform(1.0, 1.4))
    wood, dark = _WOOD[int(rng.integers(len(_WOOD)))], _WOOD[1]
    wrap = _WRAPS[int(rng.integers(len(_WRAPS)))]
    side = -1.0 if rng.random() < 0.5 else 1.0
    builder = Builder()
    builder.box((-0.6, 0.6), (-0.8, 0.8), (0.0, 0.16), dark)
    builder.box((-0.5, 0.45), (-0.55, 0.5), (0.16, 0.6 * height), wood)
    builder.box((-0.3, 0.35), (-0.25, 0.45), (0.6 * height, height), wrap)
    low, high = sorted((side * 0.95, side * 1.5))
    builder.box((-0.5, 0.1), (low, high), (0.0, 0.45), wood)
    builder.limb((-0.7, -side * 0.9, 0.06), (0.5, -side * 1.3, 0.06), 0.06, dark)
    return builder.build((1.3, 2.0))


@lru_cache(maxsize=32)
def ball(look: int) -> Mesh:
    """A child's ball, 0.34 m across, in mid bounce."""
    colour = _BALLS[look % len(_BALLS)]
    builder = Builder()
    builder.limb((0.0, 0.0, 0.3), (0.0, 0.0, 0.3), 0.17, colour)
    builder.limb((-0.04, 0.0, 0.36), (-0.04, 0.0, 0.36), 0.09, (0.95, 0.95, 0.92))
    return builder.build((0.3, 0.3))
