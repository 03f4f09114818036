"""Meshes of cars, trucks and buses."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from workbench.simulation.geometry import Colour, Mesh, MeshBuilder, PaintedFace

__all__ = ()

_SideProfile = Sequence[tuple[float, float]]

_GLASS: Colour = (0.16, 0.20, 0.24)
_SHEEN: Colour = (0.42, 0.50, 0.56)
_TYRE: Colour = (0.07, 0.07, 0.075)
_RIM: Colour = (0.55, 0.56, 0.58)
_UNDERBODY: Colour = (0.05, 0.05, 0.055)
_REAR_LAMP: Colour = (0.80, 0.06, 0.05)
_FRONT_LAMP: Colour = (1.0, 0.95, 0.82)
_NUMBER_PLATE: Colour = (0.92, 0.92, 0.88)

_PAINTS: tuple[Colour, ...] = (
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


@dataclass(frozen=True)
class _CarShape:
    """Side outlines ``(x, z)`` of body and cabin, and sizes, all in metres."""

    body: _SideProfile
    cabin: _SideProfile
    half_width: float
    wheel_radius: float
    half_wheelbase: float


def _outline(text: str) -> _SideProfile:
    points = (point.split() for point in text.split(","))
    return [(float(x), float(z)) for x, z in points]


CAR_SHAPES = {
    "sedan": _CarShape(
        _outline(
            "-2.25 0.3, 2.25 0.3, 2.28 0.62, 2.1 0.8, 0.95 0.96, -1.55 1.0, -2.2 0.96, -2.28 0.66"
        ),
        _outline("0.95 0.95, 0.2 1.44, -0.95 1.45, -1.75 0.99"),
        half_width=0.91,
        wheel_radius=0.32,
        half_wheelbase=1.38,
    ),
    "hatchback": _CarShape(
        _outline("-1.95 0.3, 1.98 0.3, 2.0 0.66, 1.85 0.84, 0.95 1.0, -1.85 1.02, -2.0 0.7"),
        _outline("0.95 0.99, 0.3 1.5, -1.35 1.52, -1.88 1.01"),
        half_width=0.88,
        wheel_radius=0.31,
        half_wheelbase=1.27,
    ),
    "suv": _CarShape(
        _outline("-2.25 0.36, 2.25 0.36, 2.28 0.8, 2.1 1.0, 0.95 1.1, -2.15 1.14, -2.3 0.8"),
        _outline("0.95 1.09, 0.35 1.68, -1.75 1.72, -2.2 1.13"),
        half_width=0.96,
        wheel_radius=0.37,
        half_wheelbase=1.4,
    ),
    "van": _CarShape(
        _outline("-2.5 0.32, 2.45 0.32, 2.5 0.75, 2.35 1.0, 1.65 1.16, -2.5 1.16"),
        _outline("1.65 1.15, 0.95 1.98, -2.42 2.0, -2.5 1.15"),
        half_width=0.98,
        wheel_radius=0.34,
        half_wheelbase=1.55,
    ),
}


@lru_cache(maxsize=2048)
def car_mesh(shape: str, look: int, lit: bool) -> Mesh:
    """A sedan, hatchback, suv or van; ``look`` is the seed of its colour and size."""
    rng = np.random.default_rng(look)
    paint = _PAINTS[int(rng.choice(len(_PAINTS), p=_PAINT_WEIGHTS))]
    size = float(rng.uniform(0.95, 1.06))
    car = CAR_SHAPES[shape]
    half, base = car.half_width, car.half_wheelbase * size
    body = [(x * size, z) for x, z in car.body]
    cabin = [(x * size, z) for x, z in car.cabin]
    builder = MeshBuilder()
    long = body[1][0]
    builder.box(
        (-long * 0.93, long * 0.93),
        (-half * 0.88, half * 0.88),
        (0.0, 0.32),
        _UNDERBODY,
        under=True,
    )
    tyres = [paint for x in (-base, base) for paint in _wheel(x, half, car.wheel_radius)]
    _shell(builder, body, half, half, paint, sides=tyres)
    top = half - 0.18 - (0.0 if shape != "van" else -0.08)
    _shell(builder, cabin, half - 0.03, top, paint, windows=True, blind_rear=shape == "van")
    rear, front = body[-1][0] - 0.02, body[2][0] + 0.02
    _face_lamps(builder, rear, half, (body[-1][1] + 0.05, 0.17), lit, rear=True)
    _face_lamps(builder, front, half, (body[2][1] + 0.02, 0.15), lit, rear=False)
    return builder.build((2 * long, 2 * half))


def _shell(
    builder: MeshBuilder,
    profile: _SideProfile,
    low: float,
    high: float,
    paint: Colour,
    *,
    sides: Sequence[PaintedFace] = (),
    windows: bool = False,
    blind_rear: bool = False,
) -> None:
    """Extrude a side profile to half width ``low`` at the bottom and ``high`` at the top."""
    bottom, top = min(z for _, z in profile), max(z for _, z in profile)

    def half(z: float) -> float:
        return low + (high - low) * (z - bottom) / (top - bottom)

    for sign in (-1.0, 1.0):
        outline = [(x, sign * half(z), z) for x, z in profile]
        ordered = outline if sign < 0 else outline[::-1]
        details = [_mirrored(detail, sign) for detail in sides]
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


def _inset(
    quad: Sequence[tuple[float, float, float]], share: float, z_from: float = 0.0
) -> PaintedFace:
    """A window inside a face."""
    corners = np.array(quad)
    middle = corners.mean(0)
    pane = middle + (corners - middle) * (1 - share)
    if z_from:
        low = corners[:, 2].min() + z_from * np.ptp(corners[:, 2])
        pane[:, 2] = np.maximum(pane[:, 2], low)
    return PaintedFace(pane.tolist(), _GLASS)


def _side_windows(
    profile: _SideProfile, sign: float, half: Callable[[float], float], blind_rear: bool
) -> list[PaintedFace]:
    corners = np.array(profile)
    middle = corners.mean(0)
    pane = middle + (corners - middle) * np.array([0.88, 0.74])
    if blind_rear:
        pane = middle + (corners - middle) * np.array([0.94, 0.74])
        pane[:, 0] = np.maximum(pane[:, 0], 0.25)
    points = [(x, sign * (half(z) + 0.005), z) for x, z in pane]
    post_x = float(middle[0]) + 0.02
    low, high = float(pane[:, 1].min()), float(pane[:, 1].max())
    paints = [PaintedFace(points, _GLASS)]
    sheen = [(x, sign * (half(z) + 0.006), z) for x, z in _upper(pane, 0.72)]
    if len(sheen) >= 3:
        paints.append(PaintedFace(sheen, _SHEEN))
    if not blind_rear:
        post = [
            (post_x - 0.05, low),
            (post_x + 0.05, low),
            (post_x + 0.05, high),
            (post_x - 0.05, high),
        ]
        paints.append(PaintedFace([(x, sign * (half(z) + 0.007), z) for x, z in post], _UNDERBODY))
    return paints


def _upper(pane: NDArray[np.float64], share: float) -> list[tuple[float, float]]:
    """The part of a convex outline above ``share`` of its height: it reflects the sky."""
    level = float(pane[:, 1].min() + share * np.ptp(pane[:, 1]))
    kept: list[tuple[float, float]] = []
    for (x0, z0), (x1, z1) in zip(pane, np.roll(pane, -1, 0), strict=True):
        if z0 >= level:
            kept.append((float(x0), float(z0)))
        if (z0 >= level) != (z1 >= level):
            kept.append((float(x0 + (x1 - x0) * (level - z0) / (z1 - z0)), level))
    return kept


def _disc(
    x: float, y: float, z: float, radius: float, corners: int = 14
) -> list[tuple[float, ...]]:
    turns = [2 * math.pi * k / corners for k in range(corners)]
    return [(x + radius * math.cos(t), y, z + radius * math.sin(t)) for t in turns]


def _wheel(x: float, half: float, radius: float) -> list[PaintedFace]:
    return [
        PaintedFace(_disc(x, half, radius + 0.04, radius * 1.16), _UNDERBODY),
        PaintedFace(_disc(x, half + 0.01, radius, radius), _TYRE),
        PaintedFace(_disc(x, half + 0.01, radius, radius * 0.6, 10), _RIM),
    ]


def _mirrored(paint: PaintedFace, sign: float) -> PaintedFace:
    return PaintedFace(
        [(x, sign * y, z) for x, y, z in paint.points], paint.colour, paint.glow, paint.corners
    )


def _rect(x: float, y: tuple[float, float], z: tuple[float, float]) -> list[tuple[float, ...]]:
    return [(x, y[0], z[0]), (x, y[1], z[0]), (x, y[1], z[1]), (x, y[0], z[1])]


def _face_lamps(
    builder: MeshBuilder,
    x: float,
    half: float,
    height: tuple[float, float],
    lit: bool,
    *,
    rear: bool,
    plate: bool = True,
) -> None:
    """A pair of lamps, a bumper and a number plate on the rear or front of a body."""
    z, tall = height
    colour = _REAR_LAMP if rear else _FRONT_LAMP
    glow = (0.9 if rear else 1.0) if lit else 0.25
    outer, inner = half * 0.97, half * (0.68 if rear else 0.62)
    details = [
        PaintedFace(_rect(x, (y0, y1), (z - tall / 2, z + tall / 2)), colour, glow)
        for y0, y1 in ((-outer, -inner), (inner, outer))
    ]
    if plate:
        details.append(
            PaintedFace(_rect(x, (-0.26, 0.26), (z - 0.22, z - 0.1)), _NUMBER_PLATE, 0.15)
        )
    if not rear:
        details.append(
            PaintedFace(_rect(x, (-half * 0.55, half * 0.55), (z - 0.1, z + 0.06)), _UNDERBODY)
        )
    strip = _rect(x, (-half * 0.96, half * 0.96), (z - 0.42, z - 0.26))
    builder.face(strip if not rear else strip[::-1], _UNDERBODY, details=details)
    if lit:
        power = 0.55 if rear else 1.6
        for y in (-1.0, 1.0):
            at = (x, y * half * 0.82, z)
            builder.lamp(at, (1.0, 0.12, 0.08) if rear else _FRONT_LAMP, power, -1 if rear else 1)


_CHROME: Colour = (0.75, 0.76, 0.78)
_CARGO_COLOURS: tuple[Colour, ...] = (
    (0.93, 0.93, 0.92),
    (0.86, 0.87, 0.88),
    (0.80, 0.72, 0.30),
    (0.20, 0.36, 0.62),
    (0.70, 0.22, 0.18),
    (0.32, 0.48, 0.34),
)


@lru_cache(maxsize=512)
def truck_mesh(shape: str, look: int, lit: bool) -> Mesh:
    """A rigid box truck or a tractor with its trailer."""
    rng = np.random.default_rng(look)
    cab = _PAINTS[int(rng.choice(len(_PAINTS)))]
    cargo = _CARGO_COLOURS[int(rng.choice(len(_CARGO_COLOURS)))]
    tractor = shape == "tractor"
    length = float(rng.uniform(11.5, 13.0) if tractor else rng.uniform(6.8, 8.2))
    height = float(rng.uniform(3.6, 3.9) if tractor else rng.uniform(3.1, 3.5))
    half, nose, split = 1.25, length / 2, length / 2 - 2.1
    builder = MeshBuilder()
    builder.box(
        (-nose + 0.3, nose - 0.1), (-half * 0.8, half * 0.8), (0.0, 0.95), _UNDERBODY, under=True
    )
    _cargo(builder, (-nose, split - 0.25), half, height, cargo)
    _cab(builder, (split, nose), half, min(height - 0.2, 3.0), cab)
    axles = [nose - 1.1, -nose + 1.3, -nose + 2.4]
    axles += [-nose + 3.5] if tractor else []
    for sign in (-1.0, 1.0):
        y = sign * half * 0.92
        strip = [(-nose, y, 0.5), (nose, y, 0.5), (nose, y, 0.9), (-nose, y, 0.9)]
        wheels = [
            _mirrored(part, sign)
            for axle in axles
            for part in (
                PaintedFace(_disc(axle, half * 0.94, 0.5, 0.5), _TYRE),
                PaintedFace(_disc(axle, half * 0.95, 0.5, 0.26, 10), _RIM),
            )
        ]
        builder.face(strip if sign < 0 else strip[::-1], _UNDERBODY, details=wheels)
    _face_lamps(builder, -nose - 0.02, half, (0.86, 0.16), lit, rear=True)
    _face_lamps(builder, nose + 0.02, half, (0.8, 0.2), lit, rear=False)
    return builder.build((length, 2 * half))


def _cargo(
    builder: MeshBuilder, x: tuple[float, float], half: float, height: float, colour: Colour
) -> None:
    low = 0.95
    dark: Colour = (colour[0] * 0.7, colour[1] * 0.7, colour[2] * 0.7)
    rear = _rect(x[0], (-half, half), (low, height))
    doors = [
        PaintedFace(_rect(x[0], (-0.03, 0.03), (low, height)), dark),
        PaintedFace(_rect(x[0], (-half, half), (height - 0.12, height - 0.04)), dark),
        PaintedFace(_rect(x[0], (-0.5, -0.42), (low + 0.1, height - 0.15)), _CHROME),
        PaintedFace(_rect(x[0], (0.42, 0.5), (low + 0.1, height - 0.15)), _CHROME),
    ]
    builder.face(rear[::-1], colour, details=doors)
    builder.face(_rect(x[1], (-half, half), (low, height)), dark)
    band = (low + 0.35 * (height - low), low + 0.6 * (height - low))
    for sign in (-1.0, 1.0):
        y = sign * half
        side = [(x[0], y, low), (x[1], y, low), (x[1], y, height), (x[0], y, height)]
        stripe = [(x[0], y, band[0]), (x[1], y, band[0]), (x[1], y, band[1]), (x[0], y, band[1])]
        builder.face(side if sign < 0 else side[::-1], colour, details=[PaintedFace(stripe, dark)])
    roof = [
        (x[0], -half, height),
        (x[1], -half, height),
        (x[1], half, height),
        (x[0], half, height),
    ]
    builder.face(roof, colour)


def _cab(
    builder: MeshBuilder, x: tuple[float, float], half: float, height: float, colour: Colour
) -> None:
    low, slope = 0.6, 0.25
    profile = [(x[0], low), (x[1], low), (x[1], 1.6), (x[1] - slope, height), (x[0], height)]
    glass = PaintedFace(
        [
            (x[0] + 0.9, half + 0.01, 1.6),
            (x[1] - 0.15, half + 0.01, 1.6),
            (x[1] - 0.35, half + 0.01, height - 0.35),
            (x[0] + 0.9, half + 0.01, height - 0.35),
        ],
        _GLASS,
    )
    _shell(builder, profile, half, half, colour, sides=[glass])
    front = [
        (x[1] + 0.01, -half * 0.9, 1.7),
        (x[1] + 0.01, half * 0.9, 1.7),
        (x[1] - slope + 0.05, half * 0.9, height - 0.3),
        (x[1] - slope + 0.05, -half * 0.9, height - 0.3),
    ]
    builder.face(front, _GLASS)


@lru_cache(maxsize=256)
def bus_mesh(look: int, lit: bool) -> Mesh:
    """A city bus with a band of windows."""
    rng = np.random.default_rng(look)
    colour = ((0.85, 0.30, 0.10), (0.88, 0.74, 0.16), (0.18, 0.42, 0.62), (0.9, 0.9, 0.88))[
        int(rng.integers(4))
    ]
    length, height, half = float(rng.uniform(10.5, 12.2)), 3.05, 1.27
    nose = length / 2
    builder = MeshBuilder()
    builder.box(
        (-nose + 0.2, nose - 0.2), (-half * 0.9, half * 0.9), (0.0, 0.4), _UNDERBODY, under=True
    )
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
    inside: Colour = (0.95, 0.9, 0.7) if lit else _GLASS
    details = [PaintedFace(panes, inside, 0.75 if lit else 0.0, 4)]
    for axle in (-nose + 2.6, nose - 2.7):
        details += _wheel(axle, half, 0.48)
    profile = [(-nose, 0.35), (nose, 0.35), (nose, height), (-nose, height)]
    _shell(builder, profile, half, half, colour, sides=details)
    back = _rect(-nose - 0.01, (-half * 0.82, half * 0.82), (1.75, 2.65))
    builder.face(back[::-1], _GLASS)
    shield = _rect(nose + 0.01, (-half * 0.93, half * 0.93), (1.15, 2.5))
    sign = PaintedFace(
        _rect(nose + 0.02, (-half * 0.6, half * 0.6), (2.6, 2.9)), (0.95, 0.6, 0.1), 0.8
    )
    builder.face(shield, _GLASS, details=[sign])
    _face_lamps(builder, -nose - 0.02, half, (0.95, 0.3), lit, rear=True)
    _face_lamps(builder, nose + 0.02, half, (0.72, 0.2), lit, rear=False)
    return builder.build((length, 2 * half))
