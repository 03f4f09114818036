"""The table of telemetry: Parquet files below any fsspec address, read with DuckDB.

    URL/v1/day=00012/<24 hex digits>.parquet    one row a sketch; each bundle is in one file

A file is written whole or not at all, and never changed. Its name is the digest of the bundles in
it. A bundle that is in two files, because two services wrote it, is read once.
"""

from __future__ import annotations

import io
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import duckdb
import fsspec
import pyarrow as pa
import pyarrow.parquet as pq

from workbench.core import digest
from workbench.core.errors import DataError, ServiceError
from workbench.core.types import Json
from workbench.core.workspace import write_atomic
from workbench.data.telemetry import SHADOW, SIGNALS, TelemetryBundle

__all__ = ["read_telemetry"]

SCHEMA: Final = pa.schema(
    [
        pa.field("vehicle", pa.string()),
        pa.field("sequence", pa.int64()),
        pa.field("digest", pa.string()),  # of the bundle
        pa.field("schema_version", pa.int16()),
        pa.field("received", pa.timestamp("us", tz="UTC")),
        pa.field("day", pa.int32()),  # fleet days, when the ride began
        pa.field("ride", pa.string()),
        pa.field("evidence", pa.string()),  # real, replayed or simulated
        pa.field("model", pa.string()),
        pa.field("version", pa.int32()),  # of the front camera's release
        pa.field("software", pa.string()),  # JSON: version by component
        pa.field("hardware", pa.string()),
        pa.field("calibration", pa.string()),
        pa.field("region", pa.string()),
        pa.field("model_year", pa.int32()),
        pa.field("conditions", pa.string()),  # JSON: value by condition of the ride
        pa.field("dropped", pa.int64()),  # messages that the vehicle had no space for, ever
        pa.field("signal", pa.string()),
        pa.field("cls", pa.string()),  # class of objects, or empty
        pa.field("unit", pa.string()),
        pa.field("resolution", pa.float64()),  # unit of the moments
        pa.field("n", pa.int64()),
        pa.field("sum", pa.int64()),  # resolutions
        pa.field("sum_squares", pa.int64()),  # resolutions squared
        pa.field("minimum", pa.int64()),
        pa.field("maximum", pa.int64()),
        pa.field("low", pa.int64()),
        pa.field("high", pa.int64()),
        pa.field("invalid", pa.int64()),
        pa.field("counts", pa.list_(pa.int64())),  # by bin; the edges are in SIGNALS
    ]
)
"""Columns of version 1: one row for each vehicle, ride, model version, signal and class."""

_FOLDER = "v1"


@dataclass(frozen=True)
class Quarantined:
    """A message that was put aside."""

    reason: str
    vehicle: str


