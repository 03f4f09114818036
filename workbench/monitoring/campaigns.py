"""Campaigns: a query that goes to vehicles, and the frames that they send back for it.

A campaign is a record, signed by the image repository and assigned by the director like any other
component, so a vehicle takes only what both sign, of an increasing counter, and drops what is
withdrawn. The vehicle decides: it evaluates the query on its own frames, within the campaign's
bytes, its own bytes a day and the rules of privacy, and sends frames after all telemetry.

    schema_version: 1
    name: night-riders
    query:
      conditions: {light: night}
      classes: [cyclist, motorcycle]    # the model has a box of one of them
      score: [0.1, 0.5]                 # with such a score
      like: {frame: 3f2a91, similarity: 0.7}
    vehicles: {regions: [eu], share: 0.5}
    budget: {days: 14, bytes_a_vehicle: 2000000, frames_a_drive: 2}
    privacy: {redacted: true}           # only frames without faces and number plates
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Final, Literal

import numpy as np
import yaml
from numpy.typing import NDArray
from pydantic import Field, ValidationError, model_validator

from workbench.audit import log as audit
from workbench.core import digest
from workbench.core.errors import ParameterError
from workbench.core.parsing import UNREADABLE, describe_unreadable, parse_json, read_yaml
from workbench.core.workspace import write_atomic
from workbench.monitoring.queue import VehicleQueue
from workbench.monitoring.rides import Ride, RideFrame, queue_frame
from workbench.records.base import Digest, FrozenModel, Ref
from workbench.records.frames import CONDITION_VALUES
from workbench.records.store import Store
from workbench.records.types import Campaign

__all__ = ()

CAMPAIGNS_FILE: Final = "campaigns.json"
"""The file of the component: every running campaign by its reference."""

MAX_BYTES_A_DAY: Final = 8 << 20
"""Of a vehicle, over all campaigns: a limit of the vehicle that no campaign can lift."""

_SENT_FILE: Final = "campaigns-sent.json"
_ALL: Final = "all campaigns"
_MAX_DAYS: Final = 90

Vectors = Callable[[str], NDArray[np.float32] | None]
"""From a frame's digest to its unit vector, or None where the vehicle has none."""


class NotSent(StrEnum):
    """Why a vehicle did not send a frame; docs/how-to/monitoring.md explains each."""

    CAMPAIGN_UNREADABLE = "campaign-unreadable"
    CAMPAIGN_OVER = "campaign-over"
    OTHER_REGION = "other-region"
    NOT_DRAWN = "not-drawn"
    NO_MATCH = "no-match"
    NO_VECTOR = "no-vector"
    NOT_REDACTED = "not-redacted"
    SENT_BEFORE = "sent-before"
    DRIVE_SPENT = "drive-spent"
    BYTES_SPENT = "bytes-spent"


class _Like(FrozenModel):
    frame: str = Field(min_length=4)
    similarity: float = Field(gt=0, le=1)


class _Query(FrozenModel):
    conditions: dict[str, str] = {}
    classes: tuple[str, ...] = ()
    score: tuple[float, float] = (0.0, 1.0)
    like: _Like | None = None

    @model_validator(mode="after")
    def _check(self) -> _Query:
        if not (self.conditions or self.classes or self.like):
            raise ValueError("asks for nothing: name conditions, classes or like")
        if not 0 <= self.score[0] < self.score[1] <= 1:
            raise ValueError("score is a lowest and a highest one, within 0 and 1")
        if self.score != (0.0, 1.0) and not self.classes:
            raise ValueError("score needs classes")
        for name, value in self.conditions.items():
            known = CONDITION_VALUES.get(name, ())
            if name == "role" or value not in known:
                what = f"no {name} {value!r}" if known else f"no condition {name!r}"
                raise ValueError(f"{what}; known: {', '.join(known) or 'light, weather'}")
        return self


class _Vehicles(FrozenModel):
    regions: tuple[str, ...] = ()
    share: float = Field(default=1.0, gt=0, le=1)


class _Budget(FrozenModel):
    days: int = Field(ge=1, le=_MAX_DAYS)
    bytes_a_vehicle: int = Field(ge=1, le=100 * MAX_BYTES_A_DAY)
    frames_a_drive: int = Field(default=2, ge=1, le=20)


class _Privacy(FrozenModel):
    redacted: bool = True


