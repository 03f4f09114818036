"""The director: what each vehicle has, what it shall have, and the metadata that says so.

All state is in one SQLite file, so that any number of director processes can answer, and a restart
forgets nothing. Vehicles are believed as far as their signatures reach: a message is signed by the
primary, each version in it by its ECU, and it has the next sequence number and a time that the time
server signed minutes ago.
"""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from securesystemslib.signer import CryptoSigner

from workbench.audit import log as audit
from workbench.core import digest
from workbench.core.errors import ParameterError, RecordError
from workbench.core.parsing import UNREADABLE, parse_json
from workbench.core.text import short_repr
from workbench.core.types import Json
from workbench.core.workspace import Workspace
from workbench.fleet import metadata
from workbench.fleet.components import Target, VehicleProfile
from workbench.fleet.reasons import Reason, UpdateRefused
from workbench.fleet.vehicle import MESSAGE_VERSION, REPORT_VERSION, DayCounts, FellBack
from workbench.fleet.verification import read_time
from workbench.records.base import Ref

__all__ = ()

_MAX_TIME_AGE = timedelta(minutes=10)
_MAX_CLASSES = 1000  # of a report
_MAX_FRAMES_A_DAY = 10_000_000  # more than 100 frames/s for 24 hours

_SCHEMA = """
CREATE TABLE IF NOT EXISTS settings (name TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS targets (path TEXT PRIMARY KEY, body TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS vehicles (
    id TEXT PRIMARY KEY, profile TEXT NOT NULL, keys TEXT NOT NULL, installed TEXT NOT NULL,
    fell_back TEXT NOT NULL DEFAULT '[]', sequence INTEGER NOT NULL DEFAULT 0, last TEXT,
    seen TEXT, version INTEGER NOT NULL DEFAULT 0, signed TEXT, signed_at TEXT, signed_for TEXT,
    notice TEXT
);
CREATE TABLE IF NOT EXISTS assignments (
    vehicle TEXT, ecu TEXT, path TEXT NOT NULL, rollout TEXT NOT NULL, PRIMARY KEY (vehicle, ecu)
);
CREATE TABLE IF NOT EXISTS reports (
    vehicle TEXT, day INTEGER, frames INTEGER, late INTEGER, fallbacks INTEGER, body TEXT NOT NULL,
    near_misses INTEGER NOT NULL DEFAULT 0, PRIMARY KEY (vehicle, day)
);
CREATE TABLE IF NOT EXISTS rollouts (
    id TEXT PRIMARY KEY, plan TEXT NOT NULL, offers TEXT NOT NULL, rollbacks TEXT NOT NULL,
    salt TEXT NOT NULL, state TEXT NOT NULL, stage INTEGER NOT NULL DEFAULT 0, entered TEXT,
    held INTEGER NOT NULL DEFAULT 0, paused TEXT, looks INTEGER NOT NULL DEFAULT 0,
    judgement TEXT, why TEXT NOT NULL DEFAULT ''
);
CREATE TABLE IF NOT EXISTS members (
    rollout TEXT, vehicle TEXT, stage INTEGER, canary INTEGER, previous TEXT NOT NULL,
    PRIMARY KEY (rollout, vehicle, stage)
);
CREATE TABLE IF NOT EXISTS exclusions (
    rollout TEXT, vehicle TEXT, reason TEXT NOT NULL, why TEXT NOT NULL,
    PRIMARY KEY (rollout, vehicle)
);
CREATE TABLE IF NOT EXISTS approvals (rollout TEXT, stage INTEGER, by TEXT, at TEXT);
CREATE TABLE IF NOT EXISTS events (
    number INTEGER PRIMARY KEY, at TEXT NOT NULL, rollout TEXT, event TEXT NOT NULL, by TEXT,
    detail TEXT NOT NULL
);
"""


@dataclass(frozen=True)
class Clock:
    """The fleet's clock: real time, or for a simulated fleet a faster one.

    Attributes:
        start: Fleet time at ``real_start`` (seconds since 1970).
        speed: Fleet seconds a real second.
    """

    start: datetime
    real_start: float
    speed: float = 1.0

    def now(self) -> datetime:
        """The fleet's time."""
        return self.start + timedelta(seconds=(time.time() - self.real_start) * self.speed)

    def day(self, now: datetime) -> float:
        """Days since the clock started."""
        return (now - self.start) / timedelta(days=1)


@short_repr
@dataclass(frozen=True)
class VehicleStatus:
    """What the director knows of a vehicle.

    Attributes:
        installed: Target by kind of ECU, as its last manifest says.
        seen: Time of its last message.
    """

    profile: VehicleProfile
    installed: dict[str, Target]
    fell_back: tuple[FellBack, ...]
    seen: datetime | None


