"""MLflow's registry beside the signed release records: compare the two, and write it again.

MLflow only mirrors. An alias moved by hand, a changed tag or a lost database changes nothing about
what a reference names; it is reported, and `rebuild_registry` puts it right.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from workbench import services
from workbench.audit import log as audit
from workbench.core.errors import RecordError
from workbench.core.text import counted
from workbench.core.types import Progress
from workbench.core.workspace import Workspace
from workbench.records.base import Ref, digest_of, short_ref
from workbench.records.model_types import Release
from workbench.records.releases import (
    ALIASES,
    REGISTRY,
    ModelReleases,
    RegisteredRelease,
    registered_releases,
    release_folder,
    release_models,
)
from workbench.records.store import Store
from workbench.release.publishing import verify_release
from workbench.tracking import RegistryModel, Tracker

__all__ = ["connect", "registry_problems"]

BUNDLE_FOLDER = "bundle"
"""Artifact folder of a release's MLflow run."""

_EXPERIMENT = "workbench"


def connect(workspace: Workspace) -> Tracker:
    """The workspace's MLflow, which has to be running.

    Raises:
        ServiceError: It is not.
    """
    return Tracker(services.tracking_address(workspace), _EXPERIMENT)


def release_tags(release_ref: Ref, record: Release) -> dict[str, str]:
    """Tags of a release's version in MLflow."""
    return {
        "workbench.release": release_ref,
        "workbench.bundle": record.bundle,
        "workbench.digest": digest_of(record.bundle),
        "workbench.gates": record.gates,
        "workbench.verdict": record.verdict.value,
    }


def registry_problems(
    workspace: Workspace, tracker: Tracker, models: list[str] | None = None
) -> list[str]:
    """Where MLflow says something else than the signed release records, a sentence each.

    Args:
        models: Names; None compares every model that has a release record.
    """
    problems: list[str] = []
    for model in release_models(workspace) if models is None else models:
        found = registered_releases(workspace, model)
        problems += [
            f"{short_ref(ref)} does not count: {why}" for ref, why in found.refused.items()
        ]
        problems += _differences(found, tracker.registry_model(model), shared=_is_shared(workspace))
    if models is None and not _is_shared(workspace):
        for model in _unknown_models(workspace, tracker):
            found = ModelReleases(model, (), {})
            problems += _differences(found, tracker.registry_model(model), shared=False)
    return list(dict.fromkeys(problems))


def _unknown_models(workspace: Workspace, tracker: Tracker) -> list[str]:
    """Models that claim releases and have no release record, such as one that was renamed."""
    names = set(tracker.registered_models()) - set(release_models(workspace))
    return sorted(name for name in names if set(_numbers(tracker.registry_model(name))) - {""})


def point_aliases(workspace: Workspace, tracker: Tracker, model: str) -> None:
    """Point MLflow's aliases to the releases that the records give them."""
    mirrored = tracker.registry_model(model)
    numbers = _numbers(mirrored)
    found = registered_releases(workspace, model).aliases
    moves = {alias: numbers[one.ref] for alias, one in found.items() if one.ref in numbers}
    tracker.point(model, moves)
    tracker.drop_aliases(model, [one for one in ALIASES if one in mirrored.aliases.keys() - moves])


@dataclass(frozen=True)
class AliasMove:
    """What the aliases of a model were after an event: who did it, when and why.

    Attributes:
        event: ``released``, ``rolled-back`` or ``key-revoked``.
        candidate: Version, and the same for the other aliases; None where there is none.
    """

    at: str
    by: str
    event: str
    why: str
    candidate: int | None
    champion: int | None
    previous: int | None


def alias_history(workspace: Workspace, model: str) -> list[AliasMove]:
    """Every move of a model's aliases, oldest first, as the audit log has it."""
    store, moves = Store(workspace), []
    released: list[int] = []
    champions: list[int] = []
    keys: dict[int, str] = {}
    for entry in audit.read_log(workspace):
        about = entry.detail.get("model") == model
        if entry.event == "released" and about:
            version, ref = int(entry.detail["version"]), entry.subjects[0]
            with contextlib.suppress(RecordError):  # a record that is gone
                keys[version] = store.get(ref, Release).key
            released.append(version)
            champions += [version] if entry.detail["promoted"] else []
            why = "gates passed" if entry.detail["promoted"] else "gates did not pass"
        elif entry.event == "rolled-back" and about:
            champions.pop()
            why = str(entry.detail["reason"])
        elif entry.event == "key-revoked" and entry.detail["key"] in keys.values():
            lost = {version for version, key in keys.items() if key == entry.detail["key"]}
            released = [version for version in released if version not in lost]
            champions = [version for version in champions if version not in lost]
            why = f"{counted(len(lost), 'release')} lost the key: {entry.detail['reason']}"
        else:
            continue
        last = [None, None, *champions][-2:]
        moves.append(
            AliasMove(
                at=entry.at,
                by=entry.by,
                event=entry.event,
                why=why,
                candidate=released[-1] if released else None,
                champion=last[1],
                previous=last[0],
            )
        )
    return moves


