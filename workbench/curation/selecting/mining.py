"""Mine: from a dataset version and a model to a Selection record. The stage's recipe."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

from workbench.curation.embedding.one_pass import Embeddings, embed
from workbench.curation.embedding.quality import QualityGate
from workbench.curation.finding import rarity
from workbench.curation.finding.rarity import SIGNALS, SIZES, Scores
from workbench.curation.selecting.select import Candidate, SelectionRules, select
from workbench.errors import DataError
from workbench.perception.predictor import load_checkpoint
from workbench.records import dataset as datasets
from workbench.records.base import Ref
from workbench.records.dataset import Dataset
from workbench.records.frames import UNKNOWN, Frame, Role
from workbench.records.store import Store
from workbench.records.types import Choice, Selection

Progress = Callable[[int, int], None]

METHOD = "entropy + objects + frame, ranked within condition, mean rank"
BY_HAND = "chosen by hand"
SCORES = "scores.jsonl"
"""Payload of a Selection: the scores of every frame of the pool, a line each."""


def mine(
    store: Store,
    dataset_ref: Ref,
    model_ref: Ref,
    budget: int,
    seed: int = 0,
    *,
    rules: SelectionRules | None = None,
    gate: QualityGate | None = None,
    progress: Progress | None = None,
) -> Ref:
    """Choose the pool's frames that labeling should start with, and keep the choice as a record.

    Frames of role ``pool`` are candidates; those of role ``seed`` and ``train`` are what is
    labelled already.

    Raises:
        DataError: The dataset has no frames of role ``pool``, or none can be used.
        ParameterError: The budget is not positive.
    """
    rules, gate = rules or SelectionRules(), gate or QualityGate()
    dataset = datasets.load(store, dataset_ref)
    pool, labelled = embed_roles(store, dataset, model_ref, progress)
    frames = {frame.id: frame for frame in dataset.frames}
    scores = rarity.score(pool, labelled, [condition_of(frames[name]) for name in pool.frames])
    candidates = _candidates(pool, scores, frames, gate)
    chosen = select(candidates, budget, seed, rules)
    faults = Counter(one.fault for one in candidates if one.fault)
    record = Selection(
        dataset=dataset_ref,
        model=model_ref,
        budget=budget,
        seed=seed,
        method=METHOD,
        parameters={
            "rules": rules.model_dump(mode="json"),
            "quality_gate": gate.model_dump(mode="json"),
            "pool": len(pool.frames),
            "labelled": 0 if labelled is None else len(labelled.frames),
            "kept_out": dict(sorted(faults.items())),
            "unreadable": [{"frame": frame, "reason": why} for frame, why in pool.left_out],
            "embedding": {"model": pool.model, "preprocessing": pool.preprocessing},
        },
        chosen=chosen,
    )
    return store.put(record, {SCORES: _score_lines(pool, scores, candidates)})


def choose(
    store: Store, dataset_ref: Ref, frames: Iterable[str], why: str, model_ref: Ref | None = None
) -> Ref:
    """Keep a person's choice, such as the frames of a tag, as a Selection like any other.

    Args:
        frames: Digests, most important first.
        why: In words; labelers read it beside every frame.

    Raises:
        DataError: No frames, or some that the dataset does not hold.
    """
    wanted = list(dict.fromkeys(frames))
    known = {frame.id for frame in datasets.load(store, dataset_ref).frames}
    strange = [frame for frame in wanted if frame not in known]
    if not wanted or strange:
        what = f"{len(strange)} frames are not in the dataset" if wanted else "no frames were given"
        raise DataError(what, where=strange[0] if strange else dataset_ref)
    chosen = tuple(
        Choice(frame=frame, rank=rank, score=1.0, reasons=(why,))
        for rank, frame in enumerate(wanted, start=1)
    )
    record = Selection(
        dataset=dataset_ref,
        model=model_ref,
        budget=len(chosen),
        seed=0,
        method=BY_HAND,
        chosen=chosen,
    )
    return store.put(record)


def newest_selection(store: Store) -> Ref:
    """The last selection that `mine` made; raises `DataError` with what to run first."""
    for ref in reversed(list(store.refs(Selection.KIND))):
        if store.get(ref, Selection).method != BY_HAND:
            return ref
    raise DataError(
        "nothing was mined yet",
        where=store.root,
        hint="Say `make run` first (or `workbench run pipelines/data_engine.yaml`), then come back",
    )


def embed_roles(
    store: Store, dataset: Dataset, model_ref: Ref, progress: Progress | None = None
) -> tuple[Embeddings, Embeddings | None]:
    """Embeddings of the pool and of what is labelled (None when nothing is)."""
    waiting = dataset.with_roles(Role.POOL).frames
    known = dataset.with_roles(Role.SEED, Role.TRAIN).frames
    if not waiting:
        raise DataError(
            "the dataset has no frames of role pool",
            where=dataset.ref or dataset.name,
            hint="All of it is labelled or held out; ingest more drives",
        )
    predictor = load_checkpoint(store, model_ref)
    total = len(waiting) + len(known)

    def rest(done: int, _: int) -> None:
        if progress:
            progress(len(waiting) + done, total)

    def first(done: int, _: int) -> None:
        if progress:
            progress(done, total)

    pool = embed(store.workspace, predictor, waiting, first)
    labelled = embed(store.workspace, predictor, known, rest) if known else None
    return pool, labelled


def condition_of(frame: Frame) -> str:
    """Light, weather and road works in words; ``all`` where the source tells nothing."""
    conditions = frame.conditions
    parts = [str(part) for part in (conditions.light, conditions.weather) if part != UNKNOWN]
    if conditions.construction:
        parts.append("road works")
    return ", ".join(parts) or "all"


def _candidates(
    pool: Embeddings, scores: Scores, frames: dict[str, Frame], gate: QualityGate
) -> list[Candidate]:
    found = []
    for row, name in enumerate(pool.frames):
        frame = frames[name]
        time = frame.timestamp_us
        found.append(
            Candidate(
                frame=name,
                drive=frame.drive,
                index=frame.index,
                time_s=None if time is None else time / 1e6,
                condition=scores.condition[row],
                score=float(scores.fused[row]),
                why=_why(pool, scores, row),
                fault=gate.verdict(pool.quality[row]),
            )
        )
    return found


def _why(pool: Embeddings, scores: Scores, row: int) -> tuple[str, ...]:
    """The signals that speak for a frame, strongest first."""
    words: dict[str, str] = {}
    unsure = int(scores.unsure[row])
    if unsure:
        words["entropy"] = f"{unsure} box{'es' * (unsure > 1)} the model is unsure of"
    odd = int(scores.oddest[row])
    if odd >= 0:
        size = SIZES[int(rarity.size_of(pool.boxes[odd : odd + 1])[0])][0]
        cls = pool.class_names[int(pool.classes[odd])].replace("_", " ")
        words["objects"] = f"a {size} {cls} unlike the labelled ones"
    words["frame"] = "a scene unlike the labelled ones"
    order = sorted(range(len(SIGNALS)), key=lambda signal: -scores.ranks[row, signal])
    return tuple(
        words[SIGNALS[s]] for s in order if SIGNALS[s] in words and scores.ranks[row, s] >= 0.75
    )


def _score_lines(pool: Embeddings, scores: Scores, candidates: list[Candidate]) -> bytes:
    lines = []
    for row, one in enumerate(candidates):
        line = {
            "frame": one.frame,
            "rarity": round(one.score, 6),
            "ranks": {s: round(float(scores.ranks[row, i]), 6) for i, s in enumerate(SIGNALS)},
            "condition": one.condition,
            "quality": [round(float(value), 5) for value in pool.quality[row]],
            "fault": one.fault,
        }
        lines.append(json.dumps(line, sort_keys=True))
    return ("\n".join(lines) + "\n").encode()


def read_scores(store: Store, selection_ref: Ref) -> dict[str, dict[str, Any]]:
    """Frame to its scores, as `mine` wrote them; empty for a selection made otherwise."""
    if SCORES not in store.payload_names(selection_ref):
        return {}
    lines = store.payload(selection_ref, SCORES).read_text().splitlines()
    return {row["frame"]: row for row in map(json.loads, lines)}
