"""Label schemas: the default for front cameras, and schemas from YAML files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import yaml
from pydantic import ValidationError

from workbench.core.errors import DataError, ParameterError
from workbench.core.names import check_text
from workbench.core.parsing import read_yaml
from workbench.core.text import did_you_mean
from workbench.records.frames import LabelSchema, Question

__all__ = ["FRONT_CAMERA", "load_schema", "read_mapping", "with_mapping"]

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


def read_mapping(text: str, folder: Path = Path()) -> dict[str, str]:
    """What names of a source mean in a schema, as it is given on a command line.

    Args:
        text: ``SOURCE=CLASS,SOURCE=CLASS``, or the name of a YAML file with one ``SOURCE: CLASS`` a
            line (also below a key ``mapping``, as in a schema); empty for none.
        folder: Where relative file names start.

    Raises:
        ParameterError: The text is neither pairs nor a file.
        DataError: The file has something else in it.
    """
    if "=" in text:
        pairs = [part.rpartition("=") for part in text.split(",")]
        for source, _, target in pairs:
            if not source.strip() or not target.strip():
                raise ParameterError(
                    "invalid class mapping",
                    where=text,
                    hint="Write SOURCE=CLASS,SOURCE=CLASS, or the name of a YAML file",
                )
        return {source.strip(): target.strip() for source, _, target in pairs}
    if not text:
        return {}
    path = folder / text
    if not path.is_file():
        raise ParameterError(
            "a class mapping is neither SOURCE=CLASS nor a file",
            where=text,
            hint="Write SOURCE=CLASS,SOURCE=CLASS, or the name of a YAML file",
        )
    body = _read_yaml(path, "a class mapping")
    pairs_of = body.get("mapping", body) if isinstance(body, dict) else None
    if not isinstance(pairs_of, dict) or not all(
        isinstance(word, str) for pair in pairs_of.items() for word in pair
    ):
        raise DataError(
            "a class mapping needs one `SOURCE: CLASS` a line, both of them text",
            where=path,
            hint="Put names that YAML reads as numbers or flags in quotes",
        )
    return pairs_of


def load_schema(path: Path) -> LabelSchema:
    """Read a schema from a YAML file with the fields of `LabelSchema`.

    Raises:
        DataError: The file cannot be read, or is not a valid schema. The message names the field.
    """
    body = _read_yaml(path, "a label schema")
    if not isinstance(body, dict):
        raise DataError("a label schema needs fields, such as `classes:`", where=path, hint=_HINT)
    try:
        schema = LabelSchema.model_validate(body)
    except ValidationError as error:
        raise _invalid_field(error, path) from error
    problem = _contradiction(schema)
    if problem:
        raise DataError(problem, where=path, hint=_HINT)
    try:
        check_text(schema.name, "schema name")
        for cls in schema.classes:
            check_text(cls, "class name")
        for question in (*schema.box_questions, *schema.frame_questions):
            for answer in question.answers:
                check_text(answer, "answer to a question")
        return with_mapping(schema.model_copy(update={"mapping": {}}), schema.mapping)
    except ParameterError as error:
        raise DataError(error.what, where=path, hint=error.hint) from error


_HINT = "`workbench schema new` writes a commented example"


def _read_yaml(path: Path, what: str) -> object:
    try:
        return read_yaml(path)
    except (OSError, yaml.YAMLError) as error:
        mark = getattr(error, "problem_mark", None)
        reason = getattr(error, "problem", None) or getattr(error, "strerror", None) or error
        at = f", line {mark.line + 1}" if mark else ""
        raise DataError(f"cannot read {what}: {reason}", where=f"{path}{at}") from error


def _invalid_field(error: ValidationError, path: Path) -> DataError:
    # A misspelt field is also a missing one.
    first = min(error.errors(), key=lambda found: found["type"] != "extra_forbidden")
    field = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        known = LabelSchema.model_fields if len(first["loc"]) == 1 else Question.model_fields
        hint = did_you_mean(str(first["loc"][-1]), known)
        return DataError(f"unknown field {field!r}", where=path, hint=hint)
    if first["type"] == "missing":
        return DataError(f"field {field!r} is missing", where=path, hint=_HINT)
    return DataError(f"field {field!r}: {first['msg']}", where=path, hint=_HINT)


def _contradiction(schema: LabelSchema) -> str:
    """What contradicts itself in a schema; empty if nothing does."""
    names = [_normalize(name) for name in schema.classes]
    twice = sorted({name for name in names if names.count(name) > 1})
    reserved = sorted({IGNORE, DROP} & set(names))
    questions = [question.name for question in (*schema.box_questions, *schema.frame_questions)]
    asked_twice = sorted({name for name in questions if questions.count(name) > 1})
    unanswered = [q.name for q in (*schema.box_questions, *schema.frame_questions) if not q.answers]
    found = {
        "a schema needs at least one class": not names,
        f"classes that differ only in case or spaces: {', '.join(twice)}": twice,
        f"no class can be named {' or '.join(reserved)}": reserved,
        **{
            f"unknown classes in {field}: {', '.join(sorted(unknown))}": unknown
            for field in ("vulnerable", "definitions")
            if (unknown := set(getattr(schema, field)) - set(schema.classes))
        },
        f"questions asked twice: {', '.join(asked_twice)}": asked_twice,
        f"questions without answers: {', '.join(unanswered)}": unanswered,
        "shapes is empty; the default is [box]": not schema.shapes,
    }
    return next((problem for problem, holds in found.items() if holds), "")


def _normalize(name: str) -> str:
    return name.strip().lower().replace(" ", "_")
