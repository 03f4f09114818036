"""The label schema of front cameras, and how the names that sources use map onto it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import yaml
from pydantic import ValidationError

from workbench.core.errors import DataError, ParameterError
from workbench.records.frames import LabelSchema

IGNORE = "ignore"
"""A source name mapped to this becomes a region that is not scored."""

DROP = "drop"
"""A source name mapped to this is left out on purpose, so it is not quarantined either."""

_FRONT_CAMERA_MAPPING = {
    # COCO, BDD100K, nuScenes, Cityscapes and CamVid say these differently and mean the same.
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
    # Regions whose content nobody vouches for, and things near a class without being of it: a
    # parked bicycle is no cyclist, but a model that finds one there is not wrong either.
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
    # Powered two-wheelers count: Euro NCAP tests them among vulnerable road users.
    vulnerable=("pedestrian", "cyclist", "motorcycle"),
    mapping=_FRONT_CAMERA_MAPPING,
)


def with_mapping(schema: LabelSchema, extra: Mapping[str, str]) -> LabelSchema:
    """``schema`` with further source names; each goes to a class, ``ignore`` or ``drop``.

    Raises:
        ParameterError: A target that is none of these.
    """
    for source, target in extra.items():
        if target not in (*schema.classes, IGNORE, DROP):
            raise ParameterError(
                f"cannot map {source!r} to {target!r}: there is no such class",
                where=f"schema {schema.name}",
                hint=f"Use one of {', '.join((*schema.classes, IGNORE, DROP))}",
            )
    names = {_normalize(source): target for source, target in extra.items()}
    return schema.model_copy(update={"mapping": {**schema.mapping, **names}})


def load_schema(path: Path) -> LabelSchema:
    """Read a schema from YAML with the fields of `LabelSchema`.

    Raises:
        DataError: The file is away, is not YAML, or does not describe a schema.
    """
    hint = "It needs name, version and classes; vulnerable and mapping are optional"
    try:
        body = yaml.safe_load(path.read_text())
        schema = LabelSchema.model_validate(body)
    except (OSError, UnicodeDecodeError, yaml.YAMLError, ValidationError) as error:
        raise DataError("cannot read a label schema", where=path, hint=hint) from error
    if len(set(schema.classes)) != len(schema.classes) or not schema.classes:
        raise DataError("a schema needs classes, each once", where=path, hint=hint)
    strangers = set(schema.vulnerable) - set(schema.classes)
    if strangers:
        raise DataError(
            f"vulnerable names what is no class: {', '.join(sorted(strangers))}", where=path
        )
    return with_mapping(schema.model_copy(update={"mapping": {}}), schema.mapping)


def _normalize(name: str) -> str:
    return name.strip().lower().replace(" ", "_")
