"""Slices as predicates in a YAML file: one definition for training, labeling and judging.

    slices:
      night_vru:
        help: vulnerable road users by night
        where:
          all:
            - environment.illumination: night
            - agent.class: vru

Keys follow the taxonomy of ISO 34503:2023 (scenery, environmental conditions, dynamic elements);
``box.``, ``label.`` and ``time.`` say where a box lies, how well it can be seen, and when. A value
is a word, a list of words (any of them), or for numbers ``{min: …, max: …}``, both included.
``all``, ``any`` and ``not`` compose. What the source does not tell meets no condition, and its
negation neither: ``not: {environment.weather: rain}`` leaves out frames of unknown weather.

Terms about frames and terms about labels may be joined by ``all`` only: a frame outside a slice is
left out whole, a label outside it becomes ignored truth, and no third thing would have a meaning.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from workbench.core.errors import ParameterError
from workbench.core.names import check_name
from workbench.core.parsing import read_yaml
from workbench.core.text import did_you_mean
from workbench.core.types import Json
from workbench.data.slices import ALL_AREAS, ALL_FRAMES, VULNERABLE, Slice
from workbench.records.frames import (
    CONDITION_VALUES,
    UNKNOWN,
    Frame,
    Label,
    LabelSchema,
    condition_values,
)

__all__ = ["load_slices"]

_FRAME_WORDS = {
    "environment.illumination": "light",
    "environment.weather": "weather",
    "scenery.road_works": "construction",
    "dynamic.event": "event",
    "drive": "drive",
    "role": "role",
}
"""Key in the file to a condition of a frame; road works are ISO's temporary road structures."""
_ATTRIBUTE = "attribute."
_LABEL_ATTRIBUTE = "label.attribute."
_CLASS = "agent.class"
_AREA = "box.area_px2"
_FRAME_NUMBERS: dict[str, Callable[[Frame], float | None]] = {
    "time.drive_s": lambda frame: None if frame.timestamp_us is None else frame.timestamp_us / 1e6,
    "time.index": lambda frame: frame.index,
}
_LABEL_NUMBERS: dict[str, Callable[[Label], float | None]] = {
    _AREA: lambda label: label.box.w * label.box.h,
    "box.height_px": lambda label: label.box.h,
    "box.width_px": lambda label: label.box.w,
    "box.bottom_px": lambda label: label.box.y + label.box.h,
    "label.occluded": lambda label: label.occluded,
    "label.truncated": lambda label: label.truncated,
}
_COMPOSED = ("all", "any", "not")
_KEYS = (*_FRAME_WORDS, *_FRAME_NUMBERS, _CLASS, *_LABEL_NUMBERS, f"{_ATTRIBUTE}NAME")
_HINT = "See the comments in pipelines/slices.yaml"

_Test = Callable[[Any], bool | None]
"""True, False, or None where the source does not tell."""


@dataclass(frozen=True)
class _Term:
    """A predicate, and what it is about.

    Attributes:
        about: ``frame`` or ``label``.
        classes: Of a term that names classes alone; the test is then not needed.
        area: Of a term that limits the box area alone.
    """

    about: str
    test: _Test
    classes: tuple[str, ...] | None = None
    area: tuple[float, float] | None = None


def load_slices(path: Path) -> tuple[Slice, ...]:
    """Read a file of slices; ``all`` is always the first.

    Raises:
        ParameterError: As `read_predicates`.
    """
    bodies = _read_bodies(path)
    return (
        ALL_FRAMES,
        *(_slice(name, body, f"{path}, slice {name}") for name, body in bodies.items()),
    )


def read_predicates(path: Path) -> dict[str, Json]:
    """The predicates of a file of slices by name, for `parse_slice`.

    Raises:
        ParameterError: The file is missing or not YAML, a key or a value is unknown, or a term
            about frames is joined with one about labels other than by ``all``. The message names
            the slice and suggests the nearest valid word.
    """
    bodies = _read_bodies(path)
    for name, body in bodies.items():
        _slice(name, body, f"{path}, slice {name}")
    return {name: body["where"] for name, body in bodies.items()}


