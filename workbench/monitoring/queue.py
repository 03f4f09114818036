"""A vehicle's queue of messages on its disk: survives power cuts, never exceeds its bytes.

A message leaves the queue when the ingest service has said that it is settled: the broker may lose
what it likes. The number of a message is given in the transaction that stores it and is never used
twice, so that the ingest service knows each message again.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterable
from contextlib import closing
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path

from workbench.core.errors import DataError, ParameterError

__all__ = ()

MAX_MESSAGE_BYTES = 1 << 20


class Priority(IntEnum):
    """What is sent first, and kept when space runs out; lower is more important."""

    URGENT = 0
    TELEMETRY = 1
    FRAME = 2


@dataclass(frozen=True)
class Message:
    """A message of the queue. ``kind`` is the last part of its topic."""

    sequence: int
    kind: str
    body: bytes


class VehicleQueue:
    """Messages of one vehicle, for one writer and one sender.

    Args:
        path: An SQLite file; created if it does not exist.
        max_bytes: Of the messages. When they exceed it, the least important are dropped, oldest
            first, and counted.
    """

    def __init__(self, path: Path, *, max_bytes: int = 64 << 20) -> None:
        if max_bytes <= 0:
            raise ParameterError(f"queue of {max_bytes} bytes", where=path)
        path.parent.mkdir(parents=True, exist_ok=True)
        self.max_bytes = max_bytes
        self._connection = sqlite3.connect(path, timeout=30, isolation_level=None)
        try:
            self._connection.execute("PRAGMA journal_mode = WAL")
            self._connection.execute("PRAGMA synchronous = FULL")
            self._connection.executescript(
                "BEGIN IMMEDIATE;"
                # AUTOINCREMENT: numbers of deleted messages are not given again.
                "CREATE TABLE IF NOT EXISTS messages (sequence INTEGER PRIMARY KEY AUTOINCREMENT, "
                "priority INTEGER NOT NULL, kind TEXT NOT NULL, body BLOB NOT NULL);"
                "CREATE INDEX IF NOT EXISTS turn ON messages (priority, sequence);"
                "CREATE TABLE IF NOT EXISTS dropped "
                "(priority INTEGER PRIMARY KEY, messages INTEGER NOT NULL);"
                "COMMIT"
            )
        except sqlite3.DatabaseError as error:
            self._connection.close()
            raise DataError("telemetry queue is damaged", where=path) from error

    def put(
        self, kind: str, make: Callable[[int, int], bytes], priority: Priority = Priority.TELEMETRY
    ) -> int | None:
        """Store a message.

        Args:
            kind: Last part of its topic.
            make: From its number, and the messages dropped so far, to its content.

        Returns:
            Its number, or None if it was dropped at once: everything else is more important.

        Raises:
            ParameterError: It is larger than `MAX_MESSAGE_BYTES`.
        """
        run = self._connection.execute
        run("BEGIN IMMEDIATE")
        try:
            cursor = run(
                "INSERT INTO messages (priority, kind, body) VALUES (?, ?, '')", (priority, kind)
            )
            sequence = cursor.lastrowid or 0
            body = make(sequence, self.dropped)
            if len(body) > MAX_MESSAGE_BYTES:
                what = f"message of {len(body):,} bytes, the limit is {MAX_MESSAGE_BYTES:,}"
                raise ParameterError(what, where=kind)
            run("UPDATE messages SET body = ? WHERE sequence = ?", (body, sequence))
            excess = self.bytes - self.max_bytes
            kept = True
            if excess > 0:
                for number, size, rank in run(
                    "SELECT sequence, length(body), priority FROM messages "
                    "ORDER BY priority DESC, sequence"
                ).fetchall():
                    self._drop(number, rank)
                    kept = kept and number != sequence
                    excess -= size
                    if excess <= 0:
                        break
            run("COMMIT")
        except BaseException:
            run("ROLLBACK")
            raise
        return sequence if kept else None

    def pending(self, *, after: Iterable[int] = (), limit: int = 100) -> list[Message]:
        """The next messages to send, most important first, without the numbers in ``after``."""
        skipped = set(after)
        rows = self._connection.execute(
            "SELECT sequence, kind, body FROM messages ORDER BY priority, sequence LIMIT ?",
            (limit + len(skipped),),
        ).fetchall()
        found = [Message(number, kind, body) for number, kind, body in rows]
        return [one for one in found if one.sequence not in skipped][:limit]

    def settle(self, sequences: Iterable[int]) -> None:
        """Forget messages that the ingest service has stored or refused."""
        self._connection.execute("BEGIN IMMEDIATE")
        self._connection.executemany(
            "DELETE FROM messages WHERE sequence = ?", [(number,) for number in sequences]
        )
        self._connection.execute("COMMIT")

    @property
    def bytes(self) -> int:
        """Size of all messages."""
        return int(self._one("SELECT coalesce(sum(length(body)), 0) FROM messages"))

    @property
    def dropped(self) -> int:
        """Messages that were dropped for lack of space, ever."""
        return int(self._one("SELECT coalesce(sum(messages), 0) FROM dropped"))

    def __len__(self) -> int:
        return int(self._one("SELECT count(*) FROM messages"))

    def close(self) -> None:
        """Close the file."""
        self._connection.close()

    def _drop(self, sequence: int, priority: int) -> None:
        self._connection.execute("DELETE FROM messages WHERE sequence = ?", (sequence,))
        self._connection.execute(
            "INSERT INTO dropped VALUES (?, 1) "
            "ON CONFLICT (priority) DO UPDATE SET messages = messages + 1",
            (priority,),
        )

    def _one(self, query: str) -> int:
        with closing(self._connection.execute(query)) as cursor:
            value: int = cursor.fetchone()[0]
            return value
