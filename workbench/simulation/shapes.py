"""The body of everybody on the road, by the name of its shape."""

from __future__ import annotations

from collections.abc import Callable

from workbench.errors import ParameterError
from workbench.simulation import debris, lorries, people, street, vehicles
from workbench.simulation.mesh import Mesh
from workbench.simulation.scenario import Actor, Pose

_PHASES = 12
_STRIDE_M = {"adult": 1.5, "child": 1.0, "bicycle": 5.0, "deer": 1.6}
_SIGNAL_S = (14.0, 2.0, 12.0)


def body(actor: Actor, pose: Pose, *, time_s: float, lit: bool) -> Mesh:
    """The mesh of an actor as it looks at this moment; equal looks share one mesh.

    Args:
        actor: Who.
        pose: Where; how far it has come decides where its legs are.
        time_s: Decides which lamp of a traffic light is on.
        lit: Whether lamps are on.

    Raises:
        ParameterError: Nobody has this shape.
    """
    shape = actor.shape
    if shape not in _BODIES:
        raise ParameterError(
            "nobody has this shape",
            where=f"{actor.track}: {shape}",
            hint=f"Known: {', '.join(SHAPES)}",
        )
    return _BODIES[shape](actor, pose, time_s, lit)


def _car(actor: Actor, pose: Pose, time_s: float, lit: bool) -> Mesh:
    return vehicles.car(actor.shape, actor.look, lit)


def _truck(actor: Actor, pose: Pose, time_s: float, lit: bool) -> Mesh:
    return lorries.truck(actor.shape, actor.look, lit)


def _person(actor: Actor, pose: Pose, time_s: float, lit: bool) -> Mesh:
    return people.walker(actor.shape, actor.look, _phase(actor, pose), pose.speed_mps > 0.05)


def _sign(actor: Actor, pose: Pose, time_s: float, lit: bool) -> Mesh:
    return street.sign(actor.shape, actor.look)


def _signal(actor: Actor, pose: Pose, time_s: float, lit: bool) -> Mesh:
    return street.signal(_signal_state(actor.look, time_s), actor.look % 2 == 0)


_BODIES: dict[str, Callable[[Actor, Pose, float, bool], Mesh]] = {
    **dict.fromkeys(vehicles.CARS, _car),
    **dict.fromkeys(("box-truck", "tractor"), _truck),
    "bus": lambda actor, pose, time_s, lit: lorries.bus(actor.look, lit),
    "motorcycle": lambda actor, pose, time_s, lit: people.motorcycle(actor.look, lit),
    "bicycle": lambda actor, pose, time_s, lit: people.cyclist(
        actor.look, _phase(actor, pose), lit
    ),
    **dict.fromkeys(("adult", "child"), _person),
    "deer": lambda actor, pose, time_s, lit: people.deer(actor.look, _phase(actor, pose)),
    "signal": _signal,
    **dict.fromkeys(("limit", "warning", "stop", "parking", "direction"), _sign),
    "cone": lambda actor, pose, time_s, lit: street.cone(actor.look % 2 == 0),
    "load": lambda actor, pose, time_s, lit: debris.load(actor.look),
    "ball": lambda actor, pose, time_s, lit: debris.ball(actor.look),
    "barrier": lambda actor, pose, time_s, lit: street.barrier(lit),
}
SHAPES = tuple(_BODIES)


def support(actor: Actor) -> Mesh | None:
    """The post below a sign or a traffic light: seen, but no part of its box."""
    if actor.cls == "traffic_light":
        return street.post(2.5)
    if actor.cls == "traffic_sign":
        return street.post(2.2)
    return None


def _phase(actor: Actor, pose: Pose) -> float:
    turns = pose.travelled_m / _STRIDE_M[actor.shape] + (actor.look % 97) / 97
    return int(turns % 1.0 * _PHASES) / _PHASES


def _signal_state(look: int, time_s: float) -> int:
    moment = (time_s + look % 28) % sum(_SIGNAL_S)
    if moment < _SIGNAL_S[0]:
        return 0
    return 2 if moment < _SIGNAL_S[0] + _SIGNAL_S[2] else 1