def _read_bodies(path: Path) -> dict[str, Any]:
    try:
        content = read_yaml(path)
    except FileNotFoundError as error:
        raise ParameterError("slice file does not exist", where=path) from error
    except (OSError, yaml.YAMLError) as error:
        raise ParameterError(f"slice file cannot be read: {error}", where=path) from error
    if not isinstance(content, dict) or content.get("schema_version") != 1:
        raise ParameterError("slice file needs `schema_version: 1`", where=path, hint=_HINT)
    unknown = sorted(map(str, content.keys() - {"schema_version", "slices"}))
    if unknown or not isinstance(content.get("slices"), dict):
        what = f"unknown key {unknown[0]!r}" if unknown else "slice file needs `slices:`"
        raise ParameterError(what, where=path, hint=_HINT)
    for name in content["slices"]:
        if name == ALL_FRAMES.name or not isinstance(name, str):
            raise ParameterError("invalid name of a slice", where=f"{path}, {name}", hint=_HINT)
        check_name(name.replace("=", "-"), "slice name")
    bodies: dict[str, Any] = content["slices"]
    return bodies


def parse_slice(name: str, where: object, help_text: str = "") -> Slice:
    """A slice from its predicate, as under ``where:`` in a file.

    Raises:
        ParameterError: The predicate is invalid.
    """
    return _slice(name, {"where": where, "help": help_text}, f"slice {name}")


def _slice(name: str, body: Any, where: str) -> Slice:
    if not isinstance(body, dict) or "where" not in body:
        raise ParameterError("slice needs `where:`", where=where, hint=_HINT)
    if unknown := sorted(map(str, body.keys() - {"where", "help"})):
        raise ParameterError(f"unknown key {unknown[0]!r}", where=where, hint=_HINT)
    terms = list(_conjuncts(body["where"], where))
    frame = _joined([term.test for term in terms if term.about == "frame"])
    plain = [term for term in terms if term.about == "label" and not term.classes and not term.area]
    areas = [term.area for term in terms if term.area]
    return Slice(
        name=name,
        description=str(body.get("help", "")),
        frame=frame,
        label=_joined([term.test for term in plain]),
        classes=_class_names([term.classes for term in terms if term.classes]),
        area=(max(area[0] for area in areas), min(area[1] for area in areas))
        if areas
        else ALL_AREAS,
    )


def _conjuncts(node: Any, where: str) -> Iterable[_Term]:
    """The terms that all have to hold."""
    if isinstance(node, dict) and set(node) == {"all"}:
        for each in _listed(node["all"], where):
            yield from _conjuncts(each, where)
    elif isinstance(node, dict) and len(node) > 1 and not set(node) & set(_COMPOSED):
        for key, value in node.items():
            yield _term(key, value, where)
    else:
        yield _parse(node, where)


def _parse(node: Any, where: str) -> _Term:
    if not isinstance(node, dict) or not node:
        raise ParameterError(f"invalid predicate {node!r}", where=where, hint=_HINT)
    if len(node) > 1:
        return _compose([_parse({key: value}, where) for key, value in node.items()], all, where)
    ((key, value),) = node.items()
    if key == "not":
        inner = _compose([_parse(value, where)], all, where)
        return _Term(inner.about, lambda one: None if (x := inner.test(one)) is None else not x)
    if key in ("all", "any"):
        terms = [_parse(each, where) for each in _listed(value, where)]
        return _compose(terms, all if key == "all" else any, where)
    return _term(key, value, where)


def _compose(terms: list[_Term], how: Callable[[list[bool]], bool], where: str) -> _Term:
    """Terms joined; undecided where those that are known do not decide."""
    if len({term.about for term in terms}) > 1:
        raise ParameterError(
            "a term about frames is joined with one about labels",
            where=where,
            hint="Join them by `all` at the top only, or write two slices",
        )
    if any(VULNERABLE in (term.classes or ()) for term in terms):
        raise ParameterError(
            f"{_CLASS}: vru cannot be inside `any` or `not`",
            where=where,
            hint="Name the classes, or join it by `all` at the top",
        )

    def test(one: Any) -> bool | None:
        answers = [term.test(one) for term in terms]
        known = [answer for answer in answers if answer is not None]
        decided = how(known)
        if len(known) == len(answers) or decided == (how is any):
            return decided
        return None

    return _Term(terms[0].about, test)


