"""Label schemas: the default for front cameras, and schemas from YAML files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import yaml
from pydantic import ValidationError

from workbench.core.errors import DataError, ParameterError
from workbench.records.frames import LabelSchema

__all__ = ["FRONT_CAMERA", "load_schema", "with_mapping"]

IGNORE = "ignore"
"""Source names that map to this become ignore regions."""

DROP = "drop"
"""Source names that map to this are left out without being quarantined."""

_FRONT_CAMERA_MAPPING = {
    # The names of COCO, BDD100K, nuScenes, Cityscapes and CamVid.
    "person": "pedestrian",
    "people": "pedestrian",
    "person_sitting": "pedestrian",
    "child": "pedestrian",
    "bicyclist": "cyclist",
    "rider": "cyclist",
    "van": "car",
    "suv": "car",
    "pickup": "car",
    "suvpickuptruck": "car",
    "taxi": "car",
    "lorry": "truck",
    "truck_bus": "truck",
    "trailer": "truck",
    "coach": "bus",
    "motor": "motorcycle",
    "motorbike": "motorcycle",
    "motorcyclist": "motorcycle",
    "motorcyclescooter": "motorcycle",
    "dog": "animal",
    "cat": "animal",
    "horse": "animal",
    "sheep": "animal",
    "cow": "animal",
    "deer": "animal",
    "trafficlight": "traffic_light",
    "traffic_sign_front": "traffic_sign",
    "signsymbol": "traffic_sign",
    "stop_sign": "traffic_sign",
    "traffic_cone": "construction",
    "trafficcone": "construction",
    "traffic_barrier": "construction",
    "barrier": "construction",
    # Regions of unknown content, and objects that resemble a class: a parked bicycle is not a
    # cyclist, but a model that detects one there is not wrong either.
    "dontcare": IGNORE,
    "dont_care": IGNORE,
    "ignored": IGNORE,
    "bicycle": IGNORE,
    "bike": IGNORE,
    "tram": IGNORE,
    "train": IGNORE,
    "caravan": IGNORE,
    "misc": DROP,
    "void": DROP,
    "background": DROP,
}

FRONT_CAMERA = LabelSchema(
    name="front-camera",
    version=1,
    classes=(
        "car",
        "truck",
        "bus",
        "motorcycle",
        "pedestrian",
        "cyclist",
        "animal",
        "traffic_light",
        "traffic_sign",
        "construction",
    ),
    # As in Euro NCAP's tests, motorcycles are among the vulnerable road users.
    vulnerable=("pedestrian", "cyclist", "motorcycle"),
    mapping=_FRONT_CAMERA_MAPPING,
)


def with_mapping(schema: LabelSchema, extra: Mapping[str, str]) -> LabelSchema:
    """Add source names to the mapping of a schema.

    Args:
        extra: A class, ``ignore`` or ``drop`` by source name.

    Raises:
        ParameterError: A target is neither a class nor ``ignore`` nor ``drop``.
    """
    for source, target in extra.items():
        if target not in (*schema.classes, IGNORE, DROP):
            raise ParameterError(
                f"cannot map {source!r} to {target!r}: no such class",
                where=f"schema {schema.name}",
                hint=f"Use one of {', '.join((*schema.classes, IGNORE, DROP))}",
            )
    names = {_normalize(source): target for source, target in extra.items()}
    return schema.model_copy(update={"mapping": {**schema.mapping, **names}})


def load_schema(path: Path) -> LabelSchema:
    """Read a schema from a YAML file with the fields of `LabelSchema`.

    Raises:
        DataError: The file cannot be read, or is not a valid schema.
    """
    hint = "Required: name, version, classes; optional: vulnerable, mapping"
    try:
        body = yaml.safe_load(path.read_text())
        schema = LabelSchema.model_validate(body)
    except (OSError, UnicodeDecodeError, yaml.YAMLError, ValidationError) as error:
        raise DataError("cannot read a label schema", where=path, hint=hint) from error
    if len(set(schema.classes)) != len(schema.classes) or not schema.classes:
        raise DataError(
            "a schema needs at least one class, and no class twice", where=path, hint=hint
        )
    unknown = sorted(set(schema.vulnerable) - set(schema.classes))
    if unknown:
        raise DataError(f"unknown classes in vulnerable: {', '.join(unknown)}", where=path)
    return with_mapping(schema.model_copy(update={"mapping": {}}), schema.mapping)


def _normalize(name: str) -> str:
    return name.strip().lower().replace(" ", "_")
