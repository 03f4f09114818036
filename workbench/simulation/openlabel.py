"""ASAM OpenLABEL 1.0.0 JSON out: the rendered targets, frame by frame, with the scenario's tags."""

from __future__ import annotations

from collections.abc import Iterable

from workbench.core.errors import DataError
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


def check_openlabel(document: Json) -> None:
    """Check the structure of an OpenLABEL document as far as this module writes it.

    Raises:
        DataError: A required part is missing, an id is unknown, or a value is invalid.
    """

    def require(condition: bool, what: str) -> None:
        if not condition:
            raise DataError(f"not valid OpenLABEL: {what}")

    require(set(document) == {"openlabel"}, "the root is not `openlabel`")
    body = document["openlabel"]
    require(body.get("metadata", {}).get("schema_version") == _VERSION, "schema_version")
    objects, frames = body.get("objects", {}), body.get("frames", {})
    for identity, one in objects.items():
        require({"name", "type"} <= set(one), f"object {identity} lacks a name or type")
    for tag in body.get("tags", {}).values():
        require(tag.get("ontology_uid") in body.get("ontologies", {}), "a tag without ontology")
    numbers = [int(key) for key in frames]
    require(numbers == sorted(set(numbers)), "frames are not in order")
    for interval in body.get("frame_intervals", []):
        first, last = interval["frame_start"], interval["frame_end"]
        require(not numbers or (first, last) == (numbers[0], numbers[-1]), "frame_intervals")
    for number, frame in frames.items():
        for identity, held in frame.get("objects", {}).items():
            require(identity in objects, f"frame {number} has an unknown object {identity}")
            for box in held["object_data"].get("bbox", []):
                value = box.get("val", [])
                fine = len(value) == 4 and value[2] > 0 and value[3] > 0
                require(fine and "name" in box, f"frame {number} has an invalid bbox")