class CampaignFile(FrozenModel):
    """A campaign as a person writes it."""

    schema_version: Literal[1]
    name: str = Field(pattern=r"^[a-z0-9][a-z0-9-]{0,40}$")
    query: _Query
    vehicles: _Vehicles = _Vehicles()
    budget: _Budget
    privacy: _Privacy = _Privacy()

    def record(
        self, *, today: int, by: str, exemplar: Exemplar | None = None, alarm: Ref | None = None
    ) -> Campaign:
        """The record of this campaign, from fleet day ``today`` on."""
        query = self.query
        return Campaign(
            name=self.name,
            conditions=query.conditions,
            classes=query.classes,
            score=query.score,
            exemplar=exemplar.frame if exemplar else None,
            vector=exemplar.vector if exemplar else (),
            encoder=exemplar.encoder if exemplar else "",
            similarity=query.like.similarity if query.like else 0.0,
            regions=self.vehicles.regions,
            share=self.vehicles.share,
            bytes_a_vehicle=self.budget.bytes_a_vehicle,
            frames_a_drive=self.budget.frames_a_drive,
            days=(today, today + self.budget.days - 1),
            redacted=self.privacy.redacted,
            by=by,
            alarm=alarm,
        )


@dataclass(frozen=True)
class Exemplar:
    """A frame to look like: its unit vector by an encoder, rounded for the signature."""

    frame: Digest
    vector: tuple[float, ...]
    encoder: str


def load_campaign(path: Path) -> CampaignFile:
    """Read the file of a campaign.

    Raises:
        ParameterError: It cannot be read, or asks for what is not possible.
    """
    try:
        return CampaignFile.model_validate(read_yaml(path))
    except OSError as error:
        raise ParameterError("campaign cannot be read", where=path) from error
    except yaml.YAMLError as error:
        raise ParameterError("campaign is not YAML", where=path) from error
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        raise ParameterError(f"campaign: {first['msg']}", where=f"{path}, {key}") from error


# -- what runs


def running_campaigns(store: Store, today: int) -> dict[Ref, Campaign]:
    """Campaigns that were started, not stopped, and are not over."""
    started: dict[Ref, bool] = {}
    for entry in audit.read_log(store.workspace, events=("campaign",)):
        started[entry.subjects[0]] = entry.detail["action"] == "started"
    found = {ref: store.get(ref, Campaign) for ref, on in started.items() if on}
    return {ref: one for ref, one in found.items() if today <= one.days[1]}


def campaigns_file(running: Mapping[Ref, Campaign]) -> bytes:
    """Content of the component that vehicles install."""
    return digest.canonical_json(
        {"campaigns": {ref: one.model_dump(mode="json") for ref, one in running.items()}}
    )


def read_campaigns(content: bytes) -> tuple[dict[Ref, Campaign], int]:
    """Campaigns of a component, and the number that this vehicle does not understand."""
    found, unknown = {}, 0
    try:
        listed = dict(parse_json(content)["campaigns"])
    except UNREADABLE:
        return {}, 1
    for ref, body in listed.items():
        try:
            found[ref] = Campaign.model_validate(body)
        except ValueError:  # of a later version, or NaN
            unknown += 1
    return found, unknown


# -- in the vehicle


def mismatch(campaign: Campaign, ride: Ride, frame: RideFrame, vectors: Vectors) -> NotSent | None:
    """Why a frame is not what a campaign asks for, or may not be sent; None if it is and may."""
    if any(ride.conditions.get(key) != value for key, value in campaign.conditions.items()):
        return NotSent.NO_MATCH
    low, high = campaign.score
    if campaign.classes and not any(
        box.cls in campaign.classes and low <= box.score <= high for box in frame.boxes
    ):
        return NotSent.NO_MATCH
    if campaign.vector:
        vector = vectors(frame.frame)
        if vector is None or len(vector) != len(campaign.vector):
            return NotSent.NO_VECTOR
        # Written so that a NaN does not match.
        if not float(vector @ np.array(campaign.vector, np.float32)) >= campaign.similarity:
            return NotSent.NO_MATCH
    if campaign.redacted and frame.redaction in {"", "none"}:
        return NotSent.NOT_REDACTED
    return None


