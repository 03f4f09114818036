"""Bodies of cars, and the parts that all vehicles share: shells, windows, wheels, lamps."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from workbench.simulation.mesh import Builder, Colour, Mesh, Paint

Profile = Sequence[tuple[float, float]]

GLASS: Colour = (0.16, 0.20, 0.24)
_SHEEN: Colour = (0.42, 0.50, 0.56)
TYRE: Colour = (0.07, 0.07, 0.075)
RIM: Colour = (0.55, 0.56, 0.58)
UNDER: Colour = (0.05, 0.05, 0.055)
_RED: Colour = (0.80, 0.06, 0.05)
_WARM: Colour = (1.0, 0.95, 0.82)
_PLATE: Colour = (0.92, 0.92, 0.88)

PAINTS: tuple[Colour, ...] = (
    (0.92, 0.92, 0.93),
    (0.72, 0.74, 0.76),
    (0.45, 0.47, 0.50),
    (0.13, 0.13, 0.15),
    (0.62, 0.10, 0.10),
    (0.12, 0.22, 0.48),
    (0.20, 0.34, 0.56),
    (0.16, 0.30, 0.22),
    (0.66, 0.55, 0.36),
    (0.80, 0.44, 0.10),
)
_PAINT_WEIGHTS = np.array([20, 16, 14, 16, 9, 7, 7, 4, 4, 3]) / 100.0


def _car_profiles() -> dict[str, tuple[Profile, Profile, float, float, float]]:
    """Body and cabin outline ``(x, z)``, half width, wheel radius, half wheelbase."""
    return {
        "sedan": (
            [
                (-2.25, 0.3),
                (2.25, 0.3),
                (2.28, 0.62),
                (2.1, 0.8),
                (0.95, 0.96),
                (-1.55, 1.0),
                (-2.2, 0.96),
                (-2.28, 0.66),
            ],
            [(0.95, 0.95), (0.2, 1.44), (-0.95, 1.45), (-1.75, 0.99)],
            0.91,
            0.32,
            1.38,
        ),
        "hatchback": (
            [
                (-1.95, 0.3),
                (1.98, 0.3),
                (2.0, 0.66),
                (1.85, 0.84),
                (0.95, 1.0),
                (-1.85, 1.02),
                (-2.0, 0.7),
            ],
            [(0.95, 0.99), (0.3, 1.5), (-1.35, 1.52), (-1.88, 1.01)],
            0.88,
            0.31,
            1.27,
        ),
        "suv": (
            [
                (-2.25, 0.36),
                (2.25, 0.36),
                (2.28, 0.8),
                (2.1, 1.0),
                (0.95, 1.1),
                (-2.15, 1.14),
                (-2.3, 0.8),
            ],
            [(0.95, 1.09), (0.35, 1.68), (-1.75, 1.72), (-2.2, 1.13)],
            0.96,
            0.37,
            1.4,
        ),
        "van": (
            [(-2.5, 0.32), (2.45, 0.32), (2.5, 0.75), (2.35, 1.0), (1.65, 1.16), (-2.5, 1.16)],
            [(1.65, 1.15), (0.95, 1.98), (-2.42, 2.0), (-2.5, 1.15)],
            0.98,
            0.34,
            1.55,
        ),
    }


CARS = _car_profiles()


@lru_cache(maxsize=2048)
def car(shape: str, look: int, lit: bool) -> Mesh:
    """A sedan, hatchback, suv or van of the colour and size that ``look`` gives it."""
    rng = np.random.default_rng(look)
    paint = PAINTS[int(rng.choice(len(PAINTS), p=_PAINT_WEIGHTS))]
    size = float(rng.uniform(0.95, 1.06))
    body, cabin, half, radius, base = CARS[shape]
    body = [(x * size, z) for x, z in body]
    cabin = [(x * size, z) for x, z in cabin]
    builder = Builder()
    long = body[1][0]
    builder.box(
        (-long * 0.93, long * 0.93), (-half * 0.88, half * 0.88), (0.0, 0.32), UNDER, under=True
    )
    tyres = [paint for x in (-base * size, base * size) for paint in wheel(x, half, radius)]
    shell(builder, body, half, half, paint, sides=tyres)
    top = half - 0.18 - (0.0 if shape != "van" else -0.08)
    shell(builder, cabin, half - 0.03, top, paint, windows=True, blind_rear=shape == "van")
    rear, front = body[-1][0] - 0.02, body[2][0] + 0.02
    face_lamps(builder, rear, half, (body[-1][1] + 0.05, 0.17), lit, rear=True)
    face_lamps(builder, front, half, (body[2][1] + 0.02, 0.15), lit, rear=False)
    return builder.build((2 * long, 2 * half))


def shell(
    builder: Builder,
    profile: Profile,
    low: float,
    high: float,
    paint: Colour,
    *,
    sides: Sequence[Paint] = (),
    windows: bool = False,
    blind_rear: bool = False,
) -> None:
    """Give a side outline width: ``low`` at its bottom, ``high`` at its top (half widths)."""
    bottom, top = min(z for _, z in profile), max(z for _, z in profile)

    def half(z: float) -> float:
        return low + (high - low) * (z - bottom) / (top - bottom)

    for sign in (-1.0, 1.0):
        outline = [(x, sign * half(z), z) for x, z in profile]
        ordered = outline if sign < 0 else outline[::-1]
        details = [mirrored(detail, sign) for detail in sides]
        if windows:
            details += _side_windows(profile, sign, half, blind_rear)
        builder.face(ordered, paint, details=details)
    count = len(profile)
    for index in range(count):
        (x0, z0), (x1, z1) = profile[index], profile[(index + 1) % count]
        if z0 == bottom and z1 == bottom:
            continue
        a, b = half(z0), half(z1)
        quad = [(x0, -a, z0), (x0, a, z0), (x1, b, z1), (x1, -b, z1)]
        steep = abs(z1 - z0) > 0.6 * abs(x1 - x0) or (windows and abs(z1 - z0) > 0.3)
        details = [_inset(quad, 0.12)] if windows and steep and abs(z1 - z0) > 0.2 else []
        if details and blind_rear and x0 < 0:
            details = [_inset(quad, 0.16, z_from=0.45)]
        builder.face(quad, paint, details=details)


def _inset(quad: Sequence[tuple[float, float, float]], share: float, z_from: float = 0.0) -> Paint:
    """A pane of glass inside a face."""
    corners = np.array(quad)
    middle = corners.mean(0)
    pane = middle + (corners - middle) * (1 - share)
    if z_from:
        low = corners[:, 2].min() + z_from * np.ptp(corners[:, 2])
        pane[:, 2] = np.maximum(pane[:, 2], low)
    return Paint(pane.tolist(), GLASS)


def _side_windows(
    profile: Profile, sign: float, half: Callable[[float], float], blind_rear: bool
) -> list[Paint]:
    corners = np.array(profile)
    middle = corners.mean(0)
    pane = middle + (corners - middle) * np.array([0.88, 0.74])
    if blind_rear:
        pane = middle + (corners - middle) * np.array([0.94, 0.74])
        pane[:, 0] = np.maximum(pane[:, 0], 0.25)
    points = [(x, sign * (half(z) + 0.005), z) for x, z in pane]
    post_x = float(middle[0]) + 0.02
    low, high = float(pane[:, 1].min()), float(pane[:, 1].max())
    paints = [Paint(points, GLASS)]
    sheen = [(x, sign * (half(z) + 0.006), z) for x, z in _upper(pane, 0.72)]
    if len(sheen) >= 3:
        paints.append(Paint(sheen, _SHEEN))
    if not blind_rear:
        post = [
            (post_x - 0.05, low),
            (post_x + 0.05, low),
            (post_x + 0.05, high),
            (post_x - 0.05, high),
        ]
        paints.append(Paint([(x, sign * (half(z) + 0.007), z) for x, z in post], UNDER))
    return paints


def _upper(pane: NDArray[np.float64], share: float) -> list[tuple[float, float]]:
    """The part of a convex outline above ``share`` of its height: where the sky is mirrored."""
    level = float(pane[:, 1].min() + share * np.ptp(pane[:, 1]))
    kept: list[tuple[float, float]] = []
    for (x0, z0), (x1, z1) in zip(pane, np.roll(pane, -1, 0), strict=True):
        if z0 >= level:
            kept.append((float(x0), float(z0)))
        if (z0 >= level) != (z1 >= level):
            kept.append((float(x0 + (x1 - x0) * (level - z0) / (z1 - z0)), level))
    return kept


def disc(x: float, y: float, z: float, radius: float, corners: int = 14) -> list[tuple[float, ...]]:
    turns = [2 * math.pi * k / corners for k in range(corners)]
    return [(x + radius * math.cos(t), y, z + radius * math.sin(t)) for t in turns]


def wheel(x: float, half: float, radius: float) -> list[Paint]:
    return [
        Paint(disc(x, half, radius + 0.04, radius * 1.16), UNDER),
        Paint(disc(x, half + 0.01, radius, radius), TYRE),
        Paint(disc(x, half + 0.01, radius, radius * 0.6, 10), RIM),
    ]


def mirrored(paint: Paint, sign: float) -> Paint:
    return Paint(
        [(x, sign * y, z) for x, y, z in paint.points], paint.colour, paint.glow, paint.corners
    )


def rect(x: float, y: tuple[float, float], z: tuple[float, float]) -> list[tuple[float, ...]]:
    return [(x, y[0], z[0]), (x, y[1], z[0]), (x, y[1], z[1]), (x, y[0], z[1])]


def face_lamps(
    builder: Builder,
    x: float,
    half: float,
    height: tuple[float, float],
    lit: bool,
    *,
    rear: bool,
    plate: bool = True,
) -> None:
    """A pair of lamps, a bumper line and a number plate on the rear or the front of a body."""
    z, tall = height
    colour = _RED if rear else _WARM
    glow = (0.9 if rear else 1.0) if lit else 0.25
    outer, inner = half * 0.97, half * (0.68 if rear else 0.62)
    details = [
        Paint(rect(x, (y0, y1), (z - tall / 2, z + tall / 2)), colour, glow)
        for y0, y1 in ((-outer, -inner), (inner, outer))
    ]
    if plate:
        details.append(Paint(rect(x, (-0.26, 0.26), (z - 0.22, z - 0.1)), _PLATE, 0.15))
    if not rear:
        details.append(Paint(rect(x, (-half * 0.55, half * 0.55), (z - 0.1, z + 0.06)), UNDER))
    strip = rect(x, (-half * 0.96, half * 0.96), (z - 0.42, z - 0.26))
    builder.face(strip if not rear else strip[::-1], UNDER, details=details)
    if lit:
        power = 0.55 if rear else 1.6
        for y in (-1.0, 1.0):
            at = (x, y * half * 0.82, z)
            builder.lamp(at, (1.0, 0.12, 0.08) if rear else _WARM, power, -1 if rear else 1)
