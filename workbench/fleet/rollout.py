"""A rollout: a plan carried out stage by stage over the director's database.

`advance` is called every second by each server and does what is due, in one transaction: any number
of servers may call it, and a restart forgets nothing. A stage succeeds on evidence only: enough
vehicles run the update and report, few fell back, and the canary judge says successful. Otherwise
the rollout is held for a person, or stopped and rolled back where the plan says so.

Rollback releases are signed before the rollout starts, see `workbench.fleet.publishing`.
"""

from __future__ import annotations

import json
import secrets
import sqlite3
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from math import ceil
from typing import Final

import numpy as np

from workbench.core import digest
from workbench.core.errors import ParameterError
from workbench.core.text import counted, short_repr
from workbench.core.types import Json
from workbench.fleet.canary import CanaryData, CanaryRule, Judgement, Outcome, judge
from workbench.fleet.components import (
    Offer,
    Target,
    incompatibility,
    resolve,
)
from workbench.fleet.director import (
    Director,
    VehicleStatus,
    read_json,
    read_model,
    read_models,
)
from workbench.fleet.plan import Plan, Stage
from workbench.fleet.reasons import Reason, UpdateRefused

__all__ = ["abort", "advance", "approve", "pause", "resume", "rollback", "start"]

_OPEN: Final = ("running", "waiting", "paused")


def check_free(director: Director, plan: Plan) -> None:
    """Check that no other rollout of an ECU of this plan is going on.

    Raises:
        ParameterError: There is one.
    """
    with director.connect() as connection:
        _check_free(connection, plan)


def start(
    director: Director,
    plan: Plan,
    offers: Sequence[Offer],
    rollbacks: Mapping[str, Target],
    by: str,
    *,
    note: str = "",
) -> str:
    """Start a rollout.

    Args:
        offers: Of all components of the plan.
        rollbacks: Of `publish_rollbacks`.
        by: Who starts it.
        note: For the history.

    Returns:
        The id of the rollout.

    Raises:
        ParameterError: Another rollout of one of its ECUs is going on.
    """
    director.add_targets([offer.target for offer in offers] + list(rollbacks.values()))
    with director.connect() as connection:
        _check_free(connection, plan)
        count = connection.execute("SELECT count(*) FROM rollouts").fetchone()[0]
        rollout = f"{plan.name}-{count + 1}"
        connection.execute(
            "INSERT INTO rollouts (id, plan, offers, rollbacks, salt, state) "
            "VALUES (?, ?, ?, ?, ?, 'running')",
            (
                rollout,
                plan.model_dump_json(),
                json.dumps([offer.model_dump(mode="json") for offer in offers]),
                json.dumps({path: target.path for path, target in rollbacks.items()}),
                secrets.token_hex(16),
            ),
        )
        releases = dict.fromkeys(offer.target.component.release for offer in offers)
        director.event(connection, rollout, "started", by, note, subjects=tuple(releases))
    return rollout


def advance(director: Director) -> None:
    """Do what is due: begin stages, judge them, go on, hold, or roll back."""
    with director.connect() as connection:
        rows = connection.execute(
            "SELECT * FROM rollouts WHERE state IN ('running', 'waiting')"
        ).fetchall()
        for row in rows:
            _Run(director, connection, row).advance()


def approve(director: Director, rollout: str, by: str) -> None:
    """Approve the stage that a rollout waits for.

    Raises:
        ParameterError: It waits for nobody, or not for this person.
    """
    with director.connect() as connection:
        run = _Run(director, connection, _rollout(connection, rollout))
        if run.row["state"] != "waiting" or by not in run.stage.approval:
            people = ", ".join(run.stage.approval) or "nobody"
            raise ParameterError(
                f"stage {run.stage.name} waits for {people}, not for {by}",
                where=f"rollout {run.id}, {run.row['state']}",
            )
        connection.execute(
            "INSERT INTO approvals VALUES (?, ?, ?, ?)",
            (run.id, run.row["stage"], by, run.now.isoformat()),
        )
        director.event(connection, run.id, "approved", by, run.stage.name)
        run.advance()


def pause(director: Director, rollout: str, by: str) -> None:
    """Offer nothing more until `resume`; vehicles keep what they run.

    Raises:
        ParameterError: The rollout is not going on.
    """
    with director.connect() as connection:
        run = _Run(director, connection, _rollout(connection, rollout))
        run.expect("running", "waiting")
        run.hold("paused by a person", by=by, held=False)


