"""Which models, selections, batches and releases a workspace has, and which model is the default.

A record counts as made by a pipeline if a finished step lists it among its outputs; everything else
was made by hand: in a notebook, from Python or by a single command.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeVar

from workbench.core.errors import RecordError, Refusal
from workbench.core.text import counted
from workbench.records.base import GateReport, Record, Ref, kind_of, short_ref
from workbench.records.claims import read_waivers
from workbench.records.model_types import Checkpoint, ExportBundle, Release, StepRun
from workbench.records.references import list_dataset_versions
from workbench.records.releases import registered_releases, release_models
from workbench.records.store import Store
from workbench.records.types import DatasetVersion, LabelBatch, LabelSet, Selection

__all__ = [
    "damaged_records",
    "default_model",
    "list_batches",
    "list_models",
    "list_releases",
    "list_selections",
]

R = TypeVar("R", bound=Record)

BY_HAND = "by hand"
_ALL = "ap50/all"


@dataclass(frozen=True)
class ModelRow:
    """A checkpoint, and what is known about it.

    Attributes:
        names: ``NAME`` or ``NAME/VERSION`` of its releases, the newest first.
        dataset: Version that it was trained on, as ``NAME@N``.
        steps: Optimiser steps; None where the training did not record them.
        ap50: AP50 on the safety frames as its pipeline measured it; None if none did.
        made_by: The step that trained it, or ``by hand``.
        champion: Whether its newest release was promoted, and no later one of that name.
    """

    ref: Ref
    names: tuple[str, ...]
    dataset: str
    classes: tuple[str, ...]
    steps: int | None
    ap50: float | None
    made_by: str
    champion: bool
    simulated: bool
    created: str

    @property
    def by_hand(self) -> bool:
        return self.made_by == BY_HAND

    def __str__(self) -> str:
        """Name, steps and AP50 in one line."""
        name = f"{self.names[0]} ({short_ref(self.ref)})" if self.names else short_ref(self.ref)
        steps = "" if self.steps is None else f", {counted(self.steps, 'step')}"
        ap50 = "not measured" if self.ap50 is None else f"{self.ap50:.3f}"
        simulated = " on simulated drives" if self.simulated and self.ap50 is not None else ""
        return f"{name}, {self.made_by} on {self.dataset}{steps}, AP50 {ap50}{simulated}"


@dataclass(frozen=True)
class SelectionRow:
    """A selection: frames to label."""

    ref: Ref
    dataset: str
    frames: int
    method: str
    made_by: str
    created: str


@dataclass(frozen=True)
class BatchRow:
    """A label batch; ``labels`` is its newest label set, None while it was not collected."""

    ref: Ref
    dataset: str
    frames: int
    made_by: str
    labels: Ref | None
    created: str


@dataclass(frozen=True)
class ReleaseRow:
    """A release; ``version`` is None where its signature does not count, see `releases`.

    Its checkpoint is None where the record of its bundle cannot be read. ``verdict`` says why it
    does not count where it does not, and ``waived`` which gates a person let pass, until when.
    """

    ref: Ref
    model: str
    version: int | None
    verdict: str
    promoted: bool
    checkpoint: Ref | None
    made_by: str
    created: str
    aliases: tuple[str, ...] = ()
    waived: tuple[str, ...] = ()


def list_models(store: Store) -> list[ModelRow]:
    """Every checkpoint, the newest first."""
    made, versions = _makers(store), _version_names(store)
    measured = _measured(store, made)
    releases = list_releases(store)
    champions = set()
    for model in {row.model for row in releases}:
        with contextlib.suppress(RecordError):  # see `damaged_records`
            champion = registered_releases(store.workspace, model).aliases.get("champion")
            named = champion.ref if champion else None
            champions |= {row.checkpoint for row in releases if row.ref == named}
    rows = []
    for ref, record in newest_first(store, Checkpoint):
        steps = record.training.get("steps")
        names = tuple(
            f"{row.model}/{row.version}" if row.version else row.model
            for row in releases
            if row.checkpoint == ref
        )
        rows.append(
            ModelRow(
                ref=ref,
                names=names,
                dataset=versions.get(record.dataset, short_ref(record.dataset)),
                classes=record.classes,
                steps=steps if isinstance(steps, int) else None,
                ap50=measured.get(ref),
                made_by=made[ref].step if ref in made else BY_HAND,
                champion=ref in champions,
                simulated=_simulated(store, record.dataset),
                created=_created(store, ref),
            )
        )
    return rows


def list_selections(store: Store) -> list[SelectionRow]:
    """Every selection, the newest first."""
    made, versions = _makers(store), _version_names(store)
    rows = []
    for ref, record in newest_first(store, Selection):
        rows.append(
            SelectionRow(
                ref=ref,
                dataset=versions.get(record.dataset, short_ref(record.dataset)),
                frames=len(record.chosen),
                method=record.method,
                made_by=made[ref].step if ref in made else BY_HAND,
                created=_created(store, ref),
            )
        )
    return rows


def list_batches(store: Store) -> list[BatchRow]:
    """Every label batch, the newest first."""
    made, versions = _makers(store), _version_names(store)
    collected = {labels.batch: ref for ref, labels in store.readable(LabelSet)}
    rows = []
    for ref, record in newest_first(store, LabelBatch):
        rows.append(
            BatchRow(
                ref=ref,
                dataset=versions.get(record.dataset, short_ref(record.dataset)),
                frames=len(record.frames),
                made_by=made[ref].step if ref in made else BY_HAND,
                labels=collected.get(ref),
                created=_created(store, ref),
            )
        )
    return rows


def list_releases(store: Store) -> list[ReleaseRow]:
    """Every release, the newest first."""
    made, bundles = _makers(store), dict(store.readable(ExportBundle))
    place = store.workspace
    found = [registered_releases(place, model) for model in release_models(place)]
    counted = {release.ref: release for one in found for release in one.releases}
    codes = {ref: code for one in found for ref, code in one.codes.items()}
    waivers = read_waivers(store)
    aliases: dict[Ref, list[str]] = {}
    for one in found:
        with contextlib.suppress(RecordError):  # a damaged record may be the newest
            for alias, release in one.aliases.items():
                aliases.setdefault(release.ref, []).append(alias)
    rows = []
    for ref, record in newest_first(store, Release):
        bundle = bundles.get(record.bundle)
        rows.append(
            ReleaseRow(
                ref=ref,
                model=record.model,
                version=counted[ref].version if ref in counted else None,
                verdict=str(record.verdict) if ref in counted else _refused(codes.get(ref)),
                promoted=record.promoted and ref in counted,
                checkpoint=bundle.checkpoint if bundle else None,
                made_by=made[ref].step if ref in made else BY_HAND,
                created=_created(store, ref),
                aliases=tuple(aliases.get(ref, ())),
                waived=tuple(map(str, waivers.get(ref, ()))),
            )
        )
    return rows


def _refused(code: str | None) -> str:
    """Why a release does not count, where a verdict stands otherwise."""
    words = {Refusal.KEY_REVOKED: "KEY REVOKED", Refusal.KEY_EXPIRED: "KEY EXPIRED"}
    return {str(one): text for one, text in words.items()}.get(code or "", "NOT SIGNED")


def damaged_records(store: Store, *types: type[Record]) -> dict[Ref, str]:
    """Records that lists leave out because they cannot be read, with the problem.

    Of releases and rollbacks, also those that do not count.
    """
    found = store.damaged(*types)
    if Release in types:
        for model in release_models(store.workspace):
            found.update(registered_releases(store.workspace, model).refused)
    return found


def default_model(store: Store, name: str, classes: tuple[str, ...]) -> ModelRow | None:
    """The model to use where nobody names one; None if no pipeline trained one with these classes.

    In this order: the champion trained on a version of the dataset, the newest that a pipeline
    trained on one, another champion, another model of a pipeline. Never one that was made by hand.

    Args:
        name: Name of the dataset, without the number of its version.
        classes: Of its schema; a model must have the same.
    """
    fitting = [row for row in list_models(store) if row.classes == classes and not row.by_hand]
    return min(
        fitting,
        key=lambda row: (row.dataset.partition("@")[0] != name, not row.champion),
        default=None,
    )


def _makers(store: Store) -> dict[Ref, StepRun]:
    """The step run that made a record, by record."""
    return {output: run for _, run in store.readable(StepRun) for output in run.outputs.values()}


def _measured(store: Store, made: Mapping[Ref, StepRun]) -> dict[Ref, float]:
    """AP50 on safety frames by checkpoint, from the steps that judged it."""
    found: dict[Ref, float] = {}
    bundles = dict(store.readable(ExportBundle))
    for ref, run in made.items():
        if kind_of(ref) != GateReport.KIND:
            continue
        bundle, baseline = run.inputs.get("bundle"), run.inputs.get("baseline")
        exported = bundles.get(bundle) if isinstance(bundle, str) else None
        candidate = exported.checkpoint if exported else None
        for checkpoint, metric in ((baseline, f"baseline/{_ALL}"), (candidate, f"fp32/{_ALL}")):
            value = run.metrics.get(metric)
            if isinstance(checkpoint, str) and isinstance(value, int | float):
                found[checkpoint] = float(value)
    return found


def newest_first(store: Store, expected: type[R]) -> list[tuple[Ref, R]]:
    return list(store.readable(expected))[::-1]


def _created(store: Store, ref: Ref) -> str:
    return str((store.side(ref, "created") or {}).get("at", ""))[:19]


def _version_names(store: Store) -> dict[Ref, str]:
    return {version.ref: str(version) for version in list_dataset_versions(store.workspace)}


def _simulated(store: Store, dataset: Ref) -> bool:
    try:
        return store.get(dataset, DatasetVersion).simulated
    except RecordError:
        return False
