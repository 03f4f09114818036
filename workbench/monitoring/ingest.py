"""Takes what vehicles send: stores each bundle once, and puts aside what cannot be believed.

A bundle is settled when it is in the table or in quarantine; only then may the vehicle forget it.
What is in the table is known from the table itself, so a service that is killed at any moment
neither loses nor doubles anything: the vehicle sends again what was not settled.

    URL/v1/…                                        the table, see `store`
    URL/quarantine/REASON/VEHICLE-….json            what was refused
    URL/frames/VEHICLE/NUMBER.jpg, NUMBER.json      frames that vehicles sent back
"""

from __future__ import annotations

import math
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from enum import StrEnum
from typing import Final

from pydantic import ValidationError

from workbench.core import digest
from workbench.core.parsing import UNREADABLE, parse_json
from workbench.core.types import Json
from workbench.data.telemetry import TELEMETRY_VERSION, TelemetryBundle
from workbench.monitoring.store import TelemetryStore, bundle_digest

__all__ = ()

LATE_DAYS: Final = 60
"""A vehicle may have been offline this long."""

_MAX_RIDES_A_DAY: Final = 200
_MAX_QUARANTINED: Final = 1000  # of one vehicle; more are counted by this process only
_MAX_QUARANTINED_BYTES: Final = 1 << 16
_MAX_PENDING: Final = 500
_MAX_DIGITS: Final = 20
_JPEG: Final = b"\xff\xd8"
_MAX_FRAME_BYTES_A_DAY: Final = 64 << 20  # of one vehicle


class QuarantineReason(StrEnum):
    """Why a message was put aside; docs/how-to/telemetry.md explains each. Never renamed."""

    UNREADABLE = "unreadable"
    SCHEMA_UNSUPPORTED = "schema-unsupported"
    NOT_FINITE = "not-finite"
    IMPOSSIBLE = "impossible"
    WRONG_VEHICLE = "wrong-vehicle"
    SEQUENCE_REUSED = "sequence-reused"
    FUTURE_DAY = "future-day"
    TOO_LATE = "too-late"
    TOO_MANY = "too-many"


