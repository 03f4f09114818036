"""The releases of a workspace, by model, version and alias, as their signatures say.

A release record counts only with its signature: an envelope that names the model, version, verdict,
gate report and bundle, and lists the bundle's files. Records, folders and MLflow's registry can be
written by anyone who can write to the workspace; what they say is compared with the signature.
Versions are in the records, so they never restart. Aliases follow from the records:

- ``candidate``: the newest release
- ``champion``: the newest release whose gates allow it and that was not rolled back
- ``previous``: what is champion after a rollback

A rollback is a record, too, and counts only with its signature.

Signatures of version 1 cover the files only. Such a release is called older; a newer one always
takes precedence.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal

from workbench.core import digest
from workbench.core.errors import (
    ParameterError,
    RecordError,
    Refusal,
    VerificationError,
    WorkbenchError,
)
from workbench.core.keyring import Keyring, public_key, read_keyring, usable_keys
from workbench.core.names import check_name
from workbench.core.signatures import Envelope, check_reference, open_envelope
from workbench.core.workspace import Workspace
from workbench.records.base import (
    FrozenModel,
    GateReport,
    Ref,
    Verdict,
    digest_of,
    kind_of,
    short_ref,
)
from workbench.records.model_types import Release, Rollback
from workbench.records.store import Store

__all__ = [
    "ALIASES",
    "RegisteredRelease",
    "SignedRelease",
    "may_promote",
    "registered_releases",
    "release_folder",
    "resolve_model",
    "signed_release_of",
]

ALIASES = ("candidate", "champion", "previous")
SIGNATURE = "signature"
"""Side file of a release with its envelope, so that the record counts without its folder."""

ROLLBACK_PURPOSE = "rollback"
_MAX_VERSION = 10**6  # a forged record must not use up all numbers

REGISTRY = "registry"
"""Side file of a release with its version and run in MLflow."""


class SignedRelease(FrozenModel):
    """What a signature says about the folder that it signs.

    Attributes:
        signed_at: Time in UTC by the signer's clock; None in signatures from before it was stored.
    """

    signature_version: Literal[2] = 2
    model: str
    version: int
    bundle: Ref
    gates: Ref
    verdict: Verdict
    promoted: bool
    signed_at: str | None = None

    @property
    def fields(self) -> dict[str, Any]:
        """What the release's record says, too."""
        return self.model_dump(exclude={"signature_version", "signed_at"})


@dataclass(frozen=True)
class RegisteredRelease:
    """A release whose signature was verified.

    Attributes:
        version: Its number under the model's name; None for an older one that has none.
        older: Its signature has version 1 and covers the files only.
    """

    ref: Ref
    record: Release
    version: int | None
    older: bool

    def __str__(self) -> str:
        return f"{self.record.model}@{self.version} ({short_ref(self.ref)})"


@dataclass(frozen=True)
class ModelReleases:
    """All releases of one model.

    Attributes:
        releases: Those that count, oldest first.
        refused: Why others do not count, by reference, and ``codes``: the stable codes of it.
        damaged: Records that are damaged or lost, and may be the newest of this model: no alias is
            resolved and no version given until they are back.
    """

    model: str
    releases: tuple[RegisteredRelease, ...]
    refused: dict[Ref, str]
    rollbacks: tuple[Rollback, ...] = ()
    highest_refused: int = 0
    """Highest version of a release that does not count, such as one of a lost key."""
    damaged: dict[Ref, str] = field(default_factory=dict)
    codes: dict[Ref, str] = field(default_factory=dict)

    @cached_property
    def aliases(self) -> dict[str, RegisteredRelease]:
        """The release that each alias names.

        Raises:
            RecordError: A record is damaged.
        """
        champions = self.champions_before(frozenset())
        named = {"candidate": self.releases[-1]} if self.releases else {}
        named |= dict(zip(("champion", "previous"), reversed(champions), strict=False))
        return named

    def champions_before(self, bundles: Collection[Ref]) -> list[RegisteredRelease]:
        """The champion, and before it those that it would be rolled back to.

        Args:
            bundles: Releases of these bundles, and all that came later, are left out.
        """
        self._require_whole()
        champions: list[RegisteredRelease] = []
        waiting = list(self.rollbacks)
        for release in self.releases:
            if release.record.bundle in bundles:
                return champions
            while waiting and not release.older and waiting[0].after < (release.version or 0):
                _roll_back(champions, waiting.pop(0))
            if release.record.promoted:
                champions.append(release)
        for rollback in waiting:
            _roll_back(champions, rollback)
        return champions

    def require_any(self) -> None:
        """Refuse to go on as if there were no release where there are only invalid ones.

        Raises:
            VerificationError: There are releases, and none counts.
        """
        if self.refused and not self.releases:
            ref, reason = next(iter(self.refused.items()))
            raise VerificationError(
                f"no release of {self.model} counts: {reason}",
                where=ref,
                hint="Restore the signing key and the releases from a backup",
                reason=self.codes.get(ref),
            )

    def _require_whole(self) -> None:
        for ref, problem in self.damaged.items():
            raise RecordError(
                f"a {kind_of(ref)} of {self.model} may be damaged: {problem}",
                where=ref,
                hint="Run `workbench doctor --records`, or restore it from a backup. If it is "
                f"lost, or nobody of yours made it (see `workbench audit log`), remove its folder "
                f"and index/sequence/*.{ref.replace('/', '.')}",
            )

    @property
    def next_version(self) -> int:
        """The number of the next release: one more than the highest so far."""
        self._require_whole()
        numbers = [release.version or 0 for release in self.releases]
        return max((*numbers, self.highest_refused), default=0) + 1


