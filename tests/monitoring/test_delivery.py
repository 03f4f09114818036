"""From the vehicle's disk over a real broker into the table: nothing lost, nothing doubled."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import signal
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import paho.mqtt.client as mqtt
import pytest
from paho.mqtt.enums import CallbackAPIVersion

from tests.monitoring.test_store import bundle
from workbench.core.errors import ParameterError, ServiceError
from workbench.monitoring.broker import INGEST_ACCOUNT, Broker, BrokerAccount
from workbench.monitoring.ingest import Ingest, QuarantineReason, metrics_text
from workbench.monitoring.mqtt import deliver, serve_ingest
from workbench.monitoring.queue import Priority, VehicleQueue
from workbench.monitoring.rides import queue_frame
from workbench.monitoring.store import TelemetryStore

FORKED = multiprocessing.get_context("forkserver")
FORKED.set_forkserver_preload(["tests.monitoring.test_delivery"])
TODAY = 40


def content(vehicle: str, sequence: int, **values: object) -> bytes:
    found = bundle(vehicle, sequence, **{"day": 1, **values})
    return found.model_dump_json().encode()


def put(queue: VehicleQueue, vehicle: str, day: int = 1) -> int | None:
    return queue.put(
        "bundle",
        lambda number, dropped: content(vehicle, number, day=day, dropped=dropped),
    )


@contextmanager
def ingesting(broker: Broker, store: TelemetryStore) -> Iterator[Ingest]:
    ingest, stop = Ingest(store, lambda: TODAY), threading.Event()
    account = broker.account(INGEST_ACCOUNT)
    arguments = {"stop": stop.is_set, "flush_s": 0.05}
    thread = threading.Thread(target=serve_ingest, args=(ingest, account), kwargs=arguments)
    thread.start()
    try:
        yield ingest
    finally:
        stop.set()
        thread.join(timeout=20)


# -- the queue on disk


def test_numbers_are_never_used_twice(tmp_path: Path) -> None:
    queue = VehicleQueue(tmp_path / "queue.sqlite")
    first = [put(queue, "vehicle-1") for _ in range(3)]
    queue.settle([1, 2, 3])
    queue.close()
    queue = VehicleQueue(tmp_path / "queue.sqlite")
    assert first == [1, 2, 3] and put(queue, "vehicle-1") == 4 and len(queue) == 1


def test_a_full_queue_drops_the_least_important_and_counts_them(tmp_path: Path) -> None:
    queue = VehicleQueue(tmp_path / "queue.sqlite", max_bytes=1000)
    kinds = (Priority.FRAME, Priority.TELEMETRY, Priority.FRAME, Priority.URGENT)
    for priority in kinds:
        queue.put("x", lambda _number, _dropped: b"." * 250, priority)
    assert queue.put("x", lambda _number, _dropped: b"." * 500, Priority.TELEMETRY) == 5
    assert [message.sequence for message in queue.pending()] == [4, 2, 5]
    assert queue.dropped == 2 and queue.bytes == 1000
    assert queue.put("x", lambda _number, _dropped: b".", Priority.FRAME) is None
    assert queue.put("x", lambda _number, dropped: str(dropped).encode(), Priority.URGENT) == 7
    assert queue.dropped == 4 and queue.pending()[1].body == b"3"
    with pytest.raises(ParameterError, match="the limit is"):
        queue.put("x", lambda _number, _dropped: bytes(2 << 20))
    assert queue.pending(limit=9)[-1].sequence == 5  # the refused one left nothing behind


# -- over the broker


def test_thirty_days_offline_arrive_once(broker: Broker, tmp_path: Path) -> None:
    store = TelemetryStore(str(tmp_path / "table"))
    queue = VehicleQueue(tmp_path / "queue.sqlite")
    for day in range(30):
        for _ in range(4):
            put(queue, "vehicle-1", day)
    with ingesting(broker, store) as ingest:
        done = deliver(queue, broker.account("vehicle-1"), timeout_s=30)
    assert (done.settled, done.left, queue.dropped) == (120, 0, 0)
    assert sorted(store.stored()) == [("vehicle-1", number) for number in range(1, 121)]
    assert ingest.counts["stored"] == 120 and not store.quarantine()


def test_without_ingest_or_broker_the_queue_keeps_everything(
    broker: Broker, tmp_path: Path
) -> None:
    queue = VehicleQueue(tmp_path / "queue.sqlite")
    put(queue, "vehicle-1")
    account = broker.account("vehicle-1")
    assert deliver(queue, account, timeout_s=0.3).left == 1
    gone = account.model_copy(update={"port": 1})
    assert deliver(queue, gone, timeout_s=0.3).left == 1
    assert [message.sequence for message in queue.pending()] == [1]


def test_an_impostor_is_refused(broker: Broker, tmp_path: Path) -> None:
    queue = VehicleQueue(tmp_path / "queue.sqlite")
    put(queue, "vehicle-1")
    account = broker.account("vehicle-1")
    with pytest.raises(ServiceError, match="refuses account vehicle-1"):
        deliver(queue, account.model_copy(update={"password": "guessed"}))
    stranger = Broker(tmp_path / "other")
    with pytest.raises(ServiceError, match="no account"):
        stranger.account("vehicle-1")
    other_ca = ssl.get_server_certificate((account.host, account.port))  # not a CA
    with pytest.raises(ServiceError, match="not trusted"):
        deliver(queue, account.model_copy(update={"ca": other_ca}))
    assert len(queue) == 1


def test_a_vehicle_writes_and_reads_only_its_own_topics(broker: Broker) -> None:
    heard: list[str] = []
    clients = {}
    for name in ("vehicle-2", "vehicle-3", INGEST_ACCOUNT):
        account = broker.account(name)
        client = mqtt.Client(CallbackAPIVersion.VERSION2, client_id="vehicle-2")
        client.tls_set_context(ssl.create_default_context(cadata=account.ca))
        client.username_pw_set(name, account.password)
        client.connect(account.host, account.port)
        client.on_message = lambda _c, name, message: heard.append(f"{name}: {message.topic}")
        client.user_data_set(name)
        client.loop_start()
        client.subscribe([("telemetry/#", 1), ("ack/#", 1), ("ack/vehicle-2", 1)])
        clients[name] = client
    time.sleep(0.2)
    for topic in ("telemetry/vehicle-3/bundle/1", "ack/vehicle-2", "telemetry/vehicle-2/bundle/2"):
        clients["vehicle-2"].publish(topic, b"x", qos=1).wait_for_publish(5)
    clients[INGEST_ACCOUNT].publish("ack/vehicle-2", b"x", qos=1).wait_for_publish(5)
    deadline = time.monotonic() + 5
    while len(heard) < 2 and time.monotonic() < deadline:
        time.sleep(0.02)
    time.sleep(0.1)
    for client in clients.values():
        client.disconnect()
        client.loop_stop()
    assert sorted(heard) == ["ingest: telemetry/vehicle-2/bundle/2", "vehicle-2: ack/vehicle-2"]


# -- what cannot be believed


def _damaged(**values: object) -> bytes:
    return json.dumps({**json.loads(content("vehicle-1", 7)), **values}).encode()


BAD = {
    QuarantineReason.UNREADABLE: b"\x00{",
    QuarantineReason.SCHEMA_UNSUPPORTED: _damaged(schema_version=2, mood="good"),
    QuarantineReason.NOT_FINITE: _damaged(model_year=float("nan")),
    QuarantineReason.IMPOSSIBLE: _damaged(
        sketches=[{"signal": "frames.late", "n": 10**30, "sum": 1}]
    ),
    QuarantineReason.WRONG_VEHICLE: _damaged(vehicle="vehicle-2"),
    QuarantineReason.SEQUENCE_REUSED: _damaged(sequence=1, ride="another"),
    QuarantineReason.FUTURE_DAY: _damaged(day=TODAY + 1),
    QuarantineReason.TOO_LATE: _damaged(day=0),
    QuarantineReason.TOO_MANY: _damaged(day=30),
}


@pytest.mark.parametrize("reason", list(QuarantineReason))
def test_each_bad_bundle_is_put_aside_once_with_its_reason(
    reason: QuarantineReason, tmp_path: Path
) -> None:
    store = TelemetryStore(str(tmp_path))
    ingest = Ingest(store, lambda: TODAY + (100 if reason is QuarantineReason.TOO_LATE else 0))
    if reason is not QuarantineReason.TOO_LATE:
        ingest.accept("telemetry/vehicle-1/bundle/1", content("vehicle-1", 1))
    if reason is QuarantineReason.TOO_MANY:
        for number in range(10, 210):
            body = content("vehicle-1", number, day=30)
            ingest.accept(f"telemetry/vehicle-1/bundle/{number}", body)
    ingest.flush()
    before = store.stored()
    number = 1 if reason is QuarantineReason.SEQUENCE_REUSED else 7
    for _ in range(2):  # a redelivery counts once
        ingest.accept(f"telemetry/vehicle-1/bundle/{number}", BAD[reason])
        assert ingest.flush() == {"vehicle-1": [number]}
    assert [(one.reason, one.vehicle) for one in store.quarantine()] == [(reason, "vehicle-1")]
    assert store.stored() == before
    text = metrics_text(ingest.as_json())
    assert f'workbench_telemetry_messages_total{{result="quarantined",reason="{reason}"}} 2' in text


def test_a_redelivered_bundle_is_settled_again_and_stored_once(tmp_path: Path) -> None:
    store = TelemetryStore(str(tmp_path))
    for _ in range(2):  # the second one is a service that was started again
        ingest = Ingest(store, lambda: TODAY)
        for _ in range(2):
            ingest.accept("telemetry/vehicle-1/bundle/3", content("vehicle-1", 3))
        assert set(ingest.flush()["vehicle-1"]) == {3}
    assert len(store.files()) == 1 and ingest.counts["duplicate"] == 2


def test_frames_come_back_after_telemetry_within_their_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("workbench.monitoring.ingest._MAX_FRAME_BYTES_A_DAY", 250)
    queue, store = VehicleQueue(tmp_path / "queue.sqlite"), TelemetryStore(str(tmp_path / "t"))
    image = b"\xff\xd8" + bytes(98)
    for number in range(3):
        queue_frame(
            queue, "vehicle-1", {"arm": "random", "probability": 0.5}, image + b"%d" % number
        )
    put(queue, "vehicle-1")
    pending = queue.pending()
    assert [one.kind for one in pending] == ["bundle", "frame", "frame", "frame"]
    ingest = Ingest(store, lambda: TODAY)
    for one in [*pending[:3], pending[1], pending[3]]:  # one frame is delivered twice
        ingest.accept(f"telemetry/vehicle-1/{one.kind}/{one.sequence}", one.body)
    ingest.accept("telemetry/vehicle-1/frame/3", pending[3].body[:-1] + b"!")
    assert ingest.counts["frames"] == 2 and ingest.counts["duplicate"] == 1
    assert sorted(set(ingest.flush()["vehicle-1"])) == [1, 2, 3, 4]
    about, content = next(store.frames())
    assert (about["arm"], about["sequence"], content) == ("random", 1, image + b"0")
    assert store.count_frames() == 2
    reasons = [one.reason for one in store.quarantine()]
    assert reasons == [QuarantineReason.IMPOSSIBLE, QuarantineReason.TOO_MANY]


# -- kills


def lines(journal: Path) -> int:
    return journal.read_text().count("\n") if journal.exists() else 0


def _write(path: Path, journal: Path) -> None:
    """Put bundles, noting the number of each after it is on disk."""
    queue = VehicleQueue(path)
    number = 0
    with journal.open("a") as stream:
        while number < 150 * TODAY:
            day = number // 150  # no more than the rides of a day that are believed
            number = put(queue, "vehicle-4", day) or 0
            print(number, file=stream, flush=True)
            time.sleep(0.01)
    time.sleep(3600)


def _send(path: Path, account: BrokerAccount) -> None:
    while True:
        deliver(VehicleQueue(path), account, timeout_s=5, resend_s=0.5)
        time.sleep(0.01)


def _store(url: str, account: BrokerAccount) -> None:
    serve_ingest(Ingest(TelemetryStore(url), lambda: TODAY), account, flush_s=0.03)


@pytest.mark.parametrize(
    "kills", [3, pytest.param(50, marks=pytest.mark.slow)], ids=["3 kills", "50 kills"]
)
def test_kills_of_vehicle_broker_and_ingest_lose_and_double_nothing(
    kills: int, tmp_path: Path, broker: Broker
) -> None:
    own = Broker(tmp_path / "broker")
    own.add_accounts(["vehicle-4"])
    own.start()
    path, journal, url = tmp_path / "queue.sqlite", tmp_path / "journal", str(tmp_path / "table")
    account, service = own.account("vehicle-4"), own.account(INGEST_ACCOUNT)
    VehicleQueue(path).close()
    parts: dict[str, tuple[Callable[..., None], tuple[object, ...]]] = {
        "writer": (_write, (path, journal)),
        "sender": (_send, (path, account)),
        "ingest": (_store, (url, service)),
    }
    running = {}
    for name, (target, arguments) in parts.items():
        running[name] = FORKED.Process(target=target, args=arguments, daemon=True)
        running[name].start()
    rng = random.Random(18)  # noqa: S311
    try:
        for victim in rng.sample(["writer", "sender", "ingest", "broker"] * kills, 4 * kills):
            until = lines(journal) + 10
            while lines(journal) < until:  # a writer that starts has to write before it is killed
                time.sleep(0.01)
            time.sleep(rng.uniform(0.02, 0.15))
            if victim == "broker":
                own.stop(kill=True)
                own.start()
                assert own.account("vehicle-4").port == account.port
            else:
                os.kill(running[victim].pid or 0, signal.SIGKILL)
                running[victim].join()
                target, arguments = parts[victim]
                running[victim] = FORKED.Process(target=target, args=arguments, daemon=True)
                running[victim].start()
        os.kill(running["writer"].pid or 0, signal.SIGKILL)
        queue, deadline = VehicleQueue(path), time.monotonic() + 60
        while len(queue) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert len(queue) == 0 and queue.dropped == 0
    finally:
        for process in running.values():
            process.kill()
            process.join()
        own.stop()
    promised = {int(line) for line in journal.read_text().split()}
    stored = TelemetryStore(url).stored()
    assert len(promised) > 10 * kills
    assert promised <= {number for _, number in stored}  # nothing lost
    with TelemetryStore(url).connect() as connection:  # nothing doubled
        rows = connection.execute("SELECT count(*) FROM telemetry").fetchone()
    assert rows == (3 * len(stored),)
    assert not TelemetryStore(url).quarantine()