class Director:
    """Answers vehicles from an SQLite file.

    Args:
        database: The file; created if missing.
        signers: Online keys of the director; only a server needs them.
        time_signer: Key of the time server.
        workspace: Its audit log gets the events of rollouts.
    """

    def __init__(
        self,
        database: Path,
        signers: metadata.DirectorSigners | None = None,
        time_signer: CryptoSigner | None = None,
        workspace: Workspace | None = None,
    ) -> None:
        self._workspace = workspace
        self.database = database
        self._signers, self._time_signer = signers, time_signer
        database.parent.mkdir(parents=True, exist_ok=True)
        # Kept open and used again: opening costs as much as an answer, and closing the last
        # connection of a file writes all of it to disk.
        self._idle: SimpleQueue[sqlite3.Connection] = SimpleQueue()
        with self._errors_in_words():
            connection = self._open_database()
            connection.executescript(_SCHEMA)
            columns = {row["name"] for row in connection.execute("PRAGMA table_info(reports)")}
            if "near_misses" not in columns:  # a fleet from before they were counted
                connection.execute(
                    "ALTER TABLE reports ADD COLUMN near_misses INTEGER NOT NULL DEFAULT 0"
                )
        self._idle.put(connection)

    def _open_database(self) -> sqlite3.Connection:
        connection = sqlite3.connect(
            self.database, timeout=30, isolation_level=None, check_same_thread=False
        )
        connection.row_factory = sqlite3.Row
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = NORMAL")
        return connection

    @contextmanager
    def connect(self) -> Iterator[sqlite3.Connection]:
        """A transaction: committed at the end, rolled back by an exception.

        Raises:
            RecordError: The database is damaged, or cannot be read or written.
        """
        with self._errors_in_words():
            try:
                connection = self._idle.get_nowait()
            except Empty:
                connection = self._open_database()
            try:
                connection.execute("BEGIN IMMEDIATE")
                yield connection
                connection.execute("COMMIT")
            except BaseException:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
                raise
            finally:
                self._idle.put(connection)

    @contextmanager
    def _errors_in_words(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise RecordError(
                f"the director's database cannot be used: {error}",
                where=self.database,
                hint="Free space or correct its modes; a damaged one is restored from a backup",
            ) from error

    # -- the fleet

    @property
    def clock(self) -> Clock:
        """The clock of the fleet.

        Raises:
            RecordError: It was not started.
        """
        with self.connect() as connection:
            return self.clock_in(connection)

    def start_clock(self, speed: float, start: datetime | None = None) -> Clock:
        """Start the clock, or change its speed from now on; it never goes back.

        Args:
            start: First time that it shows, now by default; ignored once it runs.
        """
        with self.connect() as connection:
            clock = Clock(start or datetime.now(UTC), time.time(), speed)
            try:
                old = self.clock_in(connection)
                # The same start, moved so that both agree at this moment: days keep counting.
                passed = (old.now() - old.start).total_seconds()
                clock = Clock(old.start, time.time() - passed / speed, speed)
            except RecordError:
                pass
            value = json.dumps([clock.start.isoformat(), clock.real_start, clock.speed])
            connection.execute("INSERT OR REPLACE INTO settings VALUES ('clock', ?)", (value,))
        return clock

    def advance_clock(self, passed: timedelta) -> None:
        """Set the clock of a simulated or replayed fleet forward, as if nothing had happened.

        Raises:
            ParameterError: ``passed`` is negative, or a vehicle is real.
        """
        with self.connect() as connection:
            if passed < timedelta(0) or any(
                not one.profile.simulated for one in self.vehicles(connection).values()
            ):
                raise ParameterError("only the clock of a fleet without real vehicles, and forward")
            clock = self.clock_in(connection)
            moved = clock.real_start - passed.total_seconds() / clock.speed
            value = json.dumps([clock.start.isoformat(), moved, clock.speed])
            connection.execute("UPDATE settings SET value = ? WHERE name = 'clock'", (value,))

    def add_targets(self, targets: Iterable[Target]) -> None:
        """Make targets of the image repository known."""
        rows = [(target.path, target.model_dump_json()) for target in targets]
        with self.connect() as connection:
            connection.executemany("INSERT OR REPLACE INTO targets VALUES (?, ?)", rows)

    def register(
        self, profile: VehicleProfile, keys: dict[str, Json], installed: Sequence[Target]
    ) -> None:
        """Add a vehicle that the factory built.

        Args:
            keys: Public keys of the primary and of each ECU.
            installed: The factory's software; the targets have to be known.
        """
        paths = {target.component.ecu: target.path for target in installed}
        with self.connect() as connection:
            connection.execute(
                "INSERT INTO vehicles (id, profile, keys, installed) VALUES (?, ?, ?, ?)",
                (profile.id, profile.model_dump_json(), json.dumps(keys), json.dumps(paths)),
            )

    def vehicles(self, connection: sqlite3.Connection) -> dict[str, VehicleStatus]:
        """All vehicles by id."""
        known = self.targets(connection)
        rows = connection.execute("SELECT * FROM vehicles ORDER BY id")
        return {row["id"]: _vehicle_status(row, known) for row in rows}

    @staticmethod
    def targets(connection: sqlite3.Connection) -> dict[str, Target]:
        """All known targets by path."""
        rows = connection.execute("SELECT path, body FROM targets")
        return {row["path"]: read_model(row, "body", Target) for row in rows}

    # -- what vehicles ask

    def time_message(self, content: bytes) -> bytes:
        """The time, signed with the nonce of a vehicle."""
        try:
            nonce = parse_json(content)["nonce"]
        except (ValueError, KeyError, TypeError) as error:
            raise UpdateRefused(Reason.MESSAGE_INVALID, "no nonce") from error
        if not isinstance(nonce, str) or len(nonce) > 100 or self._time_signer is None:
            raise UpdateRefused(Reason.MESSAGE_INVALID, "invalid nonce")
        body: Json = {"time": self.clock.now().isoformat(), "nonce": nonce}
        return metadata.seal_message(body, self._time_signer)

    def manifest(self, content: bytes) -> Json:
        """Store what a vehicle says it runs.

        Returns:
            What the vehicle is told: why it is excluded from a rollout.

        Raises:
            UpdateRefused: The message cannot be believed.
        """
        with self.connect() as connection:
            row, body = self._open(connection, content, "manifest", MESSAGE_VERSION)
            if body is None:
                return {}
            keys = read_json(row, "keys")
            profile = read_model(row, "profile", VehicleProfile)
            try:
                fell_back = [FellBack.model_validate(one) for one in body["fell_back"]]
                installed = {}
                for ecu in profile.ecus:
                    key = metadata.public_key(keys[ecu])
                    version = metadata.open_message(body["ecus"][ecu].encode(), key)
                    if version["ecu_identifier"] != profile.ecu_id(ecu) or (
                        version["sequence"] != body["sequence"]
                    ):
                        what = f"version of {ecu} is from another ECU or message"
                        raise UpdateRefused(Reason.MESSAGE_REPLAYED, what, where=profile.id)
                    installed[ecu] = str(version["path"])
            except (KeyError, TypeError, AttributeError, ValidationError) as error:
                what = f"manifest is incomplete: {error}"
                raise UpdateRefused(Reason.MESSAGE_INVALID, what, where=profile.id) from error
            stored = json.dumps([one.model_dump(mode="json") for one in fell_back])
            connection.execute(
                "UPDATE vehicles SET installed = ?, fell_back = ? WHERE id = ?",
                (json.dumps(installed), stored, profile.id),
            )
            self._withdraw_fallen_back(connection, profile.id, fell_back)
            notice: Json = read_json(row, "notice") if row["notice"] else {}
            return notice

    def report(self, content: bytes) -> Json:
        """Store the counts of a vehicle-day; the first report of a day counts.

        Raises:
            UpdateRefused: The message cannot be believed, or its schema is not known.
        """
        with self.connect() as connection:
            row, body = self._open(connection, content, "report", REPORT_VERSION)
            if body is None:
                return {}
            try:
                counts = DayCounts.model_validate(body["counts"])
                numbers = (
                    counts.frames, counts.late, counts.fallbacks, counts.near_misses,
                    *counts.detections.values(),
                )  # fmt: skip
                if min(numbers) < 0 or counts.frames > _MAX_FRAMES_A_DAY or max(numbers) >= 2**53:
                    raise ValueError("a count is negative or too large")
                if max(counts.late, counts.fallbacks) > counts.frames:
                    raise ValueError("more late frames or fallbacks than frames")
                if len(counts.detections) > _MAX_CLASSES or counts.day > self._day(connection):
                    raise ValueError("a day in the future, or too many classes")
            except (KeyError, ValueError) as error:
                what = f"invalid report: {error}"
                raise UpdateRefused(Reason.MESSAGE_INVALID, what, where=row["id"]) from error
            connection.execute(
                "INSERT OR IGNORE INTO reports (vehicle, day, frames, late, fallbacks, body, "
                "near_misses) VALUES (?, ?, ?, ?, ?, ?, ?)",
                (
                    row["id"], counts.day, counts.frames, counts.late, counts.fallbacks,
                    json.dumps(counts.detections), counts.near_misses,
                ),
            )  # fmt: skip
            return {}

    def metadata_file(self, vehicle: str, name: str) -> bytes:
        """Metadata for one vehicle: ``timestamp.json``, ``snapshot.json`` or ``targets.json``.

        Asking for the timestamp signs anew when the assignment has changed or half of the validity
        has passed; the other two are those of the last timestamp.

        Raises:
            UpdateRefused: The vehicle is unknown.
        """
        with self.connect() as connection:
            row = connection.execute("SELECT * FROM vehicles WHERE id = ?", (vehicle,)).fetchone()
            if row is None:
                raise UpdateRefused(Reason.UNKNOWN_VEHICLE, "no such vehicle", where=vehicle)
            files: dict[str, str] = read_json(row, "signed") if row["signed"] else {}
            if name == "timestamp.json":
                files = self._sign(connection, row, files)
        if name not in files:
            raise UpdateRefused(Reason.UNKNOWN_VEHICLE, f"no {name} yet", where=vehicle)
        return files[name].encode()

    def _sign(
        self, connection: sqlite3.Connection, row: sqlite3.Row, files: dict[str, str]
    ) -> dict[str, str]:
        assigned = [
            read_model(one, "body", Target)
            for one in connection.execute(
                # A paused or aborted rollout offers nothing; what is installed stays.
                "SELECT body FROM assignments JOIN targets USING (path) "
                "LEFT JOIN rollouts ON rollouts.id = rollout WHERE vehicle = ? "
                "AND coalesce(state, '') NOT IN ('paused', 'aborted') ORDER BY ecu",
                (row["id"],),
            )
        ]
        purpose = digest.of_json([target.path for target in assigned])
        now = self._now(connection)
        fresh = row["signed_at"] is not None and (
            now - datetime.fromisoformat(row["signed_at"]) < metadata.DIRECTOR_EXPIRES / 2
        )
        if files and fresh and row["signed_for"] == purpose:
            return files
        if self._signers is None:
            raise RecordError("this director has no keys to sign with", where=self.database)
        profile = read_model(row, "profile", VehicleProfile)
        version = row["version"] + 1
        signed = metadata.director_metadata(profile, assigned, version, self._signers, now)
        files = {name: content.decode() for name, content in signed.items()}
        connection.execute(
            "UPDATE vehicles SET version = ?, signed = ?, signed_at = ?, signed_for = ? "
            "WHERE id = ?",
            (version, json.dumps(files), now.isoformat(), purpose, row["id"]),
        )
        return files

    # -- common

    def _open(
        self, connection: sqlite3.Connection, content: bytes, kind: str, version: int
    ) -> tuple[sqlite3.Row, Json | None]:
        """The sender and the body of a message; no body if exactly this message was seen before."""
        try:
            sender = parse_json(content)["signed"]["vehicle"]
        except (ValueError, KeyError, TypeError) as error:
            raise UpdateRefused(Reason.MESSAGE_INVALID, "not a signed message") from error
        row = connection.execute("SELECT * FROM vehicles WHERE id = ?", (str(sender),)).fetchone()
        if row is None:
            raise UpdateRefused(Reason.UNKNOWN_VEHICLE, "no such vehicle", where=sender)
        key = metadata.public_key(read_json(row, "keys")["primary"])
        body = metadata.open_message(content, key)
        if body.get("kind") != kind:
            what = f"expected a {kind}, not a {body.get('kind')}"
            raise UpdateRefused(Reason.MESSAGE_INVALID, what, where=sender)
        if body.get("schema_version") != version:
            what = f"{kind} of schema {body.get('schema_version')}, known is {version}"
            raise UpdateRefused(Reason.SCHEMA_UNSUPPORTED, what, where=sender)
        known = digest.of_bytes(content)
        if known == row["last"]:
            return row, None  # sent again because our answer was lost
        sequence = body.get("sequence")
        if type(sequence) is not int or sequence <= row["sequence"]:
            what = f"sequence {str(sequence)[:50]} is not above {row['sequence']}"
            raise UpdateRefused(Reason.MESSAGE_REPLAYED, what, where=sender)
        now = self._now(connection)
        age = now - self._time_in(body, sender)
        if age > _MAX_TIME_AGE * max(self.clock_in(connection).speed, 1.0):
            what = f"{kind} has a time that is {age} old"
            raise UpdateRefused(Reason.MESSAGE_STALE, what, where=sender)
        connection.execute(
            "UPDATE vehicles SET sequence = ?, last = ?, seen = ? WHERE id = ?",
            (sequence, known, now.isoformat(), sender),
        )
        return row, body

    def _time_in(self, body: Json, sender: str) -> datetime:
        if self._time_signer is None:
            raise RecordError("this director has no time server's key", where=self.database)
        token, nonce = body.get("time"), body.get("nonce")
        if not isinstance(token, str) or not isinstance(nonce, str):
            raise UpdateRefused(Reason.MESSAGE_INVALID, "message without a time", where=sender)
        return read_time(token.encode(), self._time_signer.public_key, nonce)

    @staticmethod
    def _withdraw_fallen_back(
        connection: sqlite3.Connection, vehicle: str, fell_back: Sequence[FellBack]
    ) -> None:
        """Assignments of a rollout whose content this vehicle fell back from are withdrawn."""
        contents = {one.sha256 for one in fell_back}
        rows = connection.execute(
            "SELECT rollout, body FROM assignments JOIN targets USING (path) WHERE vehicle = ?",
            (vehicle,),
        ).fetchall()
        for row in rows:
            if read_model(row, "body", Target).sha256 in contents:
                connection.execute(
                    "DELETE FROM assignments WHERE vehicle = ? AND rollout = ?",
                    (vehicle, row["rollout"]),
                )

    def event(
        self,
        connection: sqlite3.Connection,
        rollout: str,
        event: str,
        by: str = "director",
        detail: str = "",
        *,
        subjects: tuple[Ref, ...] = (),
    ) -> None:
        """Add to the history of a rollout, and to the audit log."""
        at = self._now(connection).isoformat()
        connection.execute(
            "INSERT INTO events (at, rollout, event, by, detail) VALUES (?, ?, ?, ?, ?)",
            (at, rollout, event, by, detail),
        )
        if self._workspace is not None:
            what = {"rollout": rollout, "action": event, "why": detail, "fleet_time": at}
            audit.append(self._workspace, "rollout", by=by, subjects=subjects, **what)

    def clock_in(self, connection: sqlite3.Connection) -> Clock:
        """The clock, inside a transaction.

        Raises:
            RecordError: It was not started.
        """
        row = connection.execute("SELECT value FROM settings WHERE name = 'clock'").fetchone()
        if row is None:
            raise RecordError("the fleet's clock was not started", where=self.database)
        try:
            start, real_start, speed = parse_json(row["value"])
            return Clock(datetime.fromisoformat(start), float(real_start), float(speed))
        except UNREADABLE as error:
            raise _damaged("value", error) from error

    def _now(self, connection: sqlite3.Connection) -> datetime:
        return self.clock_in(connection).now()

    def _day(self, connection: sqlite3.Connection) -> float:
        clock = self.clock_in(connection)
        return clock.day(clock.now())


_Model = TypeVar("_Model", bound=BaseModel)


def read_json(row: sqlite3.Row, column: str) -> dict[str, Any]:
    """The JSON object in a column, read within limits.

    Raises:
        RecordError: It is damaged.
    """
    try:
        return dict(parse_json(row[column]).items())
    except UNREADABLE as error:
        raise _damaged(column, error) from error


def read_model(row: sqlite3.Row, column: str, kind: type[_Model]) -> _Model:
    """The model in a column; raises as `read_json` does."""
    try:
        return kind.model_validate_json(row[column])
    except UNREADABLE as error:
        raise _damaged(column, error) from error


def read_models(row: sqlite3.Row, column: str, kind: type[_Model]) -> list[_Model]:
    """The list of models in a column; raises as `read_json` does."""
    try:
        return [kind.model_validate(value) for value in parse_json(row[column])]
    except UNREADABLE as error:
        raise _damaged(column, error) from error


def _damaged(column: str, error: Exception) -> RecordError:
    first = str(error).split("\n", 1)[0][:200]
    return RecordError(
        f"the director's database is damaged in {column!r}: {first}",
        hint="Restore it from a backup",
    )


def _vehicle_status(row: sqlite3.Row, known: dict[str, Target]) -> VehicleStatus:
    installed = {
        ecu: known[path] for ecu, path in read_json(row, "installed").items() if path in known
    }
    return VehicleStatus(
        profile=read_model(row, "profile", VehicleProfile),
        installed=installed,
        fell_back=tuple(read_models(row, "fell_back", FellBack)),
        seen=datetime.fromisoformat(row["seen"]) if row["seen"] else None,
    )
