"""MLflow's registry beside the signed release records: compare the two, and write it again.

MLflow only mirrors. An alias moved by hand, a changed tag or a lost database changes nothing about
what a reference names; it is reported, and `rebuild_registry` puts it right.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping

from workbench import services
from workbench.core.errors import RecordError
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

__all__ = ["connect", "point_aliases", "rebuild_registry", "registry_problems", "release_tags"]

BUNDLE_FOLDER = "bundle"
"""Artifact folder of a release's MLflow run."""

_EXPERIMENT = "workbench"


def connect(workspace: Workspace) -> Tracker:
    """The workspace's MLflow, which has to be running.

    Raises:
        ServiceError: It is not.
    """
    uri = services.environment(workspace, ("mlflow",))["MLFLOW_TRACKING_URI"]
    return Tracker(uri, _EXPERIMENT)


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
        problems += _differences(found, tracker.registry_model(model))
    return list(dict.fromkeys(problems))


def point_aliases(workspace: Workspace, tracker: Tracker, model: str) -> None:
    """Point MLflow's aliases to the releases that the records give them."""
    mirrored = tracker.registry_model(model)
    numbers = _numbers(mirrored)
    found = registered_releases(workspace, model).aliases
    moves = {alias: numbers[one.ref] for alias, one in found.items() if one.ref in numbers}
    tracker.point(model, moves)
    tracker.drop_aliases(model, [one for one in ALIASES if one in mirrored.aliases.keys() - moves])


def rebuild_registry(
    workspace: Workspace, tracker: Tracker, progress: Progress | None = None
) -> int:
    """Write the registered models again, from the signed release records alone.

    A model that agrees with its records is left as it is. Each release gets a run with its signed
    folder, verified before it is sent. A number that no release has stays free.

    Returns:
        The number of models that were written.

    Raises:
        VerificationError: A release's folder was changed.
    """
    store = Store(workspace)
    wrong = [
        model
        for model in release_models(workspace)
        if (found := registered_releases(workspace, model)).releases
        and _differences(found, tracker.registry_model(model))
    ]
    for done, model in enumerate(wrong, start=1):
        releases = registered_releases(workspace, model).releases
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
                model, run, source=BUNDLE_FOLDER, tags=tags, aliases=(), number=release.version
            )
            store.write_side(release.ref, REGISTRY, {"version": number, "run": run})
        point_aliases(workspace, tracker, model)
        if progress is not None:
            progress(done, len(wrong))
    return len(wrong)


def _numbers(mirrored: RegistryModel) -> dict[str, int]:
    """MLflow's version by release; of several that claim one release, the first."""
    numbers: dict[str, int] = {}
    for number in sorted(mirrored.versions):
        numbers.setdefault(mirrored.versions[number].get("workbench.release", ""), number)
    return numbers


def _differences(found: ModelReleases, mirrored: RegistryModel) -> list[str]:
    numbers = _numbers(mirrored)
    problems = []
    for release in found.releases:
        if release.ref not in numbers:
            problems.append(f"MLflow lacks {release}")
        else:
            problems += _tag_differences(release, mirrored.versions, numbers[release.ref])
    known = {release.ref for release in found.releases}
    for alias in ALIASES:
        expected = found.aliases.get(alias)
        number = mirrored.aliases.get(alias)
        actual = mirrored.versions.get(number or 0, {}).get("workbench.release")
        if (expected and expected.ref) != actual and (expected is None or expected.ref in numbers):
            problems.append(
                f"MLflow's alias {found.model}@{alias} points to version {number}; the records "
                f"say {expected.version if expected else 'none'}"
            )
    for number, tags in mirrored.versions.items():
        claimed = tags.get("workbench.release", "")
        if claimed not in known and claimed:
            problems.append(
                f"MLflow's version {number} of {found.model} claims {short_ref(claimed)}, which is "
                "no release of it in this workspace"
            )
        elif claimed and numbers[claimed] != number:
            problems.append(
                f"MLflow's versions {numbers[claimed]} and {number} of {found.model} claim the "
                f"same release"
            )
    return problems


def _tag_differences(
    release: RegisteredRelease, versions: Mapping[int, Mapping[str, str]], number: int
) -> list[str]:
    problems = []
    if release.version is not None and number != release.version:
        problems.append(f"MLflow numbers {release} as version {number}")
    for tag, value in release_tags(release.ref, release.record).items():
        if versions[number].get(tag) != value:
            problems.append(f"MLflow's tag {tag} of {release} was changed")
    return problems
