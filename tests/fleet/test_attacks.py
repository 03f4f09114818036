"""Attacks on the update, carried out: each is refused with its reason, and the vehicle runs on."""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from tuf.api.metadata import Metadata, Root

from tests.fleet.conftest import ORIN, XAVIER, World, profile
from workbench.core.errors import RecordError, WorkbenchError
from workbench.core.workspace import write_atomic
from workbench.fleet import metadata, rollout
from workbench.fleet.components import Target, resolve
from workbench.fleet.director import Director
from workbench.fleet.metadata import DirectorSigners, director_metadata
from workbench.fleet.reasons import Reason, UpdateRefused
from workbench.fleet.vehicle import DayCounts, Vehicle
from workbench.fleet.verification import HttpFetcher


class Attacker(HttpFetcher):
    """Sits between vehicle and server: answers some addresses itself, and remembers the others."""

    def __init__(self, **answers: bytes) -> None:
        super().__init__()
        self.answers: dict[str, bytes] = dict(answers)
        self.seen: dict[str, bytes] = {}
        self.sent: list[tuple[str, bytes]] = []

    def post(self, url: str, body: bytes) -> bytes:
        path = url.split("/", 3)[3]
        self.sent.append((path, body))
        if path in self.answers:
            return self.answers[path]
        self.seen[path] = super().post(url, body)
        return self.seen[path]

    def _fetch(self, url: str) -> Iterator[bytes]:
        path = url.split("/", 3)[3]
        if path in self.answers:
            return iter([self.answers[path]])
        content = b"".join(super()._fetch(url))
        self.seen[path] = content
        return iter([content])


def director_files(
    world: World, targets: list[Target], version: int, name: str = "car", **keys: object
) -> dict[str, bytes]:
    """What somebody with the director's online keys can sign for a vehicle."""
    signers = keys.get("signers") or DirectorSigners.load(world.folder.director_keys)
    files = director_metadata(profile(name), targets, version, signers, world.now())
    return {f"director/car/{file}": content for file, content in files.items()}


def refused(vehicle: Vehicle, reason: Reason) -> UpdateRefused:
    """The update is refused for this reason, and the vehicle still runs what it ran."""
    before = vehicle.installed
    with pytest.raises(UpdateRefused) as caught:
        vehicle.update()
    assert caught.value.reason is reason, caught.value
    assert vehicle.installed == before
    again = Vehicle(vehicle.folder, "http://127.0.0.1:9")
    again.boot()
    assert again.installed == before
    for ecu in before:
        assert again.is_whole(ecu, "a") or again.is_whole(ecu, "b")
    return caught.value


@pytest.fixture
def car(world: World) -> Path:
    return world.build("car")


def test_director_key_alone_cannot_bring_a_file_of_its_own(world: World, car: Path) -> None:
    evil = world.component("front-camera", 9)
    file = Target(path="front-camera/9/evil.tar", sha256="0" * 64, length=10, component=evil)
    attacker = Attacker(**director_files(world, [file], 50))
    refused(world.vehicle(car, fetcher=attacker), Reason.NOT_IN_IMAGE_REPOSITORY)


def test_director_key_alone_cannot_change_a_file(world: World, car: Path) -> None:
    target = world.publish("front-camera", 2)
    changed = target.model_copy(update={"sha256": "0" * 64})
    attacker = Attacker(**director_files(world, [changed], 50))
    refused(world.vehicle(car, fetcher=attacker), Reason.REPOSITORIES_DISAGREE)


def test_director_key_alone_cannot_lie_about_the_counter(world: World, car: Path) -> None:
    target = world.publish("front-camera", 2)
    component = target.component.model_copy(update={"counter": 99})
    attacker = Attacker(
        **director_files(world, [target.model_copy(update={"component": component})], 50)
    )
    refused(world.vehicle(car, fetcher=attacker), Reason.REPOSITORIES_DISAGREE)


