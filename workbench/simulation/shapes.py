"""The body of every actor, by its shape."""

from __future__ import annotations

from functools import lru_cache

from workbench.simulation.mesh import Builder, Mesh
from workbench.simulation.scenario import Actor, Pose

_SIZES = {
    "car": (4.4, 1.8, 1.5),
    "truck": (8.0, 2.5, 3.5),
    "bus": (11.0, 2.5, 3.1),
    "motorcycle": (2.1, 0.8, 1.6),
    "pedestrian": (0.4, 0.6, 1.75),
    "cyclist": (1.8, 0.6, 1.75),
    "animal": (1.5, 0.45, 1.3),
    "traffic_light": (0.3, 0.35, 1.0),
    "traffic_sign": (0.05, 0.7, 0.7),
    "construction": (0.4, 0.4, 0.75),
}


def body(actor: Actor, pose: Pose) -> Mesh:
    return _plain(actor.cls)


@lru_cache(maxsize=64)
def _plain(cls: str) -> Mesh:
    length, width, height = _SIZES[cls]
    builder = Builder()
    builder.box((-length / 2, length / 2), (-width / 2, width / 2), (0, height), (0.6, 0.2, 0.2))
    return builder.build((length, width))
