"""The body of everybody on the road, by the name of its shape."""

from __future__ import annotations

from workbench.errors import ParameterError
from workbench.simulation import people, street, vehicles
from workbench.simulation.mesh import Mesh
from workbench.simulation.scenario import Actor, Pose

_PHASES = 12
_STRIDE_M = {"adult": 1.5, "child": 1.0, "bicycle": 5.0, "deer": 1.6}
_SIGNAL_S = (14.0, 2.0, 12.0)

VEHICLES = ("sedan", "hatchback", "suv", "van")
SHAPES = (
    *VEHICLES,
    *("box-truck", "tractor", "bus", "motorcycle", "bicycle", "adult", "child", "deer"),
    *("signal", "limit", "warning", "stop", "parking", "direction", "cone", "barrier"),
)


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
    shape, look = actor.shape, actor.look
    if shape in VEHICLES:
        return vehicles.car(shape, look, lit)
    if shape in ("adult", "child"):
        return people.walker(shape, look, _phase(actor, pose), pose.speed_mps > 0.05)
    if shape in ("box-truck", "tractor"):
        return vehicles.truck(shape, look, lit)
    return _rarer(actor, pose, time_s, lit)


def _rarer(actor: Actor, pose: Pose, time_s: float, lit: bool) -> Mesh:
    shape, look = actor.shape, actor.look
    if shape == "bus":
        return vehicles.bus(look, lit)
    if shape == "motorcycle":
        return people.motorcycle(look, lit)
    if shape == "bicycle":
        return people.cyclist(look, _phase(actor, pose), lit)
    if shape == "deer":
        return people.deer(look, _phase(actor, pose))
    if shape == "signal":
        return street.signal(_signal_state(look, time_s), look % 2 == 0)
    if shape == "cone":
        return street.cone(look % 2 == 0)
    if shape == "barrier":
        return street.barrier(lit)
    if actor.cls == "traffic_sign" and shape in SHAPES:
        return street.sign(shape, look)
    raise ParameterError(
        "nobody has this shape", where=f"{actor.track}: {shape}", hint=f"Known: {', '.join(SHAPES)}"
    )


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