def resume(director: Director, rollout: str, by: str) -> None:
    """Continue. A stage that was held for lack of evidence counts as accepted by this person.

    Raises:
        ParameterError: The rollout is not paused.
    """
    with director.connect() as connection:
        run = _Run(director, connection, _rollout(connection, rollout))
        run.expect("paused")
        held = bool(run.row["held"])
        entered = run.row["entered"]
        if entered and run.row["paused"]:
            away = run.now - datetime.fromisoformat(run.row["paused"])
            entered = (datetime.fromisoformat(entered) + away).isoformat()
        run.set(state="running", held=0, paused=None, entered=entered, why="")
        accepted = f"accepted without evidence: {run.row['why']}" if held else ""
        director.event(connection, run.id, "resumed", by, accepted)
        if held and entered:
            run.succeed(by)


def abort(director: Director, rollout: str, by: str) -> None:
    """End a rollout; vehicles keep what they run.

    Raises:
        ParameterError: It has ended already.
    """
    with director.connect() as connection:
        run = _Run(director, connection, _rollout(connection, rollout))
        run.expect(*_OPEN)
        run.set(state="aborted", why="aborted by a person")
        connection.execute("DELETE FROM assignments WHERE rollout = ?", (run.id,))
        director.event(connection, run.id, "aborted", by)


def rollback(director: Director, rollout: str, by: str, ecus: Sequence[str] = ()) -> dict[str, str]:
    """Send every vehicle of a rollout back to what it ran before.

    Args:
        ecus: Components to roll back, all of the rollout by default. Others of it follow where
            their dependencies ask for it.

    Returns:
        Vehicles that cannot go back, with the reason.

    Raises:
        ParameterError: The rollout has no such component, or was rolled back already.
    """
    with director.connect() as connection:
        run = _Run(director, connection, _rollout(connection, rollout))
        run.expect(*_OPEN, "aborted", "completed", "rolled-back")
        return run.rollback(by, ecus)


@short_repr
@dataclass(frozen=True)
class JudgedStage:
    """What the canary judge saw of a stage.

    Attributes:
        vehicles: In the order of ``data``.
        seed: Of the judge's draws: `judge` with it gives the same answer again.
        events: History of the rollout: ``at``, ``event``, ``by`` and ``detail``.
    """

    rollout: str
    state: str
    stage: str
    rule: CanaryRule
    vehicles: tuple[str, ...]
    data: CanaryData
    seed: int
    events: tuple[Json, ...]


def judged_stage(director: Director, rollout: str | None = None) -> JudgedStage:
    """What the judge last saw of a rollout.

    Args:
        rollout: By default the last one with a judgement.

    Raises:
        ParameterError: Nothing was judged yet.
    """
    with director.connect() as connection:
        rows = connection.execute(
            "SELECT * FROM rollouts WHERE judgement IS NOT NULL AND id = coalesce(?, id) "
            "ORDER BY rowid",
            (rollout,),
        ).fetchall()
        if not rows:
            raise ParameterError("no canary was judged yet", where=rollout or director.database)
        run = _Run(director, connection, rows[-1])
        rule = run.stage.judge
        assert rule is not None  # noqa: S101 - it was judged
        members = [*run.members(canary=True), *run.members(canary=False)]
        entered = datetime.fromisoformat(run.row["entered"])
        return JudgedStage(
            rollout=run.id,
            state=run.row["state"],
            stage=run.stage.name,
            rule=rule,
            vehicles=tuple(members),
            data=run.canary_data(rule, entered, run.row["looks"]),
            seed=_seed(run.row),
            events=tuple(_events(connection, run.id)),
        )


