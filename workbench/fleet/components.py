"""What is installed on an ECU: one component of a release, and which components go together.

A component is what the image repository signs beside the hash of a file (TUF's ``custom``, which
python-tuf hands through unchecked). ``version`` names the content; ``counter`` only ever grows. A
rollback is a new signed component with the old content and version and a higher counter, so that
replaying an old component is refused and going back on purpose is not. Dependencies therefore speak
of versions.
"""

from __future__ import annotations

import io
import os
import tarfile
from collections.abc import Mapping, Sequence
from graphlib import CycleError, TopologicalSorter
from pathlib import Path, PurePosixPath
from typing import Annotated, Literal

from packaging.specifiers import InvalidSpecifier, SpecifierSet
from packaging.version import Version
from pydantic import AfterValidator, Field, StringConstraints

from workbench.core import digest
from workbench.core.parsing import parse_json
from workbench.fleet.reasons import Reason, UpdateRefused
from workbench.records.base import FrozenModel, Ref

__all__ = ["pack", "resolve"]

_MAX_UNPACKED_BYTES = 4 * 2**30
_CONTENT_FILE = "component.json"
_PROOF = ("untested", "linted", "verified")


def _specifier(text: str) -> str:
    try:
        SpecifierSet(text)
    except InvalidSpecifier as error:
        raise ValueError(f"{text!r} is not a version range such as '>=3,<5'") from error
    return text


Name = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9.-]{0,63}$")]
"""Name of a vehicle or of a kind of ECU; used in paths."""

Range = Annotated[str, AfterValidator(_specifier)]
"""A range of versions, such as ``>=3,<5``."""


class Component(FrozenModel):
    """One component of a release, signed by the image repository.

    Attributes:
        ecu: Kind of ECU it is for, such as ``front-camera``.
        version: Number of the content; a rollback goes back to an earlier one.
        counter: Release counter; every new signature has a higher one.
        hardware_ids: Chips that may run it.
        file: The file of the release that the ECU loads.
        release: The release record.
        requires: Range of versions by kind of ECU, each of which has to be there.
        conflicts: Range of versions by kind of ECU, none of which may be there.
    """

    schema_version: Literal[1] = 1
    ecu: Name
    version: int = Field(ge=0)
    counter: int = Field(ge=0)
    hardware_ids: tuple[str, ...] = Field(min_length=1)
    file: str
    release: Ref
    requires: dict[Name, Range] = {}
    conflicts: dict[Name, Range] = {}


class Target(FrozenModel):
    """A file of the image repository, with what is signed about it."""

    path: str
    sha256: str
    length: int
    component: Component


class EcuProfile(FrozenModel):
    """What an ECU is. ``runtime`` is the version of ``engine``."""

    hardware: str
    engine: str
    runtime: str
    calibration: str = ""


class VehicleProfile(FrozenModel):
    """What a vehicle is; written by the factory, never by the vehicle.

    Attributes:
        site: ``lab``, ``simulation``, ``track`` or ``road``.
        ecus: By kind of ECU. One kind has one ECU.
        simulated: Whether its reports come from a simulation.
    """

    id: Name
    site: Name = "road"
    region: Name = "eu"
    model_year: int = 2026
    ecus: dict[Name, EcuProfile] = Field(min_length=1)
    simulated: bool = True

    def ecu_id(self, ecu: str) -> str:
        """Identifier of an ECU, unique in the fleet."""
        return f"{self.id}/{ecu}"


class Offer(FrozenModel):
    """A component of a release on one chip, and where it may run.

    Attributes:
        engine: Engine of the target matrix, and ``runtime`` its versions.
        proof: State of this file on this chip as the export recorded it.
        model_year: Range of model years.
        calibrations: Calibrations that it was made for; all if empty.
        min_proof: Least state that may be sent.
    """

    target: Target
    engine: str
    runtime: str
    proof: Literal["verified", "linted", "untested"]
    model_year: Range = ""
    calibrations: tuple[str, ...] = ()
    min_proof: Literal["verified", "linted", "untested"] = "linted"


def incompatibility(vehicle: VehicleProfile, offer: Offer) -> UpdateRefused | None:
    """Why a vehicle is not offered a component; None if it may have it."""
    component = offer.target.component
    ecu = vehicle.ecus.get(component.ecu)
    where = vehicle.ecu_id(component.ecu)
    if ecu is None or ecu.hardware not in component.hardware_ids or ecu.engine != offer.engine:
        have = f"{ecu.hardware} ({ecu.engine})" if ecu else "no such ECU"
        need = f"{', '.join(component.hardware_ids)} ({offer.engine})"
        return UpdateRefused(
            Reason.INCOMPATIBLE_HARDWARE, f"vehicle has {have}, needed is {need}", where=where
        )
    if not _contains(offer.runtime, ecu.runtime):
        what = f"vehicle has {ecu.engine} {ecu.runtime}, needed is {offer.runtime}"
        return UpdateRefused(Reason.INCOMPATIBLE_RUNTIME, what, where=where)
    if offer.calibrations and ecu.calibration not in offer.calibrations:
        what = f"vehicle has calibration {ecu.calibration or 'none'}, needed is one of "
        what += ", ".join(offer.calibrations)
        return UpdateRefused(Reason.INCOMPATIBLE_CALIBRATION, what, where=where)
    if not _contains(offer.model_year, str(vehicle.model_year)):
        what = f"vehicle is of {vehicle.model_year}, needed is {offer.model_year}"
        return UpdateRefused(Reason.INCOMPATIBLE_MODEL_YEAR, what, where=where)
    if _PROOF.index(offer.proof) < _PROOF.index(offer.min_proof):
        what = f"this file is {offer.proof} on {ecu.hardware}, the plan asks for {offer.min_proof}"
        return UpdateRefused(Reason.UNTESTED_TARGET, what, where=where)
    return None


