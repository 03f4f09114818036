"""Installation: killed in any state, a full disk, a failed self-check; always one whole slot."""

from __future__ import annotations

import multiprocessing
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Literal

import pytest

from tests.export.conftest import make_predictor
from tests.fleet.conftest import ECUS, World
from workbench.export.formats import export_fp32
from workbench.fleet.components import Component
from workbench.fleet.reasons import Reason, UpdateRefused
from workbench.fleet.vehicle import Vehicle, check_model

STATES = ("erased", "downloaded", "unpacked", "staged", "flipped", "booted", "checked", "committed")
FORK = multiprocessing.get_context("fork")


def check_bootable(folder: Path) -> Vehicle:
    """What runs after the next start is whole on every ECU."""
    vehicle = Vehicle(folder, "http://127.0.0.1:9")
    state = vehicle._state
    for ecu, name in state.active.items():
        assert vehicle.is_whole(ecu, name), f"{ecu}: the active slot is damaged"
    for ecu, name in (state.trial or {}).items():
        assert vehicle.is_whole(ecu, name), f"{ecu}: a slot on trial is damaged"
    return vehicle


def _update_and_wait(
    folder: Path, url: str, state: str, skip: int, reached: Path, *, linger: bool
) -> None:
    """In a process of its own: update, and stop to be killed in the n-th ``state``."""
    left = skip

    def on_state(name: str) -> None:
        nonlocal left
        if name == state:
            if left == 0:
                reached.touch()
                if linger:
                    time.sleep(60)
            left -= 1

    Vehicle(folder, url, on_state=on_state).update()


def kill_in(world: World, folder: Path, state: str, skip: int, *, wait_s: float | None) -> None:
    """Kill an update with SIGKILL: in a state, or ``wait_s`` after it was reached."""
    reached = world.scratch / "reached"
    reached.unlink(missing_ok=True)
    process = FORK.Process(
        target=_update_and_wait,
        args=(folder, world.server.url, state, skip, reached),
        kwargs={"linger": wait_s is None},
    )
    process.start()
    assert process.pid is not None
    deadline = time.monotonic() + 60
    while not reached.exists() and process.is_alive():
        assert time.monotonic() < deadline
        time.sleep(0.001)
    time.sleep(wait_s or 0)
    os.kill(process.pid, signal.SIGKILL)
    process.join()


@pytest.mark.parametrize("kills", [24, pytest.param(100, marks=pytest.mark.slow)])
def test_kills_leave_a_whole_slot_and_the_update_ends(world: World, kills: int) -> None:
    folder = world.build("car")
    killed = 0
    for number in range(kills):
        state = STATES[number % len(STATES)]
        version = 2 + number
        update = [world.publish(ecu, version) for ecu in ECUS[: 1 + number % 3]]
        world.assign("car", *update)
        started = check_bootable(folder)
        before = {ecu: target.sha256 for ecu, target in started.installed.items()}
        # A trial that the last kill left is committed first.
        trial = started._state.trial or {}
        slots = started._state.slots
        ended = {**before, **{ecu: slots[ecu][slot].target.sha256 for ecu, slot in trial.items()}}
        # Of each state with several ECUs, another one; every third kill hits somewhere behind it.
        wait_s = 0.004 * (number % 5) if number % 3 == 2 else None
        kill_in(
            world, folder, state, number % len(update) if state == "staged" else 0, wait_s=wait_s
        )
        after = check_bootable(folder)
        running = {ecu: target.sha256 for ecu, target in after.installed.items()}
        new = {**ended, **{target.component.ecu: target.sha256 for target in update}}
        assert running in (before, ended, new), (
            f"kill {number} in {state}: a part of the update runs"
        )
        killed += running != new
        if number % 2:
            vehicle = world.vehicle(folder)
            try:
                vehicle.update()
            except UpdateRefused as refused:  # killed in three starts of one trial
                assert "did not come up" in refused.what
                new = before
            check_bootable(folder)
            running = {ecu: target.sha256 for ecu, target in vehicle.installed.items()}
            assert running == new, f"kill {number} in {state}: the update did not end"
    assert killed >= kills / 2  # most were killed before their commit


def test_a_process_of_its_own_installs(world: World) -> None:
    folder = world.build("car")
    world.assign("car", world.publish("front-camera", 2))
    command = [sys.executable, "-m", "workbench.fleet.vehicle", str(folder), world.server.url]
    done = subprocess.run([*command, "--states"], capture_output=True, text=True, check=True)
    assert done.stdout.split() == list(STATES)
    assert world.vehicle(folder).installed["front-camera"].component.version == 2


def test_a_trial_that_never_comes_up_falls_back(world: World) -> None:
    """The vehicle dies in each start of the new slots; then it runs the old ones again."""
    folder = world.build("car")
    world.assign("car", world.publish("front-camera", 2))
    for _ in range(3):
        kill_in(world, folder, "booted", 0, wait_s=None)
    with pytest.raises(UpdateRefused, match="did not come up"):
        world.vehicle(folder).update()
    vehicle = check_bootable(folder)
    assert vehicle.installed["front-camera"].component.version == 1
    assert [one.version for one in vehicle.fell_back] == [2]