class _Run:
    """One rollout inside a transaction."""

    def __init__(
        self, director: Director, connection: sqlite3.Connection, row: sqlite3.Row
    ) -> None:
        self._director, self._connection, self.row = director, connection, row
        self.id: str = row["id"]
        self.clock = director.clock_in(connection)
        self.now = self.clock.now()
        self.plan = read_model(row, "plan", Plan)
        self._offers = read_models(row, "offers", Offer)

    @property
    def stage(self) -> Stage:
        """The stage that is going on or comes next; the last one at the end."""
        number: int = self.row["stage"]
        return self.plan.stages[min(number, len(self.plan.stages) - 1)]

    def expect(self, *states: str) -> None:
        """Raise unless the rollout is in one of these states."""
        if self.row["state"] not in states:
            raise ParameterError(
                f"rollout is {self.row['state']}, not {' or '.join(states)}", where=self.id
            )

    def set(self, **values: object) -> None:
        """Change columns of the rollout."""
        names = ", ".join(f"{name} = ?" for name in values)
        self._connection.execute(
            f"UPDATE rollouts SET {names} WHERE id = ?",  # noqa: S608 - names are ours
            (*values.values(), self.id),
        )
        self.row = _rollout(self._connection, self.id)

    def event(self, event: str, by: str = "director", detail: str = "") -> None:
        """Add to the history."""
        self._director.event(self._connection, self.id, event, by, detail)

    def hold(self, why: str, *, by: str = "director", held: bool = True) -> None:
        """Pause; ``held`` if evidence is missing."""
        self.set(state="paused", held=int(held), paused=self.now.isoformat(), why=why)
        self.event("held" if held else "paused", by, f"{self.stage.name}: {why}")

    def advance(self) -> None:
        """What is due now."""
        if self.row["entered"] is None:
            self._enter()
        else:
            self._evaluate()

    def succeed(self, by: str = "director") -> None:
        """End the stage; begin the next one, or complete the rollout."""
        self.event("stage succeeded", by, self.stage.name)
        following = self.row["stage"] + 1
        if following == len(self.plan.stages):
            self.set(state="completed", stage=following, why="")
            self.event("completed")
            return
        self.set(stage=following, entered=None, looks=0, judgement=None)
        self._enter()

    def fail(self, why: str) -> None:
        """What the plan says about a failed stage."""
        self.event("stage failed", detail=f"{self.stage.name}: {why}")
        action = self.stage.on_failure
        if action == "rollback":
            self.rollback("director", (), why=why)
        elif action == "abort":
            self.set(state="aborted", why=why)
            self._connection.execute("DELETE FROM assignments WHERE rollout = ?", (self.id,))
            self.event("aborted", detail=why)
        else:
            self.hold(f"failed: {why}")

    # -- beginning a stage

    def _enter(self) -> None:
        stage = self.stage
        approved = self._connection.execute(
            "SELECT 1 FROM approvals WHERE rollout = ? AND stage = ?",
            (self.id, self.row["stage"]),
        ).fetchone()
        if stage.approval and not approved:
            why = f"approval of {stage.name} by {' or '.join(stage.approval)}"
            if self.row["state"] != "waiting":
                self.set(state="waiting", why=why)
                self.event("waiting", detail=why)
            return
        eligible = self._eligible()
        chosen = eligible[: _size(stage.size, len(eligible))]
        rest = eligible[len(chosen) :]
        control = rest[: _size(stage.control, len(rest))] if stage.judge else []
        if not chosen:
            self.hold("no vehicle of the cohort can take the update")
            return
        if stage.judge and not control:
            self.hold("the cohort has no vehicles left to compare with")
            return
        for vehicle, canary in [(one, 1) for one in chosen] + [(one, 0) for one in control]:
            self._connection.execute(
                "INSERT INTO members VALUES (?, ?, ?, ?, ?)",
                (
                    self.id,
                    vehicle.profile.id,
                    self.row["stage"],
                    canary,
                    json.dumps({ecu: one.path for ecu, one in vehicle.installed.items()}),
                ),
            )
        for vehicle in chosen:
            self._assign(vehicle.profile.id, [one.target for one in self._fitting(vehicle)])
        self.set(state="running", entered=self.now.isoformat(), why="")
        compared = f", {counted(len(control), 'vehicle')} to compare with" if control else ""
        detail = f"{stage.name}: {counted(len(chosen), 'vehicle')}{compared}"
        self.event("stage began", detail=detail)

    def _eligible(self) -> list[VehicleStatus]:
        """Vehicles of the cohort that can take the update, in a random order of their own.

        The order depends on a secret of the rollout: a vehicle cannot choose to be a canary.
        """
        members = {
            row["vehicle"]
            for row in self._connection.execute(
                "SELECT vehicle FROM members WHERE rollout = ? AND canary = 1", (self.id,)
            )
        }
        eligible = []
        for vehicle in self._director.vehicles(self._connection).values():
            name = vehicle.profile.id
            if name in members or not self.stage.matches(vehicle.profile):
                continue
            try:
                self._check(vehicle)
            except UpdateRefused as refused:
                self._exclude(name, refused)
            else:
                eligible.append(vehicle)
        key = f"{self.row['salt']} {self.row['stage']} "
        return sorted(eligible, key=lambda one: digest.of_bytes((key + one.profile.id).encode()))

    def _check(self, vehicle: VehicleStatus) -> None:
        """Raise the reason why a vehicle cannot take the update."""
        fitting = [one.target for one in self._fitting(vehicle)]
        refused = {one.sha256 for one in vehicle.fell_back}
        for target in fitting:
            if target.sha256 in refused:
                what = f"the vehicle fell back from version {target.component.version}"
                raise UpdateRefused(Reason.FELL_BACK_BEFORE, what, where=vehicle.profile.id)
        installed = {ecu: target.component for ecu, target in vehicle.installed.items()}
        resolve(installed, [target.component for target in fitting])

    def _fitting(self, vehicle: VehicleStatus) -> list[Offer]:
        """One offer for each component of the plan."""
        found = []
        for component in self.plan.components:
            reasons = []
            for offer in self._offers:
                if offer.target.component.ecu != component.ecu:
                    continue
                reason = incompatibility(vehicle.profile, offer)
                if reason is None:
                    found.append(offer)
                    break
                reasons.append(reason)
            else:
                # Files for other chips say little; that of this chip says what is missing.
                raise max(reasons, key=lambda one: one.reason is not Reason.INCOMPATIBLE_HARDWARE)
        return found

    def _exclude(self, vehicle: str, refused: UpdateRefused) -> None:
        self._connection.execute(
            "INSERT OR REPLACE INTO exclusions VALUES (?, ?, ?, ?)",
            (self.id, vehicle, refused.reason, refused.what),
        )
        notice = {"rollout": self.id, "reason": refused.reason, "message": refused.what}
        self._connection.execute(
            "UPDATE vehicles SET notice = ? WHERE id = ?", (json.dumps(notice), vehicle)
        )

    def _assign(self, vehicle: str, targets: Sequence[Target]) -> None:
        self._connection.execute("UPDATE vehicles SET notice = NULL WHERE id = ?", (vehicle,))
        for target in targets:
            self._connection.execute(
                "INSERT OR REPLACE INTO assignments VALUES (?, ?, ?, ?)",
                (vehicle, target.component.ecu, target.path, self.id),
            )

    # -- judging a stage

    def _evaluate(self) -> None:
        stage, vehicles = self.stage, self._director.vehicles(self._connection)
        names = self.members(canary=True)
        total = len(names)
        ours = {offer.target.sha256 for offer in self._offers}
        fell_back = sum(
            any(one.sha256 in ours for one in vehicles[name].fell_back) for name in names
        )
        if fell_back > stage.max_fell_back * total:
            self.fail(f"{fell_back} of {total} vehicles fell back")
            return
        entered = datetime.fromisoformat(self.row["entered"])
        elapsed = self.now - entered
        judgement = self._look(entered) if stage.judge else None
        if judgement is not None and judgement.outcome is Outcome.FAILED:
            self.fail(judgement.why)
            return
        if elapsed < stage.soak or (stage.judge and self.row["looks"] < stage.judge.looks):
            return
        installed = sum(self._runs(vehicles[name]) for name in names)
        if installed < stage.installed * total:
            self.hold(f"{installed} of {total} vehicles run the update")
            return
        reporting = self._reporting(names, entered) if stage.soak else total
        if reporting < stage.reporting * total:
            self.hold(f"{total - reporting} of {total} vehicles are silent")
        elif judgement is not None and judgement.outcome is Outcome.INCONCLUSIVE:
            self.hold(f"inconclusive: {judgement.why}")
        else:
            self.succeed()

    def _look(self, entered: datetime) -> Judgement | None:
        """The judge's answer if a look is due, else None."""
        rule, stage = self.stage.judge, self.stage
        assert rule is not None  # noqa: S101 - checked by the caller
        passed = (self.now - entered - self.plan.report_delay) / stage.soak
        due = max(0, min(rule.looks, int(passed * rule.looks + 1e-9)))
        if due <= self.row["looks"]:
            return None
        judgement = judge(self.canary_data(rule, entered, due), rule, seed=_seed(self.row))
        body = {
            "outcome": judgement.outcome,
            "look": judgement.look,
            "looks": judgement.looks,
            "why": judgement.why,
            "p_value": judgement.p_value,
            "canary": {"vehicles": judgement.canary[0], "reporting": judgement.canary[1]},
            "baseline": {"vehicles": judgement.baseline[0], "reporting": judgement.baseline[1]},
            "metrics": [vars(metric) for metric in judgement.metrics],
        }
        self.set(looks=due, judgement=json.dumps(body))
        detail = f"{stage.name}, look {judgement.look} of {judgement.looks}: "
        self.event("judged", detail=f"{detail}{judgement.outcome}, {judgement.why}")
        return judgement

    def canary_data(self, rule: CanaryRule, entered: datetime, looks: int) -> CanaryData:
        """Whole days since the stage began, added up to each look."""
        canary, control = self.members(canary=True), self.members(canary=False)
        index = {name: number for number, name in enumerate([*canary, *control])}
        exposure = np.zeros((len(index), looks))
        events = np.zeros((len(index), looks, len(rule.metrics)))
        start = ceil(self.clock.day(entered) - 1e-9)
        days_a_look = self.stage.soak.total_seconds() / 86400 / rule.looks
        for row in self._connection.execute("SELECT * FROM reports WHERE day >= ?", (start,)):
            number = index.get(row["vehicle"])
            first = ceil((row["day"] - start + 1) / days_a_look - 1e-9) - 1
            if number is not None and first < looks:
                exposure[number, first:] += row["frames"]
                events[number, first:] += [row[name] for name in rule.metrics]
        drawn = np.arange(len(index)) < len(canary)
        return CanaryData(drawn, events, exposure)

    def _reporting(self, names: Sequence[str], entered: datetime) -> int:
        rows = self._connection.execute(
            "SELECT DISTINCT vehicle FROM reports WHERE day >= ? AND frames > 0",
            (int(self.clock.day(entered)),),
        )
        return len({row["vehicle"] for row in rows} & set(names))

    def members(self, *, canary: bool) -> list[str]:
        """Vehicles of the stage by name: canaries, or those that are compared with them."""
        rows = self._connection.execute(
            "SELECT vehicle FROM members WHERE rollout = ? AND stage = ? AND canary = ? "
            "ORDER BY vehicle",
            (self.id, self.row["stage"], int(canary)),
        )
        return [row["vehicle"] for row in rows]

    def _runs(self, vehicle: VehicleStatus) -> bool:
        paths = {offer.target.path for offer in self._offers}
        return all(
            one.ecu in vehicle.installed and vehicle.installed[one.ecu].path in paths
            for one in self.plan.components
        )

    # -- going back

    def rollback(self, by: str, ecus: Sequence[str], *, why: str = "") -> dict[str, str]:
        """See `rollback`."""
        ours = [component.ecu for component in self.plan.components]
        unknown = set(ecus) - set(ours)
        if unknown:
            raise ParameterError(
                f"no component {', '.join(sorted(unknown))} in rollout {self.id}",
                hint=f"It has: {', '.join(ours)}",
            )
        known = self._director.targets(self._connection)
        rollbacks = {old: known[new] for old, new in read_json(self.row, "rollbacks").items()}
        vehicles = self._director.vehicles(self._connection)
        stuck, count = {}, 0
        for row in self._connection.execute(
            "SELECT vehicle, previous FROM members WHERE rollout = ? AND canary = 1", (self.id,)
        ).fetchall():
            back = {
                ecu: rollbacks[path]
                for ecu, path in read_json(row, "previous").items()
                if ecu in ours and path in rollbacks
            }
            try:
                targets = _resolved(vehicles[row["vehicle"]], back, ecus or ours)
            except UpdateRefused as refused:
                stuck[row["vehicle"]] = str(refused)
                continue
            self._assign(row["vehicle"], targets)
            count += 1
        self.set(state="rolled-back", held=0, why=why or "rolled back by a person")
        detail = f"{', '.join(ecus or ours)}: {counted(count, 'vehicle')}"
        self.event("rolled back", by, f"{detail}, {len(stuck)} cannot" if stuck else detail)
        return stuck