def _roll_back(champions: list[RegisteredRelease], rollback: Rollback) -> None:
    if [one.ref for one in champions[-2:]] == [rollback.restored, rollback.withdrawn]:
        champions.pop()


def may_promote(report: GateReport) -> bool:
    """Whether a model may replace the champion: all required gates passed, at least one of them.

    Args:
        report: Gate report of the model. INSUFFICIENT EVIDENCE does not promote.
    """
    required = [gate for gate in report.gates if gate.required]
    return (
        report.verdict is Verdict.PASS
        and bool(required)
        and all(gate.verdict is Verdict.PASS for gate in required)
    )


def release_models(workspace: Workspace) -> list[str]:
    """Names of the models with a release record, whether or not it counts."""
    return sorted({record.model for _, record in _readable(Store(workspace))})


def registered_releases(workspace: Workspace, model: str) -> ModelReleases:
    """The releases of a model, each verified against its signature with the workspace's key."""
    store = Store(workspace)
    counted: list[RegisteredRelease] = []
    refused: dict[Ref, str] = {}
    codes: dict[Ref, str] = {}
    damaged = store.damaged(Release, Rollback)
    ring: Keyring | None = None
    for ref, record in _readable(store):
        if record.model == model:
            try:
                ring = ring or read_keyring(workspace)
                counted.append(_verified(store, ref, record, ring))
            except RecordError as error:
                damaged[ref] = refused[ref] = str(error)
            except VerificationError as error:
                refused[ref] = str(error)
                codes[ref] = error.reason or ""
    numbers = Counter(release.version for release in counted if not release.older)
    for release in [one for one in counted if not one.older and numbers[one.version] > 1]:
        refused[release.ref] = f"{numbers[release.version]} releases have version {release.version}"
        counted.remove(release)
    counted.sort(key=lambda release: (not release.older, release.version or 0))
    numbers_refused = [store.get(ref, Release).version or 0 for ref in refused]
    highest = max((number for number in numbers_refused if number < _MAX_VERSION), default=0)
    rollbacks = tuple(signed_rollbacks(store, model, refused, damaged).values())
    return ModelReleases(model, tuple(counted), refused, rollbacks, highest, damaged, codes)


def signed_rollbacks(
    store: Store,
    model: str,
    refused: dict[Ref, str] | None = None,
    damaged: dict[Ref, str] | None = None,
) -> dict[Ref, Rollback]:
    """The rollbacks of a model that count, in order; the others are added to ``refused``.

    One that names a key of the workspace and is not signed with it is added to ``damaged``, too:
    without it the model that was withdrawn would be champion again.
    """
    counted: dict[Ref, Rollback] = {}
    for ref, record in store.readable(Rollback):
        if record.model != model:
            continue
        own: set[str] = set()
        try:
            own = {one.key for one in read_keyring(store.workspace).keys}
            _check_rollback(store, ref, usable_keys(store.workspace, "release"))
            counted[ref] = record
        except VerificationError as error:
            if refused is not None:
                refused[ref] = str(error)
            if damaged is not None and record.key in own:
                damaged[ref] = error.what
    return dict(sorted(counted.items(), key=lambda one: (one[1].after, one[1].number)))


def _check_rollback(store: Store, ref: Ref, keys: list[Path]) -> None:
    signature = store.side(ref, SIGNATURE)
    if store.side_is_damaged(ref, SIGNATURE):
        raise VerificationError(f"the signature of the {ROLLBACK_PURPOSE} is damaged", where=ref)
    check_reference(signature, ROLLBACK_PURPOSE, ref, keys)


def _readable(store: Store) -> Iterator[tuple[Ref, Release]]:
    """Every release record that can be read and whose model has a valid name.

    `workbench doctor --records` names the others.
    """
    for ref, record in store.readable(Release):
        with contextlib.suppress(ParameterError):
            check_name(record.model, "model name", lower_case=True)
            yield ref, record