def test_a_vehicle_that_fell_back_is_not_offered_that_content_again(world: World) -> None:
    folder = world.build("car")
    bad = world.publish("front-camera", 2)
    good = world.publish("cabin", 2)
    world.assign("car", bad, good)

    def check(_slot: Path, component: Component) -> str | None:
        return "no boxes" if component.ecu == "front-camera" and component.version == 2 else None

    vehicle = world.vehicle(folder, self_check=check)
    with pytest.raises(UpdateRefused) as caught:
        vehicle.update()
    assert caught.value.reason is Reason.SELF_CHECK_FAILED
    # All ECUs of the update fell back together, and the director took its assignment back.
    assert {target.component.version for target in vehicle.installed.values()} == {1}
    with world.director.connect() as connection:
        assert not connection.execute("SELECT * FROM assignments").fetchall()
        assert world.director.vehicles(connection)["car"].fell_back[0].why == "no boxes"
    assert vehicle.update() is False
    # The same bytes under a new counter are no new content; the vehicle itself refuses them.
    again = world.publish("front-camera", 2, counter=7, content=world.folder.images.content(bad))
    world.assign("car", again)
    with world.director.connect() as connection:
        connection.execute("UPDATE vehicles SET fell_back = '[]'")
    with pytest.raises(UpdateRefused) as caught:
        vehicle._save(fell_back=vehicle.fell_back)
        vehicle.send_manifest = lambda: None  # a director that forgot
        vehicle.update()
    assert caught.value.reason is Reason.FELL_BACK_BEFORE
    assert len(vehicle.fell_back) == 1


def test_a_rollback_uses_the_bytes_that_are_still_there(world: World) -> None:
    folder = world.build("car")
    first = world.vehicle(folder).installed["front-camera"]
    world.assign("car", world.publish("front-camera", 2))
    world.vehicle(folder).update()
    content = world.folder.images.content(first)
    world.assign("car", world.publish("front-camera", 1, counter=3, content=content))
    states: list[str] = []
    vehicle = world.vehicle(folder, on_state=states.append)
    assert vehicle.update() is True
    assert "downloaded" not in states
    assert vehicle.installed["front-camera"].sha256 == first.sha256
    assert vehicle.installed["front-camera"].component.counter == 3


def test_the_self_check_runs_the_model(world: World, tmp_path: Path) -> None:
    predictor = make_predictor(0)
    model = tmp_path / "release" / "fp32.onnx"
    model.parent.mkdir()
    model.write_bytes(export_fp32(predictor))
    component = world.component("front-camera", 2).model_copy(update={"file": "fp32.onnx"})
    assert check_model(tmp_path, component) is None
    model.write_bytes(model.read_bytes()[:-1000])
    wrong = check_model(tmp_path, component)
    assert wrong is not None and "fp32.onnx does not run" in wrong


def test_a_damaged_active_slot_is_left_for_the_other(world: World) -> None:
    folder = world.build("car")
    world.assign("car", world.publish("front-camera", 2))
    world.vehicle(folder).update()
    (folder / "slots" / "front-camera" / "b" / "release" / "model.bin").write_text("flipped bit")
    vehicle = world.vehicle(folder)
    vehicle.boot()
    assert vehicle.installed["front-camera"].component.version == 1


def _update_with_a_small_disk(folder: Path, url: str, limit: int) -> None:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # writes fail with EFBIG, as with ENOSPC
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    try:
        Vehicle(folder, url).update()
    except UpdateRefused as refused:
        os._exit(40 if refused.reason is Reason.DISK_FULL else 41)
    os._exit(0)


@pytest.mark.parametrize("part", ["download", "unpack"])
def test_a_full_disk_leaves_the_old_slot(world: World, part: Literal["download", "unpack"]) -> None:
    """The kernel refuses the writes: to the downloaded file, or to the slot."""
    folder = world.build("car")
    content = world.archive("front-camera", "x" * 300_000)
    world.assign("car", world.publish("front-camera", 2, content=content))
    limit = 100_000 if part == "download" else len(content) - 1
    process = FORK.Process(target=_update_with_a_small_disk, args=(folder, world.server.url, limit))
    process.start()
    process.join()
    assert process.exitcode == 40
    vehicle = check_bootable(folder)
    assert vehicle.installed["front-camera"].component.version == 1
    assert not list(folder.glob("*.download"))
    later = world.vehicle(folder)  # with space again
    assert later.update() is True


def test_no_space_is_found_before_anything_is_downloaded(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = world.build("car")
    world.assign("car", world.publish("front-camera", 2))
    usage = os.statvfs(folder)
    free = type("Usage", (), {"total": usage.f_blocks, "used": 0, "free": 1000})
    monkeypatch.setattr("workbench.fleet.vehicle.shutil.disk_usage", lambda _path: free)
    states: list[str] = []
    with pytest.raises(UpdateRefused) as caught:
        world.vehicle(folder, on_state=states.append).update()
    assert caught.value.reason is Reason.DISK_FULL and "downloaded" not in states