def test_image_key_alone_reaches_no_vehicle(world: World, car: Path) -> None:
    target = world.publish("front-camera", 2)  # all keys of the image repository
    assert world.vehicle(car).update() is False
    own = DirectorSigners(metadata.new_signer(), metadata.new_signer(), metadata.new_signer())
    attacker = Attacker(**director_files(world, [target], 50, signers=own))
    refused(world.vehicle(car, fetcher=attacker), Reason.BAD_SIGNATURE)


def test_one_of_two_targets_keys_of_the_image_repository_is_not_enough(
    world: World, car: Path
) -> None:
    target = world.publish("front-camera", 2)
    world.assign("car", target)
    (path,) = world.folder.images.metadata.glob(f"{_newest(world, 'targets')}.targets.json")
    content = json.loads(path.read_bytes())
    content["signatures"] = content["signatures"][:1]
    attacker = Attacker(**{f"image/metadata/{path.name}": json.dumps(content).encode()})
    # The hash in the snapshot finds it first; without it, the threshold does.
    refused(world.vehicle(car, fetcher=attacker), Reason.METADATA_MISMATCH)
    with pytest.raises(Exception, match="signed by 1/2 keys"):
        root = (
            Metadata[Root]
            .from_bytes((world.folder.images.metadata / "1.root.json").read_bytes())
            .signed
        )
        signed = Metadata.from_bytes(json.dumps(content).encode())
        root.verify_delegate("targets", signed.signed_bytes, signed.signatures)


@pytest.mark.parametrize("repository", ["director/car", "image/metadata"])
def test_freeze_is_noticed_when_the_frozen_metadata_expires(
    world: World, car: Path, repository: str
) -> None:
    """The operating system's clock has not moved: the attested time decides."""
    attacker = Attacker()
    assert world.vehicle(car, fetcher=attacker).update() is False
    frozen = {path: seen for path, seen in attacker.seen.items() if path.startswith(repository)}
    world.pass_time(timedelta(days=3))
    refused(world.vehicle(car, fetcher=Attacker(**frozen)), Reason.METADATA_EXPIRED)


def test_older_metadata_is_not_taken_back(world: World, car: Path) -> None:
    attacker = Attacker()
    world.vehicle(car, fetcher=attacker).update()
    old = {path: seen for path, seen in attacker.seen.items() if path.startswith("director/car")}
    world.assign("car", world.publish("front-camera", 2))
    assert world.vehicle(car).update() is True
    refused(world.vehicle(car, fetcher=Attacker(**old)), Reason.METADATA_ROLLED_BACK)


def test_mixed_metadata_is_refused(world: World, car: Path) -> None:
    """Today's timestamp and snapshot with yesterday's targets."""
    attacker = Attacker()
    world.vehicle(car, fetcher=attacker).update()
    world.assign("car", world.publish("front-camera", 2))
    old = {"director/car/targets.json": attacker.seen["director/car/targets.json"]}
    refused(world.vehicle(car, fetcher=Attacker(**old)), Reason.METADATA_MISMATCH)


def test_metadata_of_another_vehicle_is_refused(world: World, car: Path) -> None:
    target = world.publish("front-camera", 2)
    attacker = Attacker(**director_files(world, [target], 50, name="other"))
    refused(world.vehicle(car, fetcher=attacker), Reason.UNKNOWN_ECU)


def test_a_release_for_other_hardware_is_refused(world: World, car: Path) -> None:
    world.assign("car", world.publish("front-camera", 2, hardware=XAVIER))
    refused(world.vehicle(car), Reason.WRONG_HARDWARE)


def test_a_file_of_other_hardware_under_a_right_name_is_refused(world: World, car: Path) -> None:
    """Both repositories were made to sign it: only the file itself says what it is for."""
    content = world.archive("front-camera", "for Xavier", XAVIER)
    world.assign("car", world.publish("front-camera", 2, content=content))
    found = refused(world.vehicle(car), Reason.WRONG_CONTENT)
    assert XAVIER in found.what