class VehicleCampaigns:
    """What one vehicle sends for its campaigns.

    Args:
        folder: Of the vehicle; what was sent is kept there, so that a restart sends nothing twice.
        vehicle: Its name.
        region: Where it is.
        installed: Content of the component that both repositories signed.
    """

    def __init__(self, folder: Path, vehicle: str, region: str, installed: bytes) -> None:
        self._path, self._vehicle, self._region = folder / _SENT_FILE, vehicle, region
        self.campaigns, unknown = read_campaigns(installed)
        self.not_sent: Counter[NotSent] = Counter()
        """Frames, or campaigns, by the reason why nothing was sent for them."""
        if unknown:
            self.not_sent[NotSent.CAMPAIGN_UNREADABLE] = unknown
        try:
            self._sent: dict[str, dict[str, int]] = parse_json(self._path.read_bytes())
        except FileNotFoundError:
            self._sent = {}
        except UNREADABLE as error:
            what = f"what was sent cannot be read: {describe_unreadable(error)}"
            raise ParameterError(what, where=self._path) from error

    def collect(
        self,
        rides: Sequence[tuple[str, Ride]],
        day: int,
        queue: VehicleQueue,
        vectors: Vectors = lambda _frame: None,
    ) -> int:
        """Queue the frames of a day that match; returns their number.

        Args:
            rides: By name.
            day: Fleet day of the attested time.
        """
        asked = {ref: one for ref, one in self.campaigns.items() if self._takes_part(ref, one, day)}
        queued = 0
        for ref, campaign in asked.items():
            for name, ride in rides:
                for frame in ride.frames:
                    reason = mismatch(campaign, ride, frame, vectors)
                    reason = reason or self._refuse(ref, campaign, name, frame)
                    image = b"" if reason else frame.jpeg()
                    reason = reason or self._over_budget(ref, campaign, day, len(image))
                    if reason:
                        self.not_sent[reason] += 1
                        continue
                    self._keep(ref, name, frame.frame, day, len(image))
                    about = {
                        "campaign": ref, "name": campaign.name, "drive": name, "day": day,
                        "frame": frame.frame, "redaction": frame.redaction,
                        "conditions": ride.conditions, "evidence": ride.evidence,
                        "bytes": len(image),
                        "boxes": [box.model_dump(mode="json") for box in frame.boxes],
                    }  # fmt: skip
                    queue_frame(queue, self._vehicle, about, image)
                    queued += 1
        return queued

    def _takes_part(self, ref: Ref, campaign: Campaign, day: int) -> bool:
        drawn = int(digest.of_bytes(f"{ref} {self._vehicle}".encode())[:12], 16) / 16**12
        if not campaign.days[0] <= day <= campaign.days[1]:
            self.not_sent[NotSent.CAMPAIGN_OVER] += 1
        elif campaign.regions and self._region not in campaign.regions:
            self.not_sent[NotSent.OTHER_REGION] += 1
        elif drawn >= campaign.share:
            self.not_sent[NotSent.NOT_DRAWN] += 1
        else:
            return True
        return False

    def _refuse(self, ref: Ref, campaign: Campaign, drive: str, frame: RideFrame) -> NotSent | None:
        sent = self._sent.get(ref, {})
        if f"frame {frame.frame}" in sent:
            return NotSent.SENT_BEFORE
        if sent.get(f"drive {drive}", 0) >= campaign.frames_a_drive:
            return NotSent.DRIVE_SPENT
        return None

    def _over_budget(self, ref: Ref, campaign: Campaign, day: int, size: int) -> NotSent | None:
        today = self._sent.get(_ALL, {}).get(f"day {day}", 0)
        spent = self._sent.get(ref, {}).get("bytes", 0)
        if spent + size > campaign.bytes_a_vehicle or today + size > MAX_BYTES_A_DAY:
            return NotSent.BYTES_SPENT
        return None

    def _keep(self, ref: Ref, drive: str, frame: str, day: int, size: int) -> None:
        """Write down what will be sent, before it is: a power cut never sends more than allowed."""
        mine = Counter(self._sent.get(ref, {}))
        mine.update({"bytes": size, f"drive {drive}": 1, f"frame {frame}": 1})
        today = self._sent.get(_ALL, {}).get(f"day {day}", 0) + size
        # Campaigns that are gone take their lists with them, but not the bytes of the day.
        others = {key: value for key, value in self._sent.items() if key in self.campaigns}
        self._sent = {**others, ref: dict(mine), _ALL: {f"day {day}": today}}
        write_atomic(self._path, json.dumps(self._sent).encode())