def rebuild_registry(
    workspace: Workspace, tracker: Tracker, progress: Progress | None = None
) -> int:
    """Write the registered models again, from the signed release records alone.

    A model that agrees with its records is left as it is. In a local registry, one that claims
    releases and has none is removed. Each release that is written gets a run
    with its signed folder, verified before it is sent. A local registry is emptied first, so that
    numbers agree; a number that no release has stays free. A shared one may have versions of other
    workspaces: there only what is missing or wrong is written, and numbers may differ.

    Returns:
        The number of models that were written.

    Raises:
        VerificationError: A release's folder was changed.
    """
    store, shared = Store(workspace), _is_shared(workspace)
    for model in () if shared else _unknown_models(workspace, tracker):
        tracker.delete_model(model)
    wrong = [
        model
        for model in release_models(workspace)
        if (found := registered_releases(workspace, model)).releases
        and _differences(found, tracker.registry_model(model), shared=shared)
    ]
    for done, model in enumerate(wrong, start=1):
        releases: Sequence[RegisteredRelease] = registered_releases(workspace, model).releases
        if shared:
            releases = _still_missing(tracker, model, releases)
        else:
            tracker.delete_model(model)
        for release in releases:
            tags = release_tags(release.ref, release.record)
            run = tracker.start(f"rebuild {release}", tags=tags, parameters={})
            with contextlib.suppress(RecordError):  # a folder that was removed is not in MLflow
                if release_folder(workspace, release.record).exists():
                    verified = verify_release(workspace, release.ref)
                    tracker.log_files(run, [verified.folder], BUNDLE_FOLDER)
            tracker.end(run, "FINISHED")
            number = tracker.register(
                model,
                run,
                source=BUNDLE_FOLDER,
                tags=tags,
                aliases=(),
                number=None if shared else release.version,
            )
            store.write_side(release.ref, REGISTRY, {"version": number, "run": run})
        point_aliases(workspace, tracker, model)
        subjects = tuple(release.ref for release in releases)
        audit.append(workspace, "registry-rebuilt", subjects=subjects, model=model)
        if progress is not None:
            progress(done, len(wrong))
    return len(wrong)


def _is_shared(workspace: Workspace) -> bool:
    """Whether MLflow is a server that other workspaces may use, too."""
    return services.status(workspace, ("mlflow",))["mlflow"].state == "external"


def _still_missing(
    tracker: Tracker, model: str, releases: Sequence[RegisteredRelease]
) -> list[RegisteredRelease]:
    """Correct the tags of what a shared registry has of these releases; returns the others."""
    mirrored, missing = tracker.registry_model(model), []
    numbers = _numbers(mirrored)
    for release in releases:
        number = numbers.pop(release.ref, None)
        if number is None:
            missing.append(release)
        else:
            tracker.set_version_tags(model, number, release_tags(release.ref, release.record))
    return missing


def _numbers(mirrored: RegistryModel) -> dict[str, int]:
    """MLflow's version by release; of several that claim one release, the first."""
    numbers: dict[str, int] = {}
    for number in sorted(mirrored.versions):
        numbers.setdefault(mirrored.versions[number].get("workbench.release", ""), number)
    return numbers


def _differences(found: ModelReleases, mirrored: RegistryModel, *, shared: bool) -> list[str]:
    numbers = _numbers(mirrored)
    problems = []
    for release in found.releases:
        if release.ref not in numbers:
            problems.append(f"MLflow lacks {release}")
        else:
            number = numbers[release.ref]
            if not shared and release.version is not None and number != release.version:
                problems.append(f"MLflow numbers {release} as version {number}")
            problems += _tag_differences(release, mirrored.versions[number])
    known = {release.ref for release in found.releases}
    for alias in ALIASES:
        expected = found.aliases.get(alias)
        points_to = mirrored.aliases.get(alias)
        actual = mirrored.versions.get(points_to or 0, {}).get("workbench.release")
        if (expected and expected.ref) != actual and (expected is None or expected.ref in numbers):
            problems.append(
                f"MLflow's alias {found.model}@{alias} points to version {points_to}; the records "
                f"say {expected.version if expected else 'none'}"
            )
    for number, tags in mirrored.versions.items():
        claimed = tags.get("workbench.release", "")
        if claimed not in known and claimed and not shared:
            problems.append(
                f"MLflow's version {number} of {found.model} claims {short_ref(claimed)}, which is "
                "no release of it in this workspace"
            )
        elif claimed in known and numbers[claimed] != number:
            problems.append(
                f"MLflow's versions {numbers[claimed]} and {number} of {found.model} claim the "
                f"same release"
            )
    return problems


def _tag_differences(release: RegisteredRelease, tags: Mapping[str, str]) -> list[str]:
    return [
        f"MLflow's tag {tag} of {release} was changed"
        for tag, value in release_tags(release.ref, release.record).items()
        if tags.get(tag) != value
    ]
