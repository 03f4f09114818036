"""The signed envelope: what an alarm may set off, within which limits, until when.

A person signs it once with the key of role ``rollout``. It names the pipeline by the digest of its
file, the parameters that may be set with their ranges, and budgets of a week. What lies outside is
refused with a stable code; nothing here can widen it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, date, datetime, timedelta
from enum import StrEnum
from pathlib import Path
from typing import Literal

import yaml
from pydantic import Field, ValidationError, model_validator

from workbench.core import digest
from workbench.core.errors import ParameterError, VerificationError
from workbench.core.keyring import signing_key, usable_keys
from workbench.core.parsing import read_yaml
from workbench.core.signatures import check_reference, sign_reference
from workbench.core.workspace import Workspace, write_atomic
from workbench.monitoring.alarms import AlarmState
from workbench.records.base import FrozenModel
from workbench.records.types import Alarm

__all__ = ["Envelope", "read_envelope", "sign_envelope"]

_PURPOSE = "retraining envelope"
_WEEK = timedelta(days=7)


class Reason(StrEnum):
    """Code of a refusal; never renamed."""

    NO_ENVELOPE = "no-envelope"
    ENVELOPE_EXPIRED = "envelope-expired"
    PIPELINE_CHANGED = "pipeline-changed"
    OUTSIDE_ENVELOPE = "outside-envelope"
    CAUSE_NOT_ALLOWED = "cause-not-allowed"
    LABELS_SPENT = "labels-spent"
    RETRAININGS_SPENT = "retrainings-spent"


class Range(FrozenModel):
    """Default and limits of a number that an alarm may set."""

    default: int | float
    minimum: float
    maximum: float

    @model_validator(mode="after")
    def _check(self) -> Range:
        if not self.minimum <= self.default <= self.maximum:
            raise ValueError(f"{self.default} is not between {self.minimum} and {self.maximum}")
        return self


class Envelope(FrozenModel):
    """What an alarm may set off; see ``pipelines/retraining.yaml``.

    Attributes:
        pipeline: File of the pipeline, relative to the envelope's.
        pipeline_digest: SHA-256 of that file when it was signed; written by `sign_envelope`.
        parameters: Numbers that may be set; ``budget`` is the number of frames to label.
        automatic: Whether an alarm may be accepted without a person.
    """

    schema_version: Literal[1]
    pipeline: str
    pipeline_digest: str = ""
    model: str
    dataset: str
    labelers: Literal["people", "replay"] = "people"
    answers: str = ""
    causes: tuple[str, ...]
    parameters: dict[str, Range]
    labels_a_week: int = Field(ge=1)
    retrainings_a_week: int = Field(ge=1)
    cool_down_days: float = Field(default=7, ge=0)
    max_open: int = Field(default=5, ge=1)
    automatic: bool = False
    expires: date

    @model_validator(mode="after")
    def _check(self) -> Envelope:
        if "budget" not in self.parameters:
            raise ValueError("parameters need a budget")
        return self

    def settings(
        self, alarm: Alarm, given: Mapping[str, str], states: Sequence[AlarmState]
    ) -> dict[str, int | float]:
        """Parameters of the retraining for an alarm.

        Args:
            given: Values that a person chose.
            states: All alarms, for what was spent within a week.

        Raises:
            ParameterError: It lies outside the envelope; ``reason`` is the code.
        """
        if self.expires < datetime.now(UTC).date():
            raise ParameterError(
                f"retraining envelope expired on {self.expires}",
                hint="Sign a new one: `workbench monitor envelope FILE`",
                reason=Reason.ENVELOPE_EXPIRED,
            )
        if alarm.cause not in self.causes:
            raise ParameterError(
                f"cause {alarm.cause!r} is not retrained for: {alarm.why}",
                where=f"causes: {', '.join(self.causes)}",
                hint="Repair what changed, then `workbench monitor alarms dismiss`",
                reason=Reason.CAUSE_NOT_ALLOWED,
            )
        values = {name: limits.default for name, limits in self.parameters.items()}
        for name, text in given.items():
            values[name] = self._value(name, text)
        self._require_budget(int(values["budget"]), states)
        return values

    def _value(self, name: str, text: str) -> int | float:
        limits = self.parameters.get(name)
        if limits is None:
            raise ParameterError(
                f"parameter {name!r} is not in the retraining envelope",
                hint=f"It has: {', '.join(self.parameters)}",
                reason=Reason.OUTSIDE_ENVELOPE,
            )
        try:
            value = int(text) if isinstance(limits.default, int) else float(text)
        except ValueError as error:
            raise ParameterError(f"invalid number {text!r}", where=f"parameter {name}") from error
        if not limits.minimum <= value <= limits.maximum:
            raise ParameterError(
                f"{name} = {value} is outside the signed range of {limits.minimum:g} to "
                f"{limits.maximum:g}",
                hint="Choose within it, or have a wider envelope signed",
                reason=Reason.OUTSIDE_ENVELOPE,
            )
        return value

    def _require_budget(self, frames: int, states: Sequence[AlarmState]) -> None:
        """Raise if this week's labels or retrainings are spent."""
        since = datetime.now(UTC) - _WEEK
        accepted = [
            entry
            for state in states
            for entry in state.history
            if entry.detail.get("action") == "accepted" and datetime.fromisoformat(entry.at) > since
        ]
        if len(accepted) >= self.retrainings_a_week:
            raise ParameterError(
                f"{len(accepted)} retrainings within 7 days, allowed are {self.retrainings_a_week}",
                hint="Wait, or have a wider envelope signed",
                reason=Reason.RETRAININGS_SPENT,
            )
        spent = sum(int(entry.detail.get("budget", 0)) for entry in accepted)
        if spent + frames > self.labels_a_week:
            raise ParameterError(
                f"{spent} frames were sent for alarms within 7 days, {frames} more exceed "
                f"{self.labels_a_week}",
                hint="Choose a smaller budget: -p budget=N",
                reason=Reason.LABELS_SPENT,
            )