def resolve(
    installed: Mapping[str, Component], update: Sequence[Component]
) -> tuple[Component, ...]:
    """Check that the components go together after an update, and order it.

    Args:
        installed: Component by kind of ECU before the update.
        update: Components that would be installed, at most one for each kind of ECU.

    Returns:
        The update, what others require first.

    Raises:
        UpdateRefused: An ECU is named twice, a dependency is missing or circular, or components
            are in conflict.
    """
    new = {component.ecu: component for component in update}
    if len(new) < len(update):
        raise UpdateRefused(Reason.ECU_TWICE, "the update names an ECU twice")
    after = {**installed, **new}
    for component in after.values():
        where = f"{component.ecu} version {component.version}"
        for ecu, needed in component.requires.items():
            if ecu not in after or not _contains(needed, str(after[ecu].version)):
                have = f"version {after[ecu].version}" if ecu in after else "nothing"
                what = f"requires {ecu} {needed}, there would be {have}"
                raise UpdateRefused(Reason.DEPENDENCY_MISSING, what, where=where)
        for ecu, excluded in component.conflicts.items():
            if ecu in after and _contains(excluded, str(after[ecu].version)):
                what = f"conflicts with {ecu} {excluded}, there would be {after[ecu].version}"
                raise UpdateRefused(Reason.CONFLICT, what, where=where)
    order = TopologicalSorter(
        {ecu: sorted(new.keys() & new[ecu].requires.keys()) for ecu in sorted(new)}
    )
    try:
        return tuple(new[ecu] for ecu in order.static_order())
    except CycleError as error:
        what = f"no order of installation: {' requires '.join(reversed(error.args[1]))}"
        raise UpdateRefused(Reason.DEPENDENCY_CYCLE, what) from error


def target_path(component: Component) -> str:
    """Path in the image repository; each chip, and each file that it loads, has one of its own."""
    name = "-".join((*component.hardware_ids, component.file)).lower()
    name = "".join(letter if letter.isalnum() else "-" for letter in name)
    return f"{component.ecu}/{component.counter}/{name}.tar"


def pack(files: Mapping[str, bytes], ecu: str, hardware: str, file: str) -> bytes:
    """The files of a signed release for one chip, as a tar file: equal bytes for equal content.

    The tar itself says what it is for: a file that was signed under the name of another chip is
    found by the vehicle.
    """
    content = digest.canonical_json({"ecu": ecu, "hardware": hardware, "file": file})
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.PAX_FORMAT) as tar:
        _add(tar, _CONTENT_FILE, content)
        for name in sorted(files):
            _add(tar, f"release/{name}", files[name])
    return stream.getvalue()


def unpack(archive: Path, folder: Path, component: Component, hardware: str) -> dict[str, str]:
    """Unpack a target, synced to disk, and check what it says it is for.

    Args:
        archive: A file that `pack` made; its hash was verified.
        folder: Empty.
        component: What the image repository says about it.
        hardware: Chip of the ECU.

    Returns:
        SHA-256 of each file by name.

    Raises:
        UpdateRefused: The archive is not one that `pack` made, or is for another ECU or chip.
        OSError: It cannot be written.
    """
    files: dict[str, str] = {}
    try:
        with tarfile.open(archive, mode="r:") as tar:
            members = tar.getmembers()
            if sum(member.size for member in members) > _MAX_UNPACKED_BYTES:
                raise ValueError("it is too large")
            for member in members:
                name = PurePosixPath(member.name)
                if not member.isreg() or name.is_absolute() or ".." in name.parts:
                    raise ValueError(f"it has {member.name!r}")
                source = tar.extractfile(member)
                assert source is not None  # noqa: S101 - a regular file
                content = source.read()
                write_synced(folder / member.name, content)
                files[member.name] = digest.of_bytes(content)
        about = parse_json((folder / _CONTENT_FILE).read_bytes())
        if f"release/{component.file}" not in files:
            raise ValueError(f"it has no {component.file}")
        if not isinstance(about, dict):
            raise ValueError(f"{_CONTENT_FILE} is not a JSON object")
    except (tarfile.TarError, ValueError, KeyError, FileNotFoundError) as error:
        what = f"not the archive of a component: {error}"
        raise UpdateRefused(Reason.WRONG_CONTENT, what, where=archive.name) from error
    expected = {"ecu": component.ecu, "hardware": hardware, "file": component.file}
    if about != expected:
        what = f"archive is for {about.get('ecu')} on {about.get('hardware')}, this is {hardware}"
        raise UpdateRefused(Reason.WRONG_CONTENT, what, where=archive.name)
    return files


def write_synced(path: Path, content: bytes) -> None:
    """Write a file and wait until the disk has it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    entry = tarfile.TarInfo(name)  # time, owner and mode stay at their fixed defaults
    entry.size = len(content)
    tar.addfile(entry, io.BytesIO(content))


def _contains(specifier: str, version: str) -> bool:
    return Version(version) in SpecifierSet(specifier, prereleases=True)