class TelemetryStore:
    """Writes and reads the table.

    Args:
        url: A folder, or an address that fsspec knows, such as ``s3://bucket/telemetry``.
    """

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        try:
            self._files, self._root = fsspec.core.url_to_fs(self.url)
        except (ImportError, ValueError) as error:
            raise ServiceError(
                f"no access to this address: {error}", where=url, hint="Install its fsspec package"
            ) from error
        protocol = self._files.protocol
        self._protocol: str = protocol if isinstance(protocol, str) else protocol[0]
        self._is_local = self._protocol in {"file", "local"}

    def write(self, bundles: Sequence[TelemetryBundle], *, received: datetime | None = None) -> int:
        """Add bundles, one file for each day among them; returns the number of files.

        Each file is whole or absent. Writing the same bundles again writes the same files.
        """
        at = received or datetime.now(UTC)
        days: dict[int, list[TelemetryBundle]] = {}
        for bundle in bundles:
            days.setdefault(bundle.day, []).append(bundle)
        for day, group in sorted(days.items()):
            rows = [row for bundle in group for row in _rows(bundle, at)]
            sink = io.BytesIO()
            table = pa.Table.from_pylist(rows, schema=SCHEMA)
            pq.write_table(table, sink, compression="zstd")
            name = digest.of_json(sorted(map(bundle_digest, group)))
            self._put(f"{_FOLDER}/day={day:05d}/{name[:24]}.parquet", sink.getvalue())
        return len(days)

    def put_quarantine(self, reason: str, vehicle: str, name: str, content: bytes) -> bool:
        """Put a message aside; returns whether it is a new one.

        Args:
            name: Digest of the whole message: the same message is one file.
            content: What is kept of it.
        """
        path = f"quarantine/{reason}/{vehicle}-{name[:24]}.json"
        if self._files.exists(f"{self._root}/{path}"):
            return False
        self._put(path, content)
        return True

    def quarantine(self) -> list[Quarantined]:
        """What was put aside."""
        self._files.invalidate_cache()
        found = sorted(self._files.glob(f"{self._root}/quarantine/*/*.json"))
        parts = [path.split("/") for path in found]
        return [Quarantined(one[-2], one[-1].rpartition("-")[0]) for one in parts]

    def put_frame(self, vehicle: str, sequence: int, about: bytes, image: bytes) -> None:
        """Store a frame that a vehicle sent back; what is said about it comes last."""
        self._put(f"frames/{vehicle}/{sequence:012d}.jpg", image)
        self._put(f"frames/{vehicle}/{sequence:012d}.json", about)

    def has_frame(self, vehicle: str, sequence: int) -> bool:
        """Whether a frame that a vehicle sent back is stored whole."""
        return bool(self._files.exists(f"{self._root}/frames/{vehicle}/{sequence:012d}.json"))

    def size(self) -> int:
        """Bytes of all Parquet files."""
        return sum(int(self._files.size(path)) for path in self.files())

    def count_frames(self) -> int:
        """Number of frames that vehicles sent back."""
        self._files.invalidate_cache()
        return len(self._files.glob(f"{self._root}/frames/*/*.json"))

    def frames(self) -> Iterator[tuple[dict[str, Any], bytes]]:
        """What vehicles say about each frame that they sent back, and its JPEG."""
        for path, about in self._frame_notes():
            yield about, self._files.cat_file(path.removesuffix(".json") + ".jpg")

    def frame_notes(self) -> Iterator[dict[str, Any]]:
        """What vehicles say about each frame that they sent back."""
        return (about for _, about in self._frame_notes())

    def _frame_notes(self) -> Iterator[tuple[str, dict[str, Any]]]:
        self._files.invalidate_cache()
        for path in sorted(self._files.glob(f"{self._root}/frames/*/*.json")):
            yield path, json.loads(self._files.cat_file(path))

    def rides_a_day(self) -> dict[tuple[str, int], int]:
        """Number of stored bundles by vehicle and day."""
        if not self.files():
            return {}
        with self.connect() as connection:
            rows = connection.execute(
                "SELECT vehicle, day, count(DISTINCT sequence) FROM telemetry GROUP BY ALL"
            ).fetchall()
        return {(vehicle, day): number for vehicle, day, number in rows}

    def stored(self) -> dict[tuple[str, int], str]:
        """Digest of every stored bundle, by vehicle and sequence."""
        files = self.files()
        if not files:
            return {}
        with self.connect() as connection:
            rows = connection.execute(
                "SELECT DISTINCT vehicle, sequence, digest FROM telemetry"
            ).fetchall()
        return {(vehicle, sequence): value for vehicle, sequence, value in rows}

    def files(self) -> list[str]:
        """Paths of all Parquet files, in order of days."""
        self._files.invalidate_cache()
        return sorted(self._files.glob(f"{self._root}/{_FOLDER}/day=*/*.parquet"))

    def connect(self) -> duckdb.DuckDBPyConnection:
        """A DuckDB connection with a view ``telemetry`` of all rows.

        Raises:
            DataError: A file is damaged.
        """
        connection = duckdb.connect()
        files = self.files()
        if not files:
            connection.register("telemetry", SCHEMA.empty_table())
            return connection
        if not self._is_local:
            connection.register_filesystem(self._files)
            files = [f"{self._protocol}://{path.removeprefix('/')}" for path in files]
        columns = ", ".join(SCHEMA.names)
        listed = ", ".join("'" + path.replace("'", "''") + "'" for path in files)
        # A bundle that two services wrote is in two files: the first counts.
        statement = (
            f"CREATE VIEW telemetry AS SELECT {columns} FROM ("  # noqa: S608 - names are ours
            f"SELECT *, min(filename) OVER (PARTITION BY vehicle, sequence) AS first "
            f"FROM read_parquet([{listed}], filename = true, hive_partitioning = false)) "
            f"WHERE filename = first"
        )
        try:
            connection.execute(statement)
        except duckdb.Error as error:
            raise DataError(f"telemetry cannot be read: {error}", where=self.url) from error
        return connection

    def _put(self, path: str, content: bytes) -> None:
        """Write a file whole: other addresses than folders put objects atomically themselves."""
        target = f"{self._root}/{path}"
        try:
            if self._is_local:
                write_atomic(Path(target), content)
                return
            self._files.makedirs(target.rpartition("/")[0], exist_ok=True)
            self._files.pipe_file(target, content)
        except OSError as error:
            raise ServiceError("telemetry cannot be written", where=target) from error