def sign_envelope(workspace: Workspace, file: Path, *, by: str) -> Envelope:
    """Read an envelope, bind it to its pipeline's content, sign it and put it to use.

    Raises:
        ParameterError: The file is invalid, or its pipeline cannot be read.
    """
    try:
        envelope = Envelope.model_validate(read_yaml(file))
        pipeline = file.parent / envelope.pipeline
        content = pipeline.read_bytes()
    except OSError as error:
        raise ParameterError("file cannot be read", where=error.filename or file) from error
    except yaml.YAMLError as error:
        raise ParameterError("retraining envelope is not YAML", where=file) from error
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        raise ParameterError(
            f"retraining envelope: {first['msg']}", where=f"{file}, {key}"
        ) from error
    envelope = envelope.model_copy(
        update={"pipeline": str(pipeline.resolve()), "pipeline_digest": digest.of_bytes(content)}
    )
    body = envelope.model_dump(mode="json")
    signature = sign_reference(
        signing_key(workspace, "rollout"), _PURPOSE, digest.of_json([body, by])
    )
    signed = {"envelope": body, "by": by, "signature": signature}
    write_atomic(_path(workspace), json.dumps(signed, indent=1).encode())
    return envelope


def read_envelope(workspace: Workspace) -> Envelope:
    """The signed envelope of a workspace.

    Raises:
        ParameterError: There is none, or its pipeline has changed since.
        VerificationError: It was changed, or not signed with a rollout key.
    """
    path = _path(workspace)
    if not path.exists():
        raise ParameterError(
            "no signed retraining envelope",
            where=path,
            hint="`workbench monitor envelope pipelines/retraining.yaml` signs one",
            reason=Reason.NO_ENVELOPE,
        )
    try:
        signed = json.loads(path.read_bytes())
        body, by, signature = signed["envelope"], signed["by"], signed["signature"]
        check_reference(
            signature,
            _PURPOSE,
            digest.of_json([body, by]),
            usable_keys(workspace, "rollout"),
        )
        envelope = Envelope.model_validate(body)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise VerificationError("retraining envelope is damaged", where=path) from error
    pipeline = Path(envelope.pipeline)
    if not pipeline.exists() or digest.of_bytes(pipeline.read_bytes()) != envelope.pipeline_digest:
        raise ParameterError(
            "pipeline has changed since the envelope was signed",
            where=pipeline,
            hint="Review it, then sign again: `workbench monitor envelope FILE`",
            reason=Reason.PIPELINE_CHANGED,
        )
    return envelope


def _path(workspace: Workspace) -> Path:
    return workspace.root / "monitoring" / "retraining.json"