def test_an_archive_that_leaves_its_folder_is_refused(world: World, car: Path) -> None:
    import io
    import tarfile

    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as tar:
        entry = tarfile.TarInfo("../../../../escaped")
        entry.size = 1
        tar.addfile(entry, io.BytesIO(b"x"))
    world.assign("car", world.publish("front-camera", 2, content=stream.getvalue()))
    refused(world.vehicle(car), Reason.WRONG_CONTENT)
    assert not list(world.scratch.rglob("escaped"))


def test_one_ecu_twice_is_refused(world: World, car: Path) -> None:
    both = [world.publish("front-camera", 2), world.publish("front-camera", 3)]
    attacker = Attacker(**director_files(world, both, 50))
    refused(world.vehicle(car, fetcher=attacker), Reason.ECU_TWICE)


def test_an_ecu_is_not_given_the_component_of_another(world: World, car: Path) -> None:
    target = world.publish("cabin", 2)
    component = target.component.model_copy(update={"ecu": "planner"})
    attacker = Attacker(
        **director_files(world, [target.model_copy(update={"component": component})], 50)
    )
    refused(world.vehicle(car, fetcher=attacker), Reason.REPOSITORIES_DISAGREE)


def test_an_older_release_is_refused_and_a_new_one_with_the_old_bytes_is_not(
    world: World, car: Path
) -> None:
    second, third = world.publish("front-camera", 2), world.publish("front-camera", 3)
    world.assign("car", third)
    assert world.vehicle(car).update() is True
    world.assign("car", second)
    refused(world.vehicle(car), Reason.COUNTER_ROLLED_BACK)
    content = world.folder.images.content(second)
    back = world.publish("front-camera", 2, counter=4, content=content)
    assert back.sha256 == second.sha256
    world.assign("car", back)
    vehicle = world.vehicle(car)
    assert vehicle.update() is True
    assert vehicle.installed["front-camera"].component.version == 2


def test_one_release_counter_names_one_file(world: World, car: Path) -> None:
    world.assign("car", world.publish("front-camera", 2))
    assert world.vehicle(car).update() is True
    component = world.component("front-camera", 2)
    both = component.model_copy(update={"hardware_ids": (ORIN, XAVIER)})
    content = world.archive("front-camera", "something else")
    again = world.folder.images.publish(both, content, world.now())
    world.director.add_targets([again])
    world.assign("car", again)
    refused(world.vehicle(car), Reason.COUNTER_REUSED)


def test_dependencies_are_checked_by_the_vehicle_too(world: World, car: Path) -> None:
    needs = world.publish("front-camera", 2, requires={"cabin": ">=2"})
    world.assign("car", needs)
    refused(world.vehicle(car), Reason.DEPENDENCY_MISSING)
    world.assign("car", needs, world.publish("cabin", 2, requires={"front-camera": ">=2"}))
    refused(world.vehicle(car), Reason.DEPENDENCY_CYCLE)
    world.assign("car", world.publish("planner", 2, conflicts={"cabin": "<2"}))
    refused(world.vehicle(car), Reason.CONFLICT)


def test_a_component_that_others_require_cannot_be_taken_away(world: World) -> None:
    camera = world.component("front-camera", 2)
    planner = world.component("planner", 1, requires={"front-camera": ">=2"})
    older = world.component("front-camera", 1, counter=3)
    with pytest.raises(UpdateRefused) as caught:
        resolve({"front-camera": camera, "planner": planner}, [older])
    assert caught.value.reason is Reason.DEPENDENCY_MISSING
    order = resolve({}, [planner, camera])
    assert [component.ecu for component in order] == ["front-camera", "planner"]


# -- servers that misbehave


def _raw_server(send: Callable[[socket.socket], None]) -> tuple[str, threading.Event]:
    """A server that answers any request with what ``send`` writes."""
    listener = socket.create_server(("127.0.0.1", 0))
    done = threading.Event()

    def serve() -> None:
        while not done.is_set():
            try:
                connection, _ = listener.accept()
                connection.recv(65536)
                connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
                send(connection)
            except OSError:
                pass
            finally:
                connection.close()

    threading.Thread(target=serve, daemon=True).start()
    return f"http://127.0.0.1:{listener.getsockname()[1]}", done


