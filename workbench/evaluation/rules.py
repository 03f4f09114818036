"""The gates of ``pipelines/gates.yaml``, read strictly: an unknown word is an error, not a guess.

A gate that was mistyped would be a gate that is not there, so nothing is passed over.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator
from pydantic_core import PydanticCustomError

from workbench import digest
from workbench.errors import ParameterError
from workbench.evaluation.bootstrap import ENOUGH_DRIVES
from workbench.evaluation.metrics import EVERY_CLASS, METRICS, MetricName, Settings
from workbench.evaluation.slices import STANDARD, nearest
from workbench.records.base import Digest

_SLICES = tuple(part.name for part in STANDARD)


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)


class _Named(_Strict):
    """What all gates share."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9_-]*$")
    required: bool = True
    note: str = ""


class _Gate(_Named):
    """A gate on a metric. ``min_…`` is the evidence below which nothing is decided."""

    metric: MetricName
    slice: str = Field(default="all", json_schema_extra={"enum": list(_SLICES)})
    cls: str = Field(default=EVERY_CLASS, alias="class")
    min_drives: int = Field(default=ENOUGH_DRIVES, ge=ENOUGH_DRIVES)
    min_drives_with_boxes: int = Field(default=5, ge=2)
    min_boxes: int = Field(default=100, ge=1)

    @field_validator("slice")
    @classmethod
    def _is_known(cls, value: str) -> str:
        if value not in _SLICES:
            raise PydanticCustomError("unknown_slice", "unknown slice")
        return value


class Floor(_Gate):
    """The candidate's metric must reach ``bound``."""

    kind: Literal["floor"]
    bound: float = Field(ge=0, le=1)


class NoRegression(_Gate):
    """The candidate may be worse than the model it is to replace by at most ``margin``."""

    kind: Literal["no_regression"]
    margin: float = Field(ge=0, le=1)


class Int8Loss(_Gate):
    """INT8 may be worse than the same model in FP32 by at most ``margin``."""

    kind: Literal["int8_loss"]
    margin: float = Field(ge=0, le=1)


class NoLeaks(_Named):
    """No frame that the model is judged by resembles one that it learned from or was tuned on."""

    kind: Literal["no_leaks"]


Measured = Floor | NoRegression | Int8Loss
"""Gates that hold a metric against a bound."""

Gate = Annotated[Measured | NoLeaks, Field(discriminator="kind")]


class Rules(_Strict):
    """All gates of a project and how their evidence is made."""

    schema_version: Literal[1]
    evaluation: Settings = Settings()
    gates: tuple[Gate, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _names_differ(self) -> Rules:
        names = [gate.name for gate in self.gates]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"two gates are named {twice[0]!r}")
        if not any(gate.required for gate in self.gates):
            raise ValueError("no gate is required, so every model would pass")
        return self

    @property
    def digest(self) -> Digest:
        return digest.of_json(self.as_json())

    def as_json(self) -> dict[str, Any]:
        return self.model_dump(mode="json", by_alias=True)


def load_rules(path: Path) -> Rules:
    """Read a gates file.

    Raises:
        ParameterError: It is missing, no YAML, or says something that is not understood; the
            message names the gate, the key and the nearest word that would be right.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        missing = isinstance(error, FileNotFoundError)
        raise ParameterError(
            "no such gates file" if missing else f"gates file cannot be read: {error.strerror}",
            where=path,
            hint="The project's own is pipelines/gates.yaml",
        ) from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        raise ParameterError(
            f"gates file is not YAML: {getattr(error, 'problem', None) or error}",
            where=f"{path}{line}",
        ) from error
    try:
        return Rules.model_validate(content)
    except ValidationError as error:
        raise _explained(error, content, path) from error


def _explained(error: ValidationError, content: Any, path: Path) -> ParameterError:
    # A mistyped key is also a missing one: say what was mistyped.
    first = min(error.errors(), key=lambda each: each["type"] != "extra_forbidden")
    location = [part for part in first["loc"] if part not in KINDS]
    key = str(location[-1]) if location else ""
    message = first["msg"].removeprefix("Value error, ")
    hint = "pipelines/gates.yaml explains every key"
    if first["type"] == "extra_forbidden":
        message = f"unknown key {key!r}"
        hint = nearest(key, _known_keys(list(first["loc"])))
    elif first["type"] in ("literal_error", "unknown_slice"):
        message = f"{key}: unknown value {first['input']!r}"
        hint = nearest(str(first["input"]), _literals(key))
    elif first["type"] == "union_tag_invalid":
        kind = str(first["ctx"]["tag"])
        message = f"unknown kind {kind!r}"
        hint = nearest(kind, list(KINDS))
    elif key:
        message = f"{key}: {message}"
    return ParameterError(message, where=f"{path}{_place(location, content)}", hint=hint)


KINDS: dict[str, type[_Named]] = {
    "floor": Floor,
    "no_regression": NoRegression,
    "int8_loss": Int8Loss,
    "no_leaks": NoLeaks,
}


def _known_keys(location: list[str | int]) -> list[str]:
    model: type[BaseModel] = Rules
    if location[:1] == ["evaluation"]:
        model = Settings
    elif location[:1] == ["gates"] and len(location) > 2:
        model = KINDS[str(location[2])]
    return [field.alias or name for name, field in model.model_fields.items()]


def _literals(key: str) -> list[str]:
    allowed = {"slice": _SLICES, "metric": METRICS}
    return [str(value) for value in allowed.get(key, (1,))]


def _place(location: list[str | int], content: Any) -> str:
    """The gate by its name where it has one, else by its number."""
    if len(location) < 2 or location[0] != "gates" or not isinstance(location[1], int):
        return ""
    gate = content["gates"][location[1]]
    name = gate.get("name") if isinstance(gate, dict) else None
    return f", gate {name or location[1] + 1}"