def _resolved(
    vehicle: VehicleStatus, back: Mapping[str, Target], ecus: Sequence[str]
) -> list[Target]:
    """Targets that take a vehicle back: those asked for, or all of the rollout if it has to be."""
    installed = {ecu: target.component for ecu, target in vehicle.installed.items()}
    wanted = [back[ecu] for ecu in ecus if ecu in back]
    if not wanted:
        what = "what it ran before is not known"
        raise UpdateRefused(Reason.DEPENDENCY_MISSING, what, where=vehicle.profile.id)
    try:
        resolve(installed, [target.component for target in wanted])
    except UpdateRefused:
        wanted = list(back.values())
        resolve(installed, [target.component for target in wanted])
    return wanted


def fleet_status(director: Director) -> Json:
    """The fleet and its rollouts, as JSON."""
    with director.connect() as connection:
        vehicles = director.vehicles(connection)
        versions: dict[str, Counter[int]] = {}
        for vehicle in vehicles.values():
            for ecu, target in vehicle.installed.items():
                versions.setdefault(ecu, Counter())[target.component.version] += 1
        rollouts = [
            _rollout_status(connection, row, vehicles)
            for row in connection.execute("SELECT * FROM rollouts ORDER BY rowid").fetchall()
        ]
        now = director.clock_in(connection).now()
    return {
        "evidence": "simulated"
        if any(vehicle.profile.simulated for vehicle in vehicles.values())
        else "real",
        "now": now.isoformat(timespec="seconds"),
        "vehicles": len(vehicles),
        "versions": {
            ecu: {str(version): count for version, count in sorted(counts.items())}
            for ecu, counts in sorted(versions.items())
        },
        "fell_back": sum(bool(vehicle.fell_back) for vehicle in vehicles.values()),
        "rollouts": rollouts,
    }