class Redirected(HttpFetcher):
    """Goes to another server for one address."""

    def __init__(self, path: str, other: str, **options: float) -> None:
        super().__init__(**options)
        self._path, self._other = path, other

    def _fetch(self, url: str) -> Iterator[bytes]:
        return super()._fetch(self._other if self._path in url else url)

    def post(self, url: str, body: bytes) -> bytes:
        return super().post(self._other if self._path in url else url, body)


@pytest.mark.parametrize("path", ["timestamp.json", "image/targets", "/time"])
def test_endless_data_is_cut_off(world: World, car: Path, path: str) -> None:
    world.assign("car", world.publish("front-camera", 2))

    def endless(connection: socket.socket) -> None:
        while True:
            connection.sendall(b" " * 65536)

    other, done = _raw_server(endless)
    refused(world.vehicle(car, fetcher=Redirected(path, other)), Reason.ENDLESS_DATA)
    done.set()


def test_slow_retrieval_is_given_up(world: World, car: Path) -> None:
    world.assign("car", world.publish("front-camera", 2))

    def trickle(connection: socket.socket) -> None:
        while True:
            connection.sendall(b" ")
            time.sleep(0.05)

    other, done = _raw_server(trickle)
    start = time.monotonic()
    fetcher = Redirected("timestamp.json", other, grace_s=0.5)
    refused(world.vehicle(car, fetcher=fetcher), Reason.SLOW_RETRIEVAL)
    silent, quiet = _raw_server(lambda _connection: time.sleep(5))
    fetcher = Redirected("image/targets", silent, timeout_s=0.5)
    refused(world.vehicle(car, fetcher=fetcher), Reason.SLOW_RETRIEVAL)
    assert time.monotonic() - start < 20
    done.set()
    quiet.set()


# -- time and keys


def test_time_that_was_recorded_is_not_accepted_again(world: World, car: Path) -> None:
    attacker = Attacker()
    world.vehicle(car, fetcher=attacker).update()
    replay = Attacker(time=attacker.seen["time"])
    refused(world.vehicle(car, fetcher=replay), Reason.TIME_INVALID)


def test_time_does_not_go_back(world: World, car: Path) -> None:
    world.pass_time(timedelta(hours=1))
    world.vehicle(car).update()
    world.pass_time(-timedelta(hours=1))
    refused(world.vehicle(car), Reason.TIME_ROLLED_BACK)


def test_time_of_another_key_is_refused(world: World, car: Path) -> None:
    forged = metadata.seal_message({"time": "2030-01-01T00:00:00+00:00"}, metadata.new_signer())
    refused(world.vehicle(car, fetcher=Attacker(time=forged)), Reason.BAD_SIGNATURE)


def test_300_root_rotations_are_slept_through(world: World, car: Path) -> None:
    keys = world.folder.director_keys
    roots = world.folder.director_roots
    root, signers = (roots / "1.root.json").read_bytes(), keys.signers("root")
    for version in range(2, 302):
        new = metadata.new_signer()
        changes = {"timestamp": [new]}
        root = metadata.rotate_root(root, changes, signers, world.now())
        (roots / f"{version}.root.json").write_bytes(root)
    metadata.save_signer(new, keys.online / "timestamp-1.pem")
    world.director._signers = DirectorSigners.load(keys)
    world.assign("car", world.publish("front-camera", 2))
    vehicle = world.vehicle(car)
    assert vehicle.update() is True
    assert vehicle.installed["front-camera"].component.version == 2


def test_a_root_without_enough_old_keys_is_refused(world: World, car: Path) -> None:
    roots = world.folder.director_roots
    root = (roots / "1.root.json").read_bytes()
    stolen = world.folder.director_keys.signers("root")[:1]
    mine = [metadata.new_signer(), metadata.new_signer()]
    forged = metadata.rotate_root(root, {"root": mine}, [*stolen, *mine], world.now())
    write_atomic(roots / "2.root.json", forged)
    refused(world.vehicle(car), Reason.BAD_SIGNATURE)