class Ingest:
    """Stores messages of vehicles.

    Args:
        store: Where to.
        today: The fleet's day now; vehicles' own clocks are not believed.
    """

    def __init__(self, store: TelemetryStore, today: Callable[[], int]) -> None:
        self._store, self._today = store, today
        self._known = store.stored()
        self._rides = Counter(store.rides_a_day())
        self._pending: dict[tuple[str, int], TelemetryBundle] = {}
        self._settled: defaultdict[str, list[int]] = defaultdict(list)
        self._quarantined = Counter(path.vehicle for path in store.quarantine())
        self._frame_bytes: Counter[tuple[str, int]] = Counter()
        self.counts: Counter[str] = Counter()
        """Messages of this process: ``received``, ``stored``, ``duplicate``, ``frames``, and
        ``quarantined REASON``."""

        self.last_message: float | None = None

    @property
    def full(self) -> bool:
        """Whether enough has come together to be written."""
        return len(self._pending) >= _MAX_PENDING

    def accept(self, topic: str, payload: bytes) -> None:
        """Take one message.

        Args:
            topic: ``telemetry/VEHICLE/KIND/NUMBER``; the broker has checked that VEHICLE sent it.
        """
        self.counts["received"] += 1
        self.last_message = time.time()
        _, vehicle, kind, number = topic.split("/", 3)
        try:
            sequence = int(number)
            if kind == "frame":
                self._take_frame(vehicle, sequence, payload)
            else:
                self._take(self._read(vehicle, sequence, payload))
        except _Refused as refused:
            self._quarantine(refused.reason, vehicle, number, payload)
        except UNREADABLE:
            self._quarantine(QuarantineReason.UNREADABLE, vehicle, number, payload)

    def flush(self) -> dict[str, list[int]]:
        """Write what was taken; returns the numbers that are settled, by vehicle."""
        if self._pending:
            self._store.write(list(self._pending.values()))
            for key, bundle in self._pending.items():
                self._known[key] = bundle_digest(bundle)
                self._settled[key[0]].append(key[1])
            self.counts["stored"] += len(self._pending)
            self._pending.clear()
        settled = dict(self._settled)
        self._settled.clear()
        return settled

    def as_json(self) -> Json:
        """State of this process, for `workbench monitor status`."""
        return {"counts": dict(self.counts), "last_message": self.last_message, "at": time.time()}

    def _read(self, vehicle: str, sequence: int, payload: bytes) -> TelemetryBundle:
        content = parse_json(payload)
        version = content.get("schema_version", 1)
        if type(version) is int and version > TELEMETRY_VERSION:
            raise _Refused(QuarantineReason.SCHEMA_UNSUPPORTED)
        if content["vehicle"] != vehicle:
            raise _Refused(QuarantineReason.WRONG_VEHICLE)
        if _not_finite(content):
            raise _Refused(QuarantineReason.NOT_FINITE)
        try:
            bundle = TelemetryBundle.model_validate(content)
        except (ValidationError, OverflowError) as error:
            raise _Refused(QuarantineReason.IMPOSSIBLE) from error
        if bundle.sequence != sequence:
            raise _Refused(QuarantineReason.IMPOSSIBLE)
        today = self._today()
        if bundle.day > today:
            raise _Refused(QuarantineReason.FUTURE_DAY)
        if bundle.day < today - LATE_DAYS:
            raise _Refused(QuarantineReason.TOO_LATE)
        return bundle

    def _take(self, bundle: TelemetryBundle) -> None:
        vehicle, content = bundle.vehicle, bundle_digest(bundle)
        key = (vehicle, bundle.sequence)
        waiting = self._pending.get(key)
        before = bundle_digest(waiting) if waiting is not None else self._known.get(key)
        if before is not None and before != content:
            raise _Refused(QuarantineReason.SEQUENCE_REUSED)
        if before is not None:
            self.counts["duplicate"] += 1
            if waiting is None:  # the vehicle did not hear that it is stored
                self._settled[vehicle].append(bundle.sequence)
            return
        if self._rides[vehicle, bundle.day] >= _MAX_RIDES_A_DAY:
            raise _Refused(QuarantineReason.TOO_MANY)
        self._rides[vehicle, bundle.day] += 1
        self._pending[key] = bundle

    def _take_frame(self, vehicle: str, sequence: int, payload: bytes) -> None:
        head, _, image = payload.partition(b"\n")
        content = parse_json(head)
        if _not_finite(content):
            raise _Refused(QuarantineReason.NOT_FINITE)
        if content["vehicle"] != vehicle:
            raise _Refused(QuarantineReason.WRONG_VEHICLE)
        whole = image.startswith(_JPEG) and content["sha256"] == digest.of_bytes(image)
        if not whole or content["sequence"] != sequence:
            raise _Refused(QuarantineReason.IMPOSSIBLE)
        if self._store.has_frame(vehicle, sequence):
            self.counts["duplicate"] += 1
            self._settled[vehicle].append(sequence)
            return
        day = (vehicle, self._today())
        if self._frame_bytes[day] + len(image) > _MAX_FRAME_BYTES_A_DAY:
            raise _Refused(QuarantineReason.TOO_MANY)
        self._frame_bytes[day] += len(image)
        self._store.put_frame(vehicle, sequence, digest.canonical_json(content), image)
        self.counts["frames"] += 1
        self._settled[vehicle].append(sequence)

    def _quarantine(
        self, reason: QuarantineReason, vehicle: str, number: str, payload: bytes
    ) -> None:
        """Put a message aside; a name from its content, so that it counts once."""
        self.counts[f"quarantined {reason}"] += 1
        if self._quarantined[vehicle] < _MAX_QUARANTINED:
            known = payload[:_MAX_QUARANTINED_BYTES]
            if self._store.put_quarantine(reason, vehicle, digest.of_bytes(payload), known):
                self._quarantined[vehicle] += 1
        # The number may be that of a bundle that waits: that one is settled when it is stored.
        is_number = number.isascii() and number.isdecimal() and len(number) < _MAX_DIGITS
        if is_number and (vehicle, int(number)) not in self._pending:
            self._settled[vehicle].append(int(number))


class _Refused(Exception):
    def __init__(self, reason: QuarantineReason) -> None:
        super().__init__(reason)
        self.reason = reason


def _not_finite(value: object) -> bool:
    """Whether there is a NaN or an infinity anywhere; `parse_json` limits the depth."""
    if isinstance(value, float):
        return not math.isfinite(value)
    if isinstance(value, dict):
        return any(map(_not_finite, value.values()))
    return isinstance(value, list) and any(map(_not_finite, value))


def metrics_text(state: Json, *, now: float | None = None) -> str:
    """Counters in Prometheus' text format, for the node exporter's textfile collector."""
    lines = ["# TYPE workbench_telemetry_messages_total counter"]
    for name, number in sorted(state["counts"].items()):
        what, _, reason = name.partition(" ")
        labels = f'result="{what}"' + (f',reason="{reason}"' if reason else "")
        lines.append(f"workbench_telemetry_messages_total{{{labels}}} {number}")
    lines.append("# TYPE workbench_telemetry_last_message_seconds gauge")
    if state["last_message"] is not None:
        lines.append(f"workbench_telemetry_last_message_seconds {state['last_message']:.3f}")
    return "\n".join([*lines, ""])
