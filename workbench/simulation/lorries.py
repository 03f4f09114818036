"""Bodies of trucks and buses."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from workbench.simulation.mesh import Builder, Colour, Mesh, Paint
from workbench.simulation.vehicles import (
    GLASS,
    PAINTS,
    RIM,
    TYRE,
    UNDER,
    disc,
    face_lamps,
    mirrored,
    rect,
    shell,
    wheel,
)

CHROME: Colour = (0.75, 0.76, 0.78)
BOXES: tuple[Colour, ...] = (
    (0.93, 0.93, 0.92),
    (0.86, 0.87, 0.88),
    (0.80, 0.72, 0.30),
    (0.20, 0.36, 0.62),
    (0.70, 0.22, 0.18),
    (0.32, 0.48, 0.34),
)


@lru_cache(maxsize=512)
def truck(shape: str, look: int, lit: bool) -> Mesh:
    """A rigid box truck or a tractor with its trailer."""
    rng = np.random.default_rng(look)
    cab = PAINTS[int(rng.choice(len(PAINTS)))]
    cargo = BOXES[int(rng.choice(len(BOXES)))]
    tractor = shape == "tractor"
    length = float(rng.uniform(11.5, 13.0) if tractor else rng.uniform(6.8, 8.2))
    height = float(rng.uniform(3.6, 3.9) if tractor else rng.uniform(3.1, 3.5))
    half, nose, split = 1.25, length / 2, length / 2 - 2.1
    builder = Builder()
    builder.box(
        (-nose + 0.3, nose - 0.1), (-half * 0.8, half * 0.8), (0.0, 0.95), UNDER, under=True
    )
    _cargo(builder, (-nose, split - 0.25), half, height, cargo)
    _cab(builder, (split, nose), half, min(height - 0.2, 3.0), cab)
    axles = [nose - 1.1, -nose + 1.3, -nose + 2.4]
    axles += [-nose + 3.5] if tractor else []
    for sign in (-1.0, 1.0):
        y = sign * half * 0.92
        strip = [(-nose, y, 0.5), (nose, y, 0.5), (nose, y, 0.9), (-nose, y, 0.9)]
        wheels = [
            mirrored(part, sign)
            for axle in axles
            for part in (
                Paint(disc(axle, half * 0.94, 0.5, 0.5), TYRE),
                Paint(disc(axle, half * 0.95, 0.5, 0.26, 10), RIM),
            )
        ]
        builder.face(strip if sign < 0 else strip[::-1], UNDER, details=wheels)
    face_lamps(builder, -nose - 0.02, half, (0.86, 0.16), lit, rear=True)
    face_lamps(builder, nose + 0.02, half, (0.8, 0.2), lit, rear=False)
    return builder.build((length, 2 * half))


def _cargo(
    builder: Builder, x: tuple[float, float], half: float, height: float, colour: Colour
) -> None:
    low = 0.95
    dark: Colour = (colour[0] * 0.7, colour[1] * 0.7, colour[2] * 0.7)
    rear = rect(x[0], (-half, half), (low, height))
    doors = [
        Paint(rect(x[0], (-0.03, 0.03), (low, height)), dark),
        Paint(rect(x[0], (-half, half), (height - 0.12, height - 0.04)), dark),
        Paint(rect(x[0], (-0.5, -0.42), (low + 0.1, height - 0.15)), CHROME),
        Paint(rect(x[0], (0.42, 0.5), (low + 0.1, height - 0.15)), CHROME),
    ]
    builder.face(rear[::-1], colour, details=doors)
    builder.face(rect(x[1], (-half, half), (low, height)), dark)
    band = (low + 0.35 * (height - low), low + 0.6 * (height - low))
    for sign in (-1.0, 1.0):
        y = sign * half
        side = [(x[0], y, low), (x[1], y, low), (x[1], y, height), (x[0], y, height)]
        stripe = [(x[0], y, band[0]), (x[1], y, band[0]), (x[1], y, band[1]), (x[0], y, band[1])]
        builder.face(side if sign < 0 else side[::-1], colour, details=[Paint(stripe, dark)])
    roof = [
        (x[0], -half, height),
        (x[1], -half, height),
        (x[1], half, height),
        (x[0], half, height),
    ]
    builder.face(roof, colour)


def _cab(
    builder: Builder, x: tuple[float, float], half: float, height: float, colour: Colour
) -> None:
    low, slope = 0.6, 0.25
    profile = [(x[0], low), (x[1], low), (x[1], 1.6), (x[1] - slope, height), (x[0], height)]
    glass = Paint(
        [
            (x[0] + 0.9, half + 0.01, 1.6),
            (x[1] - 0.15, half + 0.01, 1.6),
            (x[1] - 0.35, half + 0.01, height - 0.35),
            (x[0] + 0.9, half + 0.01, height - 0.35),
        ],
        GLASS,
    )
    shell(builder, profile, half, half, colour, sides=[glass])
    front = [
        (x[1] + 0.01, -half * 0.9, 1.7),
        (x[1] + 0.01, half * 0.9, 1.7),
        (x[1] - slope + 0.05, half * 0.9, height - 0.3),
        (x[1] - slope + 0.05, -half * 0.9, height - 0.3),
    ]
    builder.face(front, GLASS)


@lru_cache(maxsize=256)
def bus(look: int, lit: bool) -> Mesh:
    """A city bus with a band of windows."""
    rng = np.random.default_rng(look)
    colour = ((0.85, 0.30, 0.10), (0.88, 0.74, 0.16), (0.18, 0.42, 0.62), (0.9, 0.9, 0.88))[
        int(rng.integers(4))
    ]
    length, height, half = float(rng.uniform(10.5, 12.2)), 3.05, 1.27
    nose = length / 2
    builder = Builder()
    builder.box((-nose + 0.2, nose - 0.2), (-half * 0.9, half * 0.9), (0.0, 0.4), UNDER, under=True)
    panes = []
    step = (length - 0.8) / 7
    for k in range(7):
        x = -nose + 0.4 + k * step
        panes += [
            (x + 0.08, half, 1.35),
            (x + step - 0.08, half, 1.35),
            (x + step - 0.08, half, 2.5),
            (x + 0.08, half, 2.5),
        ]
    inside: Colour = (0.95, 0.9, 0.7) if lit else GLASS
    details = [Paint(panes, inside, 0.75 if lit else 0.0, 4)]
    for axle in (-nose + 2.6, nose - 2.7):
        details += wheel(axle, half, 0.48)
    profile = [(-nose, 0.35), (nose, 0.35), (nose, height), (-nose, height)]
    shell(builder, profile, half, half, colour, sides=details)
    back = rect(-nose - 0.01, (-half * 0.82, half * 0.82), (1.75, 2.65))
    builder.face(back[::-1], GLASS)
    shield = rect(nose + 0.01, (-half * 0.93, half * 0.93), (1.15, 2.5))
    sign = Paint(rect(nose + 0.02, (-half * 0.6, half * 0.6), (2.6, 2.9)), (0.95, 0.6, 0.1), 0.8)
    builder.face(shield, GLASS, details=[sign])
    face_lamps(builder, -nose - 0.02, half, (0.95, 0.3), lit, rear=True)
    face_lamps(builder, nose + 0.02, half, (0.72, 0.2), lit, rear=False)
    return builder.build((length, 2 * half))