def _rollout_status(
    connection: sqlite3.Connection, row: sqlite3.Row, vehicles: Mapping[str, VehicleStatus]
) -> Json:
    plan = read_model(row, "plan", Plan)
    offers = read_models(row, "offers", Offer)
    paths = {offer.target.path for offer in offers}
    back = set(read_json(row, "rollbacks").values())
    running = {
        name: {target.path for target in vehicle.installed.values()}
        for name, vehicle in vehicles.items()
    }
    excluded = connection.execute(
        "SELECT reason, count(*) AS n FROM exclusions WHERE rollout = ? GROUP BY reason",
        (row["id"],),
    )
    done = row["stage"] >= len(plan.stages)
    return {
        "id": row["id"],
        "state": row["state"],
        "why": row["why"],
        "stage": None if done else plan.stages[row["stage"]].name,
        "stages": [stage.name for stage in plan.stages],
        "running": sum(bool(have & paths) for have in running.values()),
        "back": sum(bool(have & back) for have in running.values()),
        "excluded": {one["reason"]: one["n"] for one in excluded},
        "judgement": read_json(row, "judgement") if row["judgement"] else None,
        "events": _events(connection, row["id"]),
    }


def _events(connection: sqlite3.Connection, rollout: str) -> list[Json]:
    rows = connection.execute("SELECT * FROM events WHERE rollout = ? ORDER BY number", (rollout,))
    return [{name: row[name] for name in ("at", "event", "by", "detail")} for row in rows]