def read_telemetry(
    url: str, *, signals: Iterable[str] = (), since: int = 0, until: int = 2**31 - 1
) -> pa.Table:
    """Rows of the telemetry table, in order of vehicle, sequence, signal and class.

    Args:
        url: Where `TelemetryStore` wrote.
        signals: Names of `workbench.data.telemetry.SIGNALS`; all by default.
        since: First fleet day.
        until: Last fleet day.

    Returns:
        Columns of `SCHEMA`, and ``mean`` in the signal's unit (of a count: events a frame) and
        ``variance`` in its square.
    """
    wanted = list(signals) or list(SIGNALS)
    with TelemetryStore(url).connect() as connection:
        table: pa.Table = connection.sql(
            "SELECT *, CASE WHEN n > 0 THEN sum * resolution / n END AS mean, "
            "CASE WHEN n > 0 AND len(counts) > 0 THEN greatest(0, "
            "sum_squares / n - (sum / n) * (sum / n)) * resolution * resolution END AS variance "
            "FROM telemetry WHERE day BETWEEN ? AND ? AND list_contains(?, signal) "
            "ORDER BY vehicle, sequence, signal, cls",
            params=[since, until, wanted],
        ).to_arrow_table()
    return table


def telemetry_status(store: TelemetryStore, *, silent_days: int) -> Json:
    """What is in the table, as JSON: counts, versions, silent vehicles, what was put aside."""
    with store.connect() as connection:
        connection.execute(
            "CREATE TEMP TABLE rides AS SELECT vehicle, sequence, day, version, evidence, dropped, "
            "max(n) FILTER (signal = 'frames.ok') AS frames FROM telemetry "
            "WHERE NOT starts_with(model, ?) GROUP BY ALL",
            [SHADOW],
        )
        vehicles = connection.execute(
            "SELECT vehicle, max(day), arg_max(version, (day, sequence)), max(dropped) "
            "FROM rides GROUP BY vehicle ORDER BY vehicle"
        ).fetchall()
        evidence = connection.execute(
            "SELECT evidence, count(*) FROM rides GROUP BY evidence ORDER BY evidence"
        ).fetchall()
        (total,) = connection.execute(
            "SELECT min(day), max(day), count(*), coalesce(sum(frames), 0)::BIGINT FROM rides"
        ).fetchall()
    first, last, rides, frames = total
    versions = Counter(version for _, _, version, _ in vehicles)
    return {
        "url": store.url,
        "vehicles": len(vehicles),
        "rides": rides,
        "frames": frames,
        "bytes": store.size(),
        "days": None if first is None else [first, last],
        "evidence": dict(evidence),
        "versions": {str(version): versions[version] for version in sorted(versions)},
        "silent": [name for name, day, *_ in vehicles if day <= last - silent_days],
        "dropped": sum(dropped for *_, dropped in vehicles),
        "quarantine": dict(sorted(Counter(one.reason for one in store.quarantine()).items())),
        "returned_frames": store.count_frames(),
    }


def bundle_digest(bundle: TelemetryBundle) -> str:
    """SHA-256 of a bundle's content."""
    return digest.of_json(bundle.model_dump(mode="json"))


def _rows(bundle: TelemetryBundle, received: datetime) -> list[dict[str, Any]]:
    head = bundle.model_dump(mode="json", exclude={"sketches"})
    head |= {
        "digest": bundle_digest(bundle),
        "received": received,
        "software": json.dumps(head["software"], sort_keys=True),
        "conditions": json.dumps(head["conditions"], sort_keys=True),
    }
    return [
        {
            **head,
            **sketch.model_dump(mode="json"),
            "unit": SIGNALS[sketch.signal].unit,
            "resolution": SIGNALS[sketch.signal].resolution,
        }
        for sketch in bundle.sketches
    ]