def _listed(value: Any, where: str) -> list[Any]:
    if not isinstance(value, list) or not value:
        raise ParameterError("`all` and `any` need a list", where=where, hint=_HINT)
    return value


def _joined(tests: list[_Test]) -> Callable[[Any], bool] | None:
    return (lambda one: all(test(one) is True for test in tests)) if tests else None


def _class_names(
    named: list[tuple[str, ...]],
) -> Callable[[LabelSchema], tuple[str, ...]] | None:
    if not named:
        return None

    def names(schema: LabelSchema) -> tuple[str, ...]:
        chosen = [_expand(words, schema) for words in named]
        return tuple(name for name in schema.classes if all(name in words for words in chosen))

    return names


def _expand(words: tuple[str, ...], schema: LabelSchema) -> set[str]:
    return {
        name for word in words for name in (schema.vulnerable if word == VULNERABLE else (word,))
    }


def _term(key: Any, value: Any, where: str) -> _Term:
    if not isinstance(key, str):
        raise ParameterError(f"invalid key {key!r}", where=where, hint=_HINT)
    if key in _FRAME_NUMBERS:
        return _Term("frame", _within(_FRAME_NUMBERS[key], _range(key, value, where)))
    if key in _LABEL_NUMBERS:
        limits = _range(key, value, where)
        area = limits if key == _AREA else None
        return _Term("label", _within(_LABEL_NUMBERS[key], limits), area=area)
    words = _words(key, value, where)
    if key == _CLASS:
        return _Term("label", lambda label: label.cls in words, classes=words)
    if key.startswith(_LABEL_ATTRIBUTE):
        name = key.removeprefix(_LABEL_ATTRIBUTE)
        return _Term(
            "label",
            lambda label: None if name not in label.attributes else label.attributes[name] in words,
        )
    condition = key.removeprefix(_ATTRIBUTE) if key.startswith(_ATTRIBUTE) else None
    condition = condition or _FRAME_WORDS.get(key)
    if condition is None:
        raise ParameterError(f"unknown key {key!r}", where=where, hint=did_you_mean(key, _KEYS))
    known = CONDITION_VALUES.get(condition)
    for word in words:
        if known and word not in known:
            raise ParameterError(
                f"{key}: unknown value {word!r}", where=where, hint=did_you_mean(word, known)
            )

    def test(frame: Frame) -> bool | None:
        values = [one for one in condition_values(frame, condition) if one != UNKNOWN]
        if not values and condition != "event":
            return None
        return any(one in words for one in values)

    return _Term("frame", test)


def _words(key: str, value: Any, where: str) -> tuple[str, ...]:
    values = value if isinstance(value, list) else [value]
    words = tuple(
        ("yes" if one else "no") if isinstance(one, bool) else str(one)
        for one in values
        if isinstance(one, str | int | float)
    )
    if not words or len(words) != len(values):
        raise ParameterError(f"{key}: needs a word or a list of words", where=where, hint=_HINT)
    return words


def _range(key: str, value: Any, where: str) -> tuple[float, float]:
    if (
        not isinstance(value, dict)
        or not value
        or value.keys() - {"min", "max"}
        or any(isinstance(x, bool) or not isinstance(x, int | float) for x in value.values())
    ):
        raise ParameterError(f"{key}: needs {{min: …, max: …}}", where=where, hint=_HINT)
    low, high = float(value.get("min", 0)), float(value.get("max", ALL_AREAS[1]))
    if not low <= high:
        raise ParameterError(f"{key}: min {low:g} is above max {high:g}", where=where)
    return low, high


def _within(number: Callable[[Any], float | None], limits: tuple[float, float]) -> _Test:
    low, high = limits

    def test(one: Any) -> bool | None:
        value = number(one)
        return None if value is None else low <= value <= high

    return test