def _rollout(connection: sqlite3.Connection, rollout: str) -> sqlite3.Row:
    row: sqlite3.Row | None = connection.execute(
        "SELECT * FROM rollouts WHERE id = ?", (rollout,)
    ).fetchone()
    if row is None:
        names = [one["id"] for one in connection.execute("SELECT id FROM rollouts")]
        raise ParameterError(
            f"no rollout {rollout!r}", hint=f"There are: {', '.join(names) or 'none'}"
        )
    return row


def _check_free(connection: sqlite3.Connection, plan: Plan) -> None:
    for row in connection.execute("SELECT * FROM rollouts"):
        other = read_model(row, "plan", Plan)
        shared = {one.ecu for one in plan.components} & {one.ecu for one in other.components}
        if shared and row["state"] in _OPEN:
            raise ParameterError(
                f"rollout {row['id']} of {', '.join(sorted(shared))} is {row['state']}",
                hint="Abort it first, or wait until it has ended",
            )


def _size(size: str, available: int) -> int:
    if size == "all":
        return available
    if size.endswith("%"):
        return ceil(float(size[:-1]) / 100 * available)
    return min(int(size), available)


def _seed(row: sqlite3.Row) -> int:
    """Of the judge's draws: the same at each look, and not known to vehicles."""
    return int(digest.of_bytes(f"{row['salt']} {row['stage']} judge".encode())[:8], 16)
