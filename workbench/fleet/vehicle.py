"""A vehicle: a disk of its own, two slots for each ECU, atomic installation, and what it reports.

    FOLDER/profile.json, trust/, keys/   from the factory; never written again
    FOLDER/state.json                    which slot is active, on trial, whole; replaced atomically
    FOLDER/slots/ECU/a|b/                one of them runs, the other is written
    FOLDER/metadata/                     verified metadata of both repositories

An installation writes the spare slots only, then flips by one rename of ``state.json``, boots the
new slots on trial, checks itself, and commits by another rename. A power cut at any moment leaves
the active slot whole; a trial that does not end in a commit falls back. All ECUs of an update are
committed or fall back together. The primary's state stands for the boot loaders of the ECUs, which
a vehicle has one each: their flips would be as many renames.
"""

from __future__ import annotations

import argparse
import errno
import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Literal

from pydantic import AwareDatetime

from workbench.core import digest
from workbench.core.errors import WorkbenchError
from workbench.core.parsing import parse_json
from workbench.core.types import Json
from workbench.fleet import metadata
from workbench.fleet.components import (
    Component,
    Target,
    VehicleProfile,
    resolve,
    unpack,
    write_synced,
)
from workbench.fleet.reasons import Reason, UpdateRefused
from workbench.fleet.verification import AttestedTime, HttpFetcher, Trust, UpdateClient
from workbench.records.base import FrozenModel

__all__ = ["DayCounts"]

MESSAGE_VERSION = 1
"""Version of manifests."""

REPORT_VERSION = 1
"""Version of the reports that the canary judge reads."""

_MAX_BOOTS = 3  # starts of a trial without a commit, before it falls back
_NO_SPACE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_SPARE_BYTES = 1 << 20

SlotName = Literal["a", "b"]
SelfCheck = Callable[[Path, Component], str | None]
"""From the folder of a slot to what is wrong with it, or None."""


class Slot(FrozenModel):
    """Content of a whole slot: SHA-256 by file name."""

    target: Target
    files: dict[str, str]


class FellBack(FrozenModel):
    """Content that this vehicle tried and will not try again."""

    ecu: str
    sha256: str
    version: int
    why: str


class _State(FrozenModel):
    active: dict[str, SlotName]
    slots: dict[str, dict[SlotName, Slot]]
    trial: dict[str, SlotName] | None = None
    boots: int = 0
    fell_back: tuple[FellBack, ...] = ()
    attested: AwareDatetime | None = None
    sequence: int = 0


class DayCounts(FrozenModel):
    """What the canary judge needs of one vehicle-day; counts, so that days can be added.

    Attributes:
        day: Days since the fleet's clock started.
        frames: Frames that were processed.
        detections: Boxes by class.
        late: Frames whose answer came after its deadline.
        fallbacks: Frames that were answered without the model.
        near_misses: Objects close ahead that another sensor saw before the model did.
    """

    schema_version: Literal[1] = 1
    day: int
    frames: int
    detections: dict[str, int] = {}
    late: int = 0
    fallbacks: int = 0
    near_misses: int = 0