def test_no_server_reads_the_offline_keys(world: World, car: Path) -> None:
    world.assign("car", world.publish("front-camera", 2))
    (world.folder.root / "offline-keys").rename(world.scratch / "safe")
    assert world.vehicle(car).update() is True
    world.pass_time(timedelta(days=1, hours=12))  # the image repository's timestamp is renewed
    assert world.vehicle(car).update() is False
    with pytest.raises(Exception, match="fleet key cannot be read"):
        world.publish("front-camera", 3)


# -- messages of vehicles


def post(world: World, path: str, content: bytes) -> None:
    call = world.director.manifest if path == "manifest" else world.director.report
    call(content)


def test_a_recorded_message_changes_nothing(world: World, car: Path) -> None:
    attacker = Attacker()
    vehicle = world.vehicle(car, fetcher=attacker)
    vehicle.update()
    old = next(body for path, body in attacker.sent if path == "manifest")
    post(world, "manifest", old)  # our answer was lost: the same again is fine
    world.assign("car", world.publish("front-camera", 2))
    vehicle.update()
    with pytest.raises(UpdateRefused) as caught:
        post(world, "manifest", old)
    assert caught.value.reason is Reason.MESSAGE_REPLAYED
    with world.director.connect() as connection:
        status = world.director.vehicles(connection)["car"]
    assert status.installed["front-camera"].component.version == 2


def test_a_message_with_an_old_time_is_stale(world: World, car: Path) -> None:
    vehicle = world.vehicle(car)
    vehicle.update()
    world.pass_time(timedelta(hours=1))
    with pytest.raises(UpdateRefused) as caught:
        vehicle.send_report(DayCounts(day=0, frames=1))
    assert caught.value.reason is Reason.MESSAGE_STALE


def test_messages_that_cannot_be_believed(world: World, car: Path) -> None:
    other = world.build("other")
    attacker = Attacker()
    vehicle = world.vehicle(car, fetcher=attacker)
    vehicle.update()
    body = json.loads(attacker.sent[-1][1])["signed"]
    own = metadata.load_signer(car / "keys" / "primary.pem")
    theirs = metadata.load_signer(other / "keys" / "primary.pem")

    def reason(key: object = own, path: str = "manifest", **changes: object) -> Reason:
        changed = {**body, "sequence": body["sequence"] + 1, **changes}
        with pytest.raises(UpdateRefused) as caught:
            post(world, path, metadata.seal_message(changed, key))
        return caught.value.reason

    assert reason(key=theirs) is Reason.BAD_SIGNATURE
    assert reason(vehicle="nobody") is Reason.UNKNOWN_VEHICLE
    assert reason(schema_version=2) is Reason.SCHEMA_UNSUPPORTED
    assert reason(nonce="0" * 32) is Reason.TIME_INVALID
    assert reason(ecus={}) is Reason.MESSAGE_INVALID
    assert reason(sequence=True) is Reason.MESSAGE_REPLAYED
    # The ECUs' own signatures name the sequence: their old versions cannot be put into a new one.
    assert reason() is Reason.MESSAGE_REPLAYED
    report = {"kind": "report", "path": "report"}
    for counts in (
        {"day": 0, "frames": -1},
        {"day": 0, "frames": 10, "late": 11},
        {"day": 99, "frames": 10},
        {"day": 0, "frames": 10, "speed": 3},
        {"day": 0, "frames": "many"},
    ):
        assert reason(counts=counts, **report) is Reason.MESSAGE_INVALID, counts
    future = {"schema_version": 2, "day": 0, "frames": 1}
    assert reason(counts=future, **report) is Reason.MESSAGE_INVALID
    nan = json.dumps({"signed": {**body, "counts": {"frames": float("nan")}}, "signature": {}})
    with pytest.raises(UpdateRefused) as caught:
        post(world, "report", nan.encode())
    assert caught.value.reason is Reason.MESSAGE_INVALID
    with world.director.connect() as connection:
        assert connection.execute("SELECT count(*) FROM reports").fetchone()[0] == 0


