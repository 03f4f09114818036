"""Frames that must stay unseen: which ones, by the digests of their images, and the refusal.

A role is a word in a record, and anybody can write another one. So what is held out is decided by
digests over all dataset versions of a workspace:

    blind    a frame that any version gives the role ``blind``: for ever, and for every use but the
             blind holdout itself
    safety   a frame with the role ``safety`` that no version uses for learning; a source that is
             ingested again may be split anew, but a version made from another one may not change it
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from workbench.core.errors import RecordError, Refusal, VerificationError
from workbench.core.text import counted
from workbench.records.base import Digest, Ref, kind_of
from workbench.records.frames import Frame, Role
from workbench.records.store import Store

__all__ = ("refuse_held_out",)

_LEARNED = (Role.SEED, Role.TRAIN, Role.POOL)
_MARKS = {role: f'"role":"{role}"'.encode() for role in (*_LEARNED, Role.SAFETY, Role.BLIND)}


@dataclass(frozen=True)
class _Roles:
    """Ids of frames by what their role allows, in one version or in all."""

    blind: frozenset[Digest] = frozenset()
    safety: frozenset[Digest] = frozenset()
    learned: frozenset[Digest] = frozenset()

    def __or__(self, other: _Roles) -> _Roles:
        return _Roles(
            self.blind | other.blind, self.safety | other.safety, self.learned | other.learned
        )


def refuse_held_out(
    store: Store,
    frames: Iterable[Frame | Digest],
    use: str,
    *,
    roles: tuple[Role, ...] = (Role.SAFETY, Role.BLIND),
) -> None:
    """Refuse frames that must stay unseen.

    Args:
        store: With all dataset versions.
        frames: What is about to be used, or the ids.
        use: For what, for the message: ``training``.
        roles: What is refused for this use.

    Raises:
        VerificationError: A frame is held out.
    """
    known = _all_roles(store)
    refused = {Role.BLIND: known.blind, Role.SAFETY: known.safety - known.learned}
    for frame in frames:
        name, stated = (frame.id, frame.role) if isinstance(frame, Frame) else (frame, None)
        for role in roles:
            if name in refused[role] or stated is role:
                raise VerificationError(
                    f"frame {name[:12]} is held out ({role}): it cannot be used for {use}",
                    where=store.root,
                    hint="Leave out what is safety or blind in any version of the dataset: "
                    "a frame is known by its digest, whatever role it is given now",
                    reason=Refusal.FRAME_HELD_OUT,
                )


def keep_blind(store: Store, frames: Iterable[Frame]) -> tuple[Frame, ...]:
    """The frames, with the role ``blind`` where an earlier version has them so."""
    blind = _all_roles(store).blind
    return tuple(
        frame.model_copy(update={"role": Role.BLIND}) if frame.id in blind else frame
        for frame in frames
    )


def refuse_new_roles(store: Store, frames: Iterable[Frame], parents: Iterable[Ref]) -> None:
    """Refuse a version that gives another role to what its parents hold out, or any blind frame.

    Raises:
        VerificationError: A frame would leave ``safety`` or ``blind``.
    """
    inherited = _Roles()
    for ref in parents:
        inherited |= _roles_of(store, ref)
    blind = _all_roles(store).blind
    changed = [
        frame
        for frame in frames
        if (frame.id in blind and frame.role not in (Role.BLIND, None))
        or (frame.id in inherited.safety and frame.role in (*_LEARNED, Role.VAL))
    ]
    if changed:
        first = changed[0]
        raise VerificationError(
            f"{counted(len(changed), 'frame')} held out so far would get another role, such as "
            f"{first.id[:12]}: {first.role}",
            where=store.root,
            hint="Safety and blind frames keep their role in every later version",
            reason=Refusal.FRAME_HELD_OUT,
        )


def _all_roles(store: Store) -> _Roles:
    found = _Roles()
    for ref in store.refs("dataset"):
        found |= _roles_of(store, ref)
    return found


_ROLES_BY_RECORD: dict[Path, _Roles] = {}  # a record's files never change


def _roles_of(store: Store, ref: Ref) -> _Roles:
    folder = store.folder(ref)
    if folder not in _ROLES_BY_RECORD and kind_of(ref) == "dataset":
        try:
            _ROLES_BY_RECORD[folder] = _read_roles(store.payload(ref, "frames.jsonl"))
        except RecordError:  # damaged, which `workbench doctor --records` says
            return _Roles()
    return _ROLES_BY_RECORD.get(folder, _Roles())


def _read_roles(path: Path) -> _Roles:
    by_role: dict[Role, set[Digest]] = {role: set() for role in _MARKS}
    with path.open("rb") as stream:
        for line in stream:
            for role, mark in _MARKS.items():
                if mark in line:
                    row = json.loads(line)
                    if row.get("role") == role:
                        by_role[role].add(row["id"])
    return _Roles(
        frozenset(by_role[Role.BLIND]),
        frozenset(by_role[Role.SAFETY]),
        frozenset().union(*(by_role[role] for role in _LEARNED)),
    )