class Vehicle:
    """One vehicle.

    Args:
        folder: Made by `create`.
        url: Address of the fleet server.
        self_check: Judges a new slot before it is committed.
        on_state: Called with the name of each state of an installation, after it is on disk.
    """

    def __init__(
        self,
        folder: Path,
        url: str,
        *,
        self_check: SelfCheck | None = None,
        on_state: Callable[[str], None] | None = None,
        fetcher: HttpFetcher | None = None,
    ) -> None:
        self.folder = folder
        self.profile = VehicleProfile.model_validate_json((folder / "profile.json").read_bytes())
        trust = Trust(
            director_root=(folder / "trust" / "director.json").read_bytes(),
            image_root=(folder / "trust" / "image.json").read_bytes(),
            time_key=metadata.public_key(parse_json((folder / "trust" / "time.json").read_bytes())),
        )
        self._client = UpdateClient(folder / "metadata", url, self.profile, trust, fetcher)
        self._signers = {
            name: metadata.load_signer(folder / "keys" / f"{name}.pem")
            for name in ("primary", *self.profile.ecus)
        }
        self._self_check = self_check or (lambda _slot, _component: None)
        self._on_state = on_state or (lambda _name: None)
        self._state = _State.model_validate_json((folder / "state.json").read_bytes())
        self._time: AttestedTime | None = None
        self.notice: Json = {}
        """Why the director does not offer this vehicle a rollout, for the diagnosis screen."""

    @staticmethod
    def create(
        folder: Path, profile: VehicleProfile, trust: Trust, factory: Mapping[str, Path]
    ) -> dict[str, Json]:
        """Build a vehicle.

        Args:
            folder: New.
            profile: What it is.
            trust: What it trusts.
            factory: Archive of the first software, by kind of ECU, with the ``Target`` beside it as
                ``NAME.json``.

        Returns:
            Public keys of the primary and of each ECU, for the director.
        """
        keys = {}
        for name in ("primary", *profile.ecus):
            signer = metadata.new_signer()
            metadata.save_signer(signer, folder / "keys" / f"{name}.pem")
            keys[name] = metadata.key_to_json(signer.public_key)
        write_synced(folder / "profile.json", profile.model_dump_json().encode())
        write_synced(folder / "trust" / "director.json", trust.director_root)
        write_synced(folder / "trust" / "image.json", trust.image_root)
        key = json.dumps(metadata.key_to_json(trust.time_key)).encode()
        write_synced(folder / "trust" / "time.json", key)
        slots: dict[str, dict[SlotName, Slot]] = {}
        for ecu, archive in factory.items():
            target = Target.model_validate_json(archive.with_suffix(".json").read_bytes())
            files = unpack(
                archive,
                folder / "slots" / ecu / "a",
                target.component,
                profile.ecus[ecu].hardware,
            )
            slots[ecu] = {"a": Slot(target=target, files=files)}
        state = _State(active=dict.fromkeys(slots, "a"), slots=slots)
        _replace(folder / "state.json", state.model_dump_json().encode())
        return keys

    @property
    def installed(self) -> dict[str, Target]:
        """Target on each kind of ECU."""
        state = self._state
        return {ecu: state.slots[ecu][name].target for ecu, name in state.active.items()}

    def read_installed(self, ecu: str) -> bytes:
        """The file that an ECU loads, from its active slot, as both repositories signed it.

        Raises:
            UpdateRefused: It was changed since it was installed.
        """
        slot = self._state.slots[ecu][self._state.active[ecu]]
        name = f"release/{slot.target.component.file}"
        content = (self._slot(ecu, self._state.active[ecu]) / name).read_bytes()
        if digest.of_bytes(content) != slot.files[name]:
            what = f"{name} of {ecu} was changed on disk"
            raise UpdateRefused(Reason.WRONG_CONTENT, what, where=self.profile.id)
        return content

    @property
    def fell_back(self) -> tuple[FellBack, ...]:
        """What this vehicle will not install again."""
        return self._state.fell_back

    def update(self) -> bool:
        """Ask once, and install what is new.

        Returns:
            Whether something was installed.

        Raises:
            UpdateRefused: The update was refused or fell back; the vehicle runs what it ran before.
        """
        self.boot()
        self._time = self._client.attest_time(self._state.attested)
        self._save(attested=self._time.now)
        self.send_manifest()
        targets = self._client.check(self._time.now, self.installed)
        known = {one.sha256 for one in self._state.fell_back}
        new = {
            target.component.ecu: target
            for target in targets
            if target != self.installed.get(target.component.ecu)
        }
        for target in new.values():
            if target.sha256 in known:
                what = "this vehicle fell back from it and does not install it again"
                raise UpdateRefused(Reason.FELL_BACK_BEFORE, what, where=target.path)
        relabelled = False
        for ecu, target in list(new.items()):
            if target.sha256 == self.installed[ecu].sha256:
                # A new release of what runs already, such as a rollback that met no update.
                name = self._state.active[ecu]
                files = self._state.slots[ecu][name].files
                self._keep_slot(ecu, name, Slot(target=target, files=files))
                del new[ecu]
                relabelled = True
        if not new:
            if relabelled:
                self.send_manifest()
            return False
        before = {ecu: target.component for ecu, target in self.installed.items()}
        order = resolve(before, [target.component for target in new.values()])
        for component in order:
            self._stage(new[component.ecu])
        trial = {component.ecu: self._spare(component.ecu) for component in order}
        self._save(trial=trial, boots=0)
        self._on_state("flipped")
        try:
            self.boot()
        finally:
            self.send_manifest()
        return True

    def boot(self) -> None:
        """Start: continue or end a trial, and leave a slot that does not verify.

        Raises:
            UpdateRefused: A trial fell back.
        """
        if self._state.trial is None:
            self._leave_damaged_slots()
            return
        if self._state.boots >= _MAX_BOOTS:
            self._fall_back(next(iter(self._state.trial)), "did not come up")
        self._save(boots=self._state.boots + 1)
        self._on_state("booted")
        for ecu, name in self._state.trial.items():
            if not self.is_whole(ecu, name):
                self._fall_back(ecu, "slot is not whole")
            component = self._state.slots[ecu][name].target.component
            wrong = self._self_check(self._slot(ecu, name), component)
            self._on_state("checked")
            if wrong is not None:
                self._fall_back(ecu, wrong)
        self._save(active={**self._state.active, **self._state.trial}, trial=None, boots=0)
        self._on_state("committed")

    def is_whole(self, ecu: str, name: SlotName) -> bool:
        """Whether every file of a slot is there and unchanged."""
        slot = self._state.slots[ecu].get(name)
        folder = self._slot(ecu, name)
        if slot is None:
            return False
        present = {
            path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()
        }
        return present == slot.files.keys() and all(
            digest.of_file(folder / file) == sha256 for file, sha256 in slot.files.items()
        )

    def send_manifest(self) -> None:
        """Tell the director what is installed; each ECU signs for itself."""
        ecus = {
            ecu: metadata.seal_message(
                {
                    "ecu_identifier": self.profile.ecu_id(ecu),
                    "path": target.path,
                    "sha256": target.sha256,
                    "counter": target.component.counter,
                    "sequence": self._state.sequence + 1,
                },
                self._signers[ecu],
            ).decode()
            for ecu, target in self.installed.items()
        }
        fell_back = [one.model_dump(mode="json") for one in self._state.fell_back]
        body: Json = {"ecus": ecus, "fell_back": fell_back}
        answer = self._send("manifest", MESSAGE_VERSION, body)
        try:
            self.notice = dict(parse_json(answer))
        except (ValueError, TypeError):
            self.notice = {}  # not signed, and only for people

    def send_report(self, counts: DayCounts) -> None:
        """Send the counts of a day."""
        self._send("report", REPORT_VERSION, {"counts": counts.model_dump(mode="json")})

    def _send(self, kind: str, version: int, body: Json) -> bytes:
        if self._time is None:
            self._time = self._client.attest_time(self._state.attested)
            self._save(attested=self._time.now)
        self._save(sequence=self._state.sequence + 1)  # before sending: never used twice
        message = {
            "kind": kind,
            "schema_version": version,
            "vehicle": self.profile.id,
            "sequence": self._state.sequence,
            "nonce": self._time.nonce,
            "time": self._time.token.decode(),
            **body,
        }
        return self._client.post(kind, metadata.seal_message(message, self._signers["primary"]))

    def _stage(self, target: Target) -> None:
        """Write a target into the spare slot; the active one is not touched."""
        ecu, name = target.component.ecu, self._spare(target.component.ecu)
        slot = self._state.slots[ecu].get(name)
        if slot is not None and slot.target.sha256 == target.sha256 and self.is_whole(ecu, name):
            # A rollback: the old bytes are still here.
            self._keep_slot(ecu, name, Slot(target=target, files=slot.files))
            self._on_state("staged")
            return
        folder, archive = self._slot(ecu, name), self.folder / f"{ecu}.download"
        self._keep_slot(ecu, name, None)  # first, so that a half-written slot is never taken
        shutil.rmtree(folder, ignore_errors=True)
        self._on_state("erased")
        try:
            if shutil.disk_usage(self.folder).free < 2 * target.length + _SPARE_BYTES:
                raise OSError(errno.ENOSPC, "not enough space")
            self._client.download(target, archive)
            self._on_state("downloaded")
            folder.mkdir(parents=True)
            hardware = self.profile.ecus[ecu].hardware
            files = unpack(archive, folder, target.component, hardware)
            _sync_folders(folder)
            self._on_state("unpacked")
        except OSError as error:
            shutil.rmtree(folder, ignore_errors=True)
            if error.errno in _NO_SPACE:
                what = f"no space for {target.length} bytes"
                raise UpdateRefused(Reason.DISK_FULL, what, where=self.folder) from error
            raise
        finally:
            archive.unlink(missing_ok=True)
        self._keep_slot(ecu, name, Slot(target=target, files=files))
        self._on_state("staged")

    def _fall_back(self, ecu: str, why: str) -> None:
        trial = self._state.trial or {}
        target = self._state.slots[ecu][trial[ecu]].target
        fell_back = FellBack(
            ecu=ecu, sha256=target.sha256, version=target.component.version, why=why
        )
        self._save(trial=None, boots=0, fell_back=(*self._state.fell_back, fell_back))
        self._on_state("fell back")
        raise UpdateRefused(Reason.SELF_CHECK_FAILED, f"{why}; fell back", where=target.path)

    def _leave_damaged_slots(self) -> None:
        for ecu, name in self._state.active.items():
            spare = self._spare(ecu)
            if not self.is_whole(ecu, name) and self.is_whole(ecu, spare):
                self._save(active={**self._state.active, ecu: spare})

    def _spare(self, ecu: str) -> SlotName:
        return "b" if self._state.active[ecu] == "a" else "a"

    def _slot(self, ecu: str, name: SlotName) -> Path:
        return self.folder / "slots" / ecu / name

    def _keep_slot(self, ecu: str, name: SlotName, slot: Slot | None) -> None:
        slots = {key: value for key, value in self._state.slots[ecu].items() if key != name}
        if slot is not None:
            slots[name] = slot
        self._save(slots={**self._state.slots, ecu: slots})

    def _save(self, **changes: object) -> None:
        self._state = self._state.model_copy(update=changes)
        _replace(self.folder / "state.json", self._state.model_dump_json().encode())