@pytest.mark.parametrize("path", ["time", "manifest", "report"])
@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[1]",
        b'{"signed": 3, "signature": 4}',
        b'{"signed": {"vehicle": "car"}, "signature": []}',
        b'{"signed": {"vehicle": "car", "sequence": 1' + b"0" * 5000 + b'}, "signature": {}}',
        b'{"nonce": 1' + b"0" * 5000 + b"}",
        b'{"signed": {"vehicle": ' + b"[" * 50_000 + b"]" * 50_000 + b'}, "signature": {}}',
        b"[" * 100_000,
        b'{"signed": {"vehicle": "car", "x": Infinity}, "signature": {"keyid": 1, "sig": "zz"}}',
        b'{"signed": {"vehicle": "c\xffr"}}',
        b'{"signed": {"vehicle": "car"}, "signed": {"vehicle": "car"}, "signature": "x"}',
    ],
    ids=lambda content: repr(content[:40]),
)
def test_a_message_of_any_content_gets_an_answer(
    world: World, car: Path, path: str, content: bytes
) -> None:
    """Not a closed connection and a traceback in the server's log."""
    host = urlsplit(world.server.url)
    connection = http.client.HTTPConnection(host.hostname or "", host.port, timeout=10)
    connection.request("POST", f"/{path}", content)
    answer = connection.getresponse()
    assert answer.status == 400
    assert "reason" in json.loads(answer.read())
    connection.request("GET", "/image/metadata/" + "a" * 300)  # no file can have this name
    assert connection.getresponse().status == 404


COLUMNS = {
    "vehicles": ("profile", "installed", "fell_back", "keys", "signed"),
    "targets": ("body",),
    "settings": ("value",),
}


@pytest.mark.parametrize("content", ["", "[" * 100_000, "1" * 5000, "null", "{}", '["x"]', "NaN"])
@pytest.mark.parametrize(("table", "column"), [(t, c) for t, cs in COLUMNS.items() for c in cs])
def test_damage_in_the_directors_database_is_said_in_words(
    world: World, car: Path, table: str, column: str, content: str
) -> None:
    with world.director.connect() as connection:
        connection.execute(f"UPDATE {table} SET {column} = ?", (content,))  # noqa: S608
    for ask in (
        lambda: rollout.fleet_status(world.director),
        lambda: world.director.metadata_file("car", "timestamp.json"),
        lambda: world.director.clock,
    ):
        with contextlib.suppress(WorkbenchError):
            ask()
    host = urlsplit(world.server.url)
    connection = http.client.HTTPConnection(host.hostname or "", host.port, timeout=10)
    connection.request("GET", "/director/car/timestamp.json")
    assert connection.getresponse().status in (200, 400, 404, 503)


@pytest.mark.parametrize("content", [b"not a database" * 100, b"SQLite format 3\0" + b"\1" * 4000])
def test_a_file_that_is_no_database_is_said_in_words(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "d.sqlite").write_bytes(content)
    with pytest.raises(RecordError, match="database cannot be used"):
        Director(tmp_path / "d.sqlite")


def test_the_first_report_of_a_day_counts(world: World, car: Path) -> None:
    vehicle = world.vehicle(car)
    vehicle.update()
    vehicle.send_report(DayCounts(day=0, frames=100, fallbacks=1, detections={"car": 7}))
    for _ in range(25):  # a chatty vehicle
        vehicle.send_report(DayCounts(day=0, frames=100, fallbacks=99))
    with world.director.connect() as connection:
        rows = connection.execute("SELECT vehicle, frames, fallbacks FROM reports").fetchall()
    assert [tuple(row) for row in rows] == [("car", 100, 1)]


def _newest(world: World, role: str) -> int:
    names = (path.name for path in world.folder.images.metadata.glob(f"*.{role}.json"))
    return max(int(name.split(".")[0]) for name in names)
