"""ASAM OpenLABEL 1.0.0 JSON out: the rendered targets, frame by frame, with the scenario's tags."""

from __future__ import annotations

from collections.abc import Iterable

from workbench.core.types import Json
from workbench.simulation.play import TARGET, PlayedCase

__all__ = ()

_VERSION = "1.0.0"


def to_openlabel(played: Iterable[PlayedCase]) -> Json:
    """One OpenLABEL document for several cases: each target is an object, its frames follow.

    Frames are numbered on through the cases; a tag names the case of its frame interval. Boxes are
    ``[x, y, w, h]`` with x and y the *centre* in pixels, as OpenLABEL defines ``bbox``.
    """
    objects: Json = {}
    frames: Json = {}
    tags: Json = {}
    start = 0
    for number, one in enumerate(played):
        identity, end = str(number), start + one.result.frames - 1
        interval = [{"frame_start": start, "frame_end": end}]
        actor = one.scenario.actors[0]
        objects[identity] = {
            "name": f"{one.case.id}/{TARGET}",
            "type": actor.cls,
            "frame_intervals": interval,
            "object_data_pointers": {"shape": {"type": "bbox", "frame_intervals": interval}},
        }
        tags[identity] = {
            "type": "ScenarioCase",
            "ontology_uid": "0",
            "tag_data": {
                "text": [
                    {"name": "case", "val": one.case.id},
                    {"name": "light", "val": one.case.light},
                    {"name": "evidence", "val": "simulated"},
                ],
                "num": [
                    {"name": "ego_kmh", "val": one.case.ego_kmh},
                    {"name": "target_kmh", "val": one.case.target_kmh},
                ],
            },
        }
        for index, (target, score) in enumerate(zip(one.targets, one.found, strict=True)):
            properties = {"timestamp": f"{one.scenario.time_s(index):.3f}"}
            frame: Json = {"frame_properties": properties}
            if target is not None:
                x0, y0, x1, y1 = target
                value = [(x0 + x1) / 2, (y0 + y1) / 2, x1 - x0, y1 - y0]
                box: Json = {
                    "name": "shape",
                    "val": [round(v, 2) for v in value],
                    "attributes": {"boolean": [{"name": "found", "val": bool(score)}]},
                }
                frame["objects"] = {identity: {"object_data": {"bbox": [box]}}}
            frames[str(start + index)] = frame
        start = end + 1
    return {
        "openlabel": {
            "metadata": {
                "schema_version": _VERSION,
                "comment": "Rendered scenes: simulated, not recorded",
            },
            "ontologies": {"0": "urn:workbench:scenarios"},
            "objects": objects,
            "tags": tags,
            "frames": frames,
            "frame_intervals": [{"frame_start": 0, "frame_end": max(start - 1, 0)}],
        }
    }
