"""Alarms: raised once, with what a person needs to decide; their state is in the audit log.

An alarm is an immutable record. Everything that happens to it is an entry of the audit log about
that record, so the state can be neither lost nor typed in. One look gives at most one alarm for
each slice, however many signals changed there, and the same slice of the same model stays quiet
while an alarm of it is open and for a cool-down afterwards.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from workbench.audit import log as audit
from workbench.core.errors import ParameterError
from workbench.core.text import short_repr
from workbench.core.workspace import exclusive
from workbench.records.base import Ref, digest_of, short_ref
from workbench.records.store import Store
from workbench.records.types import Alarm

__all__ = ["alarm_states", "dismiss_alarm", "raise_alarms"]

AlarmStatus = Literal["open", "accepted", "retrained", "dismissed"]

_STATUS_AFTER: Mapping[str, AlarmStatus] = {
    "raised": "open",
    "accepted": "accepted",
    "retrained": "retrained",
    "dismissed": "dismissed",
    "stopped": "open",  # a retraining that ended without a release
}
_LOCK_TIMEOUT_S = 30


@short_repr
@dataclass(frozen=True)
class AlarmState:
    """An alarm and what happened to it.

    Attributes:
        history: Entries of the audit log, oldest first.
    """

    ref: Ref
    alarm: Alarm
    status: AlarmStatus
    history: tuple[audit.LogEntry, ...]

    @property
    def raised_at(self) -> datetime:
        """When it was raised, in UTC."""
        return datetime.fromisoformat(self.history[0].at)


@dataclass(frozen=True)
class RaisedAlarms:
    """Result of `raise_alarms`.

    Attributes:
        raised: New alarms.
        quiet: Why others were not raised, by slice.
    """

    raised: tuple[Ref, ...]
    quiet: dict[str, str]


def alarm_states(store: Store) -> list[AlarmState]:
    """All alarms, oldest first."""
    history: dict[Ref, list[audit.LogEntry]] = {}
    for entry in audit.read_log(store.workspace):
        if entry.event == "alarm":
            for ref in entry.subjects[:1]:
                history.setdefault(ref, []).append(entry)
    states = []
    for ref, entries in history.items():
        actions = [str(entry.detail.get("action")) for entry in entries]
        known = [_STATUS_AFTER[action] for action in actions if action in _STATUS_AFTER]
        if known and store.exists(ref):
            states.append(AlarmState(ref, store.get(ref, Alarm), known[-1], tuple(entries)))
    return states


def raise_alarms(
    store: Store,
    alarms: Iterable[Alarm],
    *,
    cool_down_days: float = 7,
    max_open: int = 5,
    by: str | None = None,
) -> RaisedAlarms:
    """Raise what is new, the strongest first; the same alarm is never raised twice.

    Args:
        cool_down_days: Fleet days in which a slice of a model raises nothing new, counted from the
            last day of its last alarm.
        max_open: Alarms that may wait for a person.
        by: Who looked; the account that runs the process by default.
    """
    raised: list[Ref] = []
    quiet: dict[str, str] = {}
    with exclusive(store.workspace, "alarms", "raising alarms", timeout_s=_LOCK_TIMEOUT_S):
        states = alarm_states(store)
        waiting = sum(one.status == "open" for one in states)
        for alarm in sorted(alarms, key=lambda one: (one.p_value, -abs(one.effect), one.slice)):
            why = _quiet(states, alarm, cool_down_days)
            if why is None and waiting >= max_open:
                why = f"{waiting} alarms wait for a person already"
            if why is not None:
                quiet[alarm.slice] = why
                continue
            ref = store.put(alarm)
            entry = _log(store, ref, "raised", by, slice=alarm.slice, signal=alarm.signal)
            states.append(AlarmState(ref, alarm, "open", (entry,)))
            raised.append(ref)
            waiting += 1
    return RaisedAlarms(tuple(raised), quiet)


def _quiet(states: Sequence[AlarmState], alarm: Alarm, cool_down_days: float) -> str | None:
    """Why an alarm says nothing new, or None."""
    for state in reversed(states):
        other = state.alarm
        if (other.slice, other.model) != (alarm.slice, alarm.model):
            continue
        name = short_ref(state.ref)
        if state.status in {"open", "accepted"}:
            return f"{name} of this slice is {state.status}"
        if alarm.days[1] - other.days[1] < cool_down_days:
            return f"{name} of this slice was {state.status} within {cool_down_days:g} days"
    return None


def dismiss_alarm(store: Store, ref: Ref, reason: str, *, by: str | None = None) -> None:
    """Close an alarm without a retraining.

    Raises:
        ParameterError: It is not open, or no reason is given.
    """
    if not reason.strip():
        raise ParameterError("dismissing an alarm needs a reason", where=short_ref(ref))
    with exclusive(store.workspace, "alarms", "closing an alarm", timeout_s=_LOCK_TIMEOUT_S):
        require_status(store, ref, "open", "accepted")
        _log(store, ref, "dismissed", by, reason=reason)


def record_hop(
    store: Store, ref: Ref, action: Literal["accepted", "stopped", "retrained"], *,
    by: str | None = None, results: tuple[Ref, ...] = (), **detail: object,
) -> None:  # fmt: skip
    """Write what happened to an alarm to the audit log.

    Args:
        results: Records that it led to.
        detail: Plain data.
    """
    audit.append(store.workspace, "alarm", subjects=(ref, *results), by=by, action=action, **detail)


def require_status(store: Store, ref: Ref, *allowed: AlarmStatus) -> AlarmState:
    """The alarm, if its status is one of ``allowed``.

    Raises:
        ParameterError: It is not, or it was never raised.
    """
    state = next((one for one in alarm_states(store) if one.ref == ref), None)
    if state is None:
        raise ParameterError("this alarm was never raised", where=ref)
    if state.status not in allowed:
        last = state.history[-1]
        raise ParameterError(
            f"alarm is {state.status}, not {' or '.join(allowed)}",
            where=f"{short_ref(ref)}, by {last.by} at {last.at}",
            hint="`workbench monitor alarms list` shows all",
        )
    return state


def find_alarm(store: Store, text: str) -> Ref:
    """The alarm whose digest begins with ``text``.

    Raises:
        ParameterError: There is none, or several.
    """
    prefix = text.removeprefix(f"{Alarm.KIND}/").lower()
    known = [one.ref for one in alarm_states(store)]
    found = [ref for ref in known if prefix and digest_of(ref).startswith(prefix)]
    if len(found) != 1:
        names = ", ".join(short_ref(ref) for ref in (found or known)[-5:]) or "none"
        problem = "ambiguous alarm" if found else "unknown alarm"
        raise ParameterError(f"{problem} {text!r}", hint=f"There are: {names}")
    return found[0]


def _log(store: Store, ref: Ref, action: str, by: str | None, **detail: object) -> audit.LogEntry:
    return audit.append(store.workspace, "alarm", subjects=(ref,), by=by, action=action, **detail)