def check_model(slot: Path, component: Component) -> str | None:
    """Self-check of an ECU that runs ONNX files: load the model and let it see a grey frame."""
    import numpy as np

    from workbench.detection.predictor import OnnxPredictor

    path = slot / "release" / component.file
    if path.suffix != ".onnx":
        return None
    try:
        model = OnnxPredictor(path, threads=1)
        height, width = model.preprocessing.height, model.preprocessing.width
        model.predict([np.full((height, width, 3), 114, np.uint8)])
    except Exception as error:  # whatever it is, this model does not run here
        return f"{component.file} does not run: {error}"
    return None


def main(arguments: list[str] | None = None) -> int:
    """Run one vehicle as a process: poll until it is killed, or once."""
    parser = argparse.ArgumentParser(prog="python -m workbench.fleet.vehicle", description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("url")
    parser.add_argument("--every", type=float, help="seconds between polls; once by default")
    parser.add_argument("--states", action="store_true", help="print each state of an installation")
    options = parser.parse_args(arguments)

    def show(state: str) -> None:
        if options.states:
            print(state, flush=True)

    vehicle = Vehicle(options.folder, options.url, self_check=check_model, on_state=show)
    while True:
        status = 0
        try:
            vehicle.update()
        except WorkbenchError as error:
            print(error, file=sys.stderr, flush=True)
            status = 1
        if options.every is None:
            return status
        time.sleep(options.every)


def _replace(path: Path, content: bytes) -> None:
    """Replace a file by one rename, and wait until the disk has both."""
    temporary = path.with_suffix(".new")
    write_synced(temporary, content)
    temporary.replace(path)
    _sync_folder(path.parent)


def _sync_folders(folder: Path) -> None:
    for path in (folder.parent, folder, *(one for one in folder.rglob("*") if one.is_dir())):
        _sync_folder(path)


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


if __name__ == "__main__":
    sys.exit(main())