def resolve_model(
    workspace: Workspace, name: str, version: int | None = None, alias: str | None = None
) -> RegisteredRelease:
    """The release of a model by version or alias, as its signature says.

    Raises:
        RecordError: There is no such model, version or alias.
        VerificationError: There is, but its signature does not cover it.
    """
    found = registered_releases(workspace, name)
    where = f"models:/{name}/{version}" if alias is None else f"models:/{name}@{alias}"
    found.require_any()
    if not found.releases:
        known = ", ".join(release_models(workspace)) or "none"
        raise RecordError(
            "unknown model", where=where, hint=f"Models released in this workspace: {known}"
        )
    if alias is not None:
        if alias not in found.aliases:
            raise RecordError(
                "no release has this alias",
                where=where,
                hint=f"Aliases of {name}: {', '.join(found.aliases)}",
            )
        return found.aliases[alias]
    matches = [release for release in found.releases if release.version == version]
    if not matches:
        numbers = ", ".join(str(one.version) for one in found.releases if one.version is not None)
        raise RecordError(
            "unknown model version",
            where=where,
            hint=f"Versions of {name} released in this workspace: {numbers}",
        )
    return matches[-1]


def release_folder(workspace: Workspace, record: Release) -> Path:
    """The signed folder of a release; the one that it would have, if there is none."""
    plain = workspace.release_folder(record.model, digest_of(record.bundle))
    # Beside it lie releases with another gate report, or that followed one of a revoked key.
    for folder in (plain, *sorted(plain.parent.glob(f"{plain.name}-*"))):
        signature = folder / "signature"
        if signature.is_file() and digest.of_file(signature) == record.signature:
            return folder
    return plain


def signed_release_of(envelope: Envelope, *, where: object) -> SignedRelease | None:
    """The release that a verified envelope names; None if its version is 1.

    Raises:
        VerificationError: The signature is the second form of another one.
        ValueError: What it names is invalid.
    """
    body = envelope.statement["predicate"].get("workbench")
    if body is None:
        return None
    if not envelope.one_form:
        raise VerificationError(
            "signature is not in its one form: it was made from another signature", where=where
        )
    return SignedRelease.model_validate(body)


def _verified(store: Store, ref: Ref, record: Release, ring: Keyring) -> RegisteredRelease:
    """The release, if its signature says the same as its record.

    Raises:
        VerificationError: It does not.
        RecordError: A record that it names is missing or was changed.
    """
    text = store.side(ref, SIGNATURE)
    signature = release_folder(store.workspace, record) / "signature"
    found = [text.encode()] if isinstance(text, str) else []
    found += [signature.read_bytes()] if signature.is_file() else []
    if not found:
        raise VerificationError("the release has no signature", where=ref, reason=Refusal.UNSIGNED)
    # The one that the record names, where one of the two was damaged.
    content = next((one for one in found if digest.of_bytes(one) == record.signature), found[0])
    public = partial(public_key, store.workspace, signer=record.key, ring=ring)
    envelope = open_envelope(content, public(), where=ref)
    if envelope.digest != record.signature or envelope.key != record.key:
        raise VerificationError(
            "the signature is not the one that the record names",
            where=ref,
            reason=Refusal.OTHER_RELEASE,
        )
    try:
        signed = signed_release_of(envelope, where=ref)
        files = {
            entry["name"]: entry["digest"] for entry in envelope.statement["predicate"]["resources"]
        }
    except (ValueError, KeyError, TypeError) as error:
        raise VerificationError("the signed statement is invalid", where=ref) from error
    if files != store.payload_digests(record.bundle):
        raise VerificationError(
            "the signature is about another bundle",
            where=ref,
            reason=Refusal.OTHER_RELEASE,
        )
    if signed is None:
        return _verified_older(store, ref, record)
    if signed.fields != record.model_dump(exclude={"schema_version", "key", "signature"}):
        raise VerificationError(
            "the record says something else than its signature",
            where=ref,
            reason=Refusal.OTHER_RELEASE,
        )
    public(at=signed.signed_at)
    return RegisteredRelease(ref, record, signed.version, older=False)


def _verified_older(store: Store, ref: Ref, record: Release) -> RegisteredRelease:
    """A release whose signature covers the files only: its gate report has to agree."""
    report = store.get(record.gates, GateReport)
    claimed = (record.bundle, record.verdict, record.promoted, None)
    if claimed != (report.candidate, report.verdict, may_promote(report), record.version):
        raise VerificationError(
            "the record says something else than its gate report",
            where=ref,
            reason=Refusal.OTHER_RELEASE,
        )
    try:
        version: int | None = int(store.side(ref, REGISTRY)["version"])
    except (WorkbenchError, TypeError, ValueError, KeyError):
        version = None
    return RegisteredRelease(ref, record, version, older=True)
