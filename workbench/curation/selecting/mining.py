"""Mine: from a dataset version and a model to a Selection record. The stage's recipe."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from workbench.curation import finding
from workbench.curation.embedding.embeddings import Embeddings
from workbench.curation.embedding.encoder import Encoder
from workbench.curation.embedding.one_pass import embed
from workbench.curation.embedding.quality import QualityGate
from workbench.curation.selecting import ranking as rankings
from workbench.curation.selecting.budget import Budget
from workbench.curation.selecting.candidates import Candidates
from workbench.curation.selecting.choosing import SCORES
from workbench.curation.selecting.query import OneText, Query
from workbench.curation.selecting.ranking import Ranking
from workbench.curation.selecting.rules import SelectionRules
from workbench.curation.selecting.select import Allotted, allot
from workbench.errors import DataError
from workbench.perception.predictor import TorchPredictor, load_checkpoint
from workbench.records import dataset as datasets
from workbench.records.base import Ref
from workbench.records.dataset import Dataset
from workbench.records.frames import UNKNOWN, Frame, Role
from workbench.records.store import Store
from workbench.records.types import Selection

Progress = Callable[[int, int], None]

_BELIEVED = 0.3
"""Score from which on a box will probably have to be labelled."""


def mine(  # noqa: PLR0913 - what from, whose view, how much, how
    store: Store,
    dataset_ref: Ref,
    model_ref: Ref,
    budget: int | Budget,
    seed: int = 0,
    *,
    rules: SelectionRules | None = None,
    gate: QualityGate | None = None,
    query: Query | None = None,
    progress: Progress | None = None,
) -> Ref:
    """Choose the pool's frames that labeling should start with, and keep the choice as a record.

    Frames of role ``pool`` are candidates; those of role ``seed`` and ``train`` are what is
    labelled already. What a search finds, by exemplar or words, is held apart by events and time
    alone: it may well all be in one drive, and is meant to be alike.

    Args:
        model_ref: The checkpoint whose view of the frames counts.
        budget: Frames, or see `Budget`.

    Raises:
        DataError: The dataset has no frames of role ``pool``, or none can be used.
        ParameterError: The budget is nothing; an exemplar is not in the dataset.
    """
    rules, gate, query = rules or SelectionRules(), gate or QualityGate(), query or Query()
    budget = Budget(frames=budget) if isinstance(budget, int) else budget
    budget.check()
    if query.is_search:
        rules = rules.model_copy(update={"diversity": 0.0, "drive_share": 1.0})
    dataset = datasets.load(store, dataset_ref)
    source: Encoder | TorchPredictor = query.encoder or load_checkpoint(store, model_ref)
    pool, labelled = _embedded(store, dataset, source, progress)
    frames = {frame.id: frame for frame in dataset.frames}
    ranked = _ranked(store, source, pool, labelled, frames, query, rules)
    candidates = _candidates(pool, ranked, frames, gate)
    allotted = allot(candidates, budget, seed, rules)
    record = Selection(
        dataset=dataset_ref,
        model=model_ref,
        budget=budget.frames or len(allotted.of("mined")) + len(allotted.of("random")),
        seed=seed,
        method=ranked.method,
        parameters={
            "rules": rules.model_dump(mode="json"),
            "quality_gate": gate.model_dump(mode="json"),
            "pool": len(pool.frames),
            "labelled": 0 if labelled is None else len(labelled.frames),
            "kept_out": dict(sorted(Counter(one for one in candidates.faults if one).items())),
            "unreadable": [{"frame": frame, "reason": why} for frame, why in pool.left_out],
            "embedding": {"model": pool.model, "preprocessing": pool.preprocessing},
            **ranked.shaped,
            **_asked(query, budget, allotted),
        },
        chosen=allotted.chosen,
        minutes=budget.minutes,
        notes=allotted.notes,
    )
    return store.put(record, {SCORES: _score_lines(pool, ranked, candidates)})


def embed_roles(
    store: Store, dataset: Dataset, model_ref: Ref, progress: Progress | None = None
) -> tuple[Embeddings, Embeddings | None]:
    """Embeddings of the pool and of what is labelled (None when nothing is)."""
    return _embedded(store, dataset, load_checkpoint(store, model_ref), progress)


def _embedded(
    store: Store,
    dataset: Dataset,
    encoder: Encoder | TorchPredictor,
    progress: Progress | None = None,
) -> tuple[Embeddings, Embeddings | None]:
    waiting = dataset.with_roles(Role.POOL).frames
    known = dataset.with_roles(Role.SEED, Role.TRAIN).frames
    if not waiting:
        raise DataError(
            "the dataset has no frames of role pool",
            where=dataset.ref or dataset.name,
            hint="All of it is labelled or held out; ingest more drives",
        )
    total = len(waiting) + len(known)

    def rest(done: int, _: int) -> None:
        if progress:
            progress(len(waiting) + done, total)

    def first(done: int, _: int) -> None:
        if progress:
            progress(done, total)

    pool = embed(store.workspace, encoder, waiting, first)
    labelled = embed(store.workspace, encoder, known, rest) if known else None
    return pool, labelled


def condition_of(frame: Frame) -> str:
    """Light, weather and road works in words; ``all`` where the source tells nothing."""
    conditions = frame.conditions
    parts = [str(part) for part in (conditions.light, conditions.weather) if part != UNKNOWN]
    if conditions.construction:
        parts.append("road works")
    return ", ".join(parts) or "all"


def _ranked(
    store: Store,
    encoder: Encoder | TorchPredictor,
    pool: Embeddings,
    labelled: Embeddings | None,
    frames: dict[str, Frame],
    query: Query,
    rules: SelectionRules,
) -> Ranking:
    """The pool in the order that the query asks for."""
    conditions = [condition_of(frames[name]) for name in pool.frames]
    if query.is_search:
        return _searched(store, encoder, pool, frames, query, conditions)
    known = labelled.frames if labelled else ()
    waiting = [frames[name] for name in pool.frames]
    others = [
        embed(store.workspace, load_checkpoint(store, ref), waiting) for ref in query.other_models
    ]
    return rankings.rarity(
        pool,
        labelled,
        conditions,
        [condition_of(frames[name]) for name in known],
        drives=[frame.drive for frame in waiting],
        typical=len(known) < rules.typical_below,
        signals=query.signals,
        other_models=others,
    )


def _searched(
    store: Store,
    encoder: Encoder | TorchPredictor,
    pool: Embeddings,
    frames: dict[str, Frame],
    query: Query,
    conditions: Sequence[str],
) -> Ranking:
    if query.text is not None:
        found = finding.text(pool, OneText.of(encoder), query.text)
        none = [False] * len(pool.frames)
        rows = range(len(pool.frames))
        return rankings.by_likeness(found, rows, conditions, none, query.text)
    there = set(pool.frames)
    names = (*pool.frames, *(name for name in query.frames if name not in there))
    # Exemplars may be labelled already: what is looked for is then known well.
    both = embed(store.workspace, encoder, [frames[name] for name in names])
    found = finding.like(both, query.like, query.unlike)
    place = {name: row for row, name in enumerate(both.frames)}
    own = {one.frame for one in query.like}
    return rankings.by_likeness(
        found,
        [place[name] for name in pool.frames],
        conditions,
        [name in own for name in pool.frames],
    )


def _candidates(
    pool: Embeddings, ranked: Ranking, frames: dict[str, Frame], gate: QualityGate
) -> Candidates:
    known = [frames[name] for name in pool.frames]
    nan = float("nan")
    times = (frame.timestamp_us for frame in known)
    believed = pool.owner[pool.scores >= _BELIEVED]
    return Candidates(
        frames=pool.frames,
        drives=[frame.drive for frame in known],
        index=np.array([frame.index for frame in known], np.int64),
        time_s=np.array([nan if time is None else time / 1e6 for time in times]),
        conditions=[condition_of(frame) for frame in known],
        score=ranked.score,
        faults=[gate.verdict(row) for row in pool.quality],
        boxes=np.bincount(believed, minlength=len(known)),
        lead=ranked.lead,
        groups=ranked.condition,
        vectors=pool.vectors,
        why=ranked.why,
        signals=ranked.signals,
    )


def _asked(query: Query, budget: Budget, allotted: Allotted) -> dict[str, Any]:
    """What of the question is no field of the record."""
    said: dict[str, Any] = {"query": query.as_json()} if query.as_json() else {}
    if budget.minutes is not None and budget.pace is not None:
        said["pace"] = budget.pace.model_dump(mode="json")
        said["expected_minutes"] = round(allotted.cost, 3)
    if control := allotted.of("control"):
        said["control"] = {"frames": len(control), "probability": control[0].probability}
    return said


def _score_lines(pool: Embeddings, ranked: Ranking, candidates: Candidates) -> bytes:
    lines = []
    for row, frame in enumerate(candidates.frames):
        line = {
            "frame": frame,
            "rarity": round(float(candidates.score[row]), 6),
            "ranks": ranked.signals(row),
            "condition": ranked.condition[row],
            "quality": [round(float(value), 5) for value in pool.quality[row]],
            "fault": candidates.faults[row],
        }
        lines.append(json.dumps(line, sort_keys=True))
    return ("\n".join(lines) + "\n").encode()
