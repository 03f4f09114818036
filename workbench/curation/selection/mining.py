"""Mine a dataset version for frames to label, and keep the choice as a Selection record."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from workbench.core.errors import DataError, ParameterError
from workbench.curation.embedding.compute import embed
from workbench.curation.embedding.embeddings import Embeddings
from workbench.curation.embedding.encoders import Encoder
from workbench.curation.embedding.quality import QualityGate
from workbench.curation.selection import ranking
from workbench.curation.selection.allocation import Allocation, allocate
from workbench.curation.selection.candidates import Budget, Candidates, SelectionRules
from workbench.curation.selection.ranking import MiningQuery, Ranking, SingleTextEncoder
from workbench.curation.signals import similarity
from workbench.data.slices import describe_conditions
from workbench.detection.boxes import CONFIDENCE_THRESHOLD
from workbench.detection.predictor import TorchPredictor, load_checkpoint
from workbench.records import dataset
from workbench.records import dataset as datasets
from workbench.records.base import Ref
from workbench.records.dataset import Dataset
from workbench.records.frames import Frame, Role
from workbench.records.store import Store
from workbench.records.types import Arm, SelectedFrame, Selection

MANUAL_METHOD = "chosen by hand"
SCORES_FILE = "scores.jsonl"
"""Payload of a mined Selection: the scores of every frame of the pool, a line each."""


def select_manually(
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
    known = {frame.id for frame in dataset.load_dataset(store, dataset_ref).frames}
    strange = [frame for frame in wanted if frame not in known]
    if not wanted or strange:
        what = f"{len(strange)} frames are not in the dataset" if wanted else "no frames were given"
        raise DataError(
            what,
            where=strange[0] if strange else dataset_ref,
            hint="Name one frame at least, by its whole digest, of this version of the dataset",
        )
    chosen = tuple(
        SelectedFrame(frame=frame, rank=rank, score=1.0, reasons=(why,))
        for rank, frame in enumerate(wanted, start=1)
    )
    record = Selection(
        dataset=dataset_ref,
        model=model_ref,
        budget=len(chosen),
        seed=0,
        method=MANUAL_METHOD,
        chosen=chosen,
    )
    return store.put(record)


def is_mined(selection: Selection) -> bool:
    """Whether a pool was ranked for it; choices by hand and reviews of labels ranked none."""
    return "pool" in selection.parameters


def newest_selection(store: Store) -> Ref:
    """The last selection that `mine` made; raises `DataError` with what to run first."""
    for ref in reversed(list(store.refs(Selection.KIND))):
        if is_mined(store.get(ref, Selection)):
            return ref
    raise DataError(
        "nothing was mined yet",
        where=store.root,
        hint="Say `make run` first (or `workbench run pipelines/data_engine.yaml`), then come back",
    )


def read_scores(store: Store, selection_ref: Ref) -> dict[str, dict[str, Any]]:
    """Frame to its scores, as `mine` wrote them; empty for a selection made otherwise."""
    if SCORES_FILE not in store.payload_names(selection_ref):
        return {}
    lines = store.payload(selection_ref, SCORES_FILE).read_text().splitlines()
    return {row["frame"]: row for row in map(json.loads, lines)}


# ---- Arms: what would be known if only one arm of a selection had been labelled.


def dataset_of_arm(store: Store, dataset_ref: Ref, selection_ref: Ref, arm: Arm) -> Ref:
    """A version in which the other arms' frames are back in the pool, without their labels.

    Trained on such versions, two models differ in nothing but the arm whose labels they saw. The
    version has a name of its own, so that nobody takes it for the newest of the dataset.

    Raises:
        ParameterError: The selection has no such arm, or none of it was labelled.
    """
    selection = store.get(selection_ref, Selection)
    dataset = datasets.load_dataset(store, dataset_ref)
    arms = {choice.frame: choice.arm for choice in selection.chosen}
    others = {frame for frame, its in arms.items() if its != arm}
    learned = {frame.id for frame in dataset.role(Role.TRAIN).frames}
    if not any(arms.get(frame) == arm for frame in learned):
        raise ParameterError(
            f"no frame of the {arm} arm is labelled in this dataset",
            where=dataset_ref,
            hint=f"The selection's arms are: {', '.join(sorted(set(arms.values())))};"
            " collect and merge their labels first",
        )
    back = others & learned
    made = replace(
        dataset,
        name=f"{dataset.name}-{arm}",
        frames=tuple(
            frame.model_copy(update={"role": Role.POOL}) if frame.id in back else frame
            for frame in dataset.frames
        ),
        labels=tuple(label for label in dataset.labels if label.frame not in back),
        ref=None,
    )
    return datasets.save_dataset(store, made, made_by="arm", parents=[dataset_ref, selection_ref])


# ---- Mine: from a dataset version and a model to a Selection record. The stage's recipe.


Progress = Callable[[int, int], None]


def mine(  # noqa: PLR0913 - what from, whose view, how much, how
    store: Store,
    dataset_ref: Ref,
    model_ref: Ref,
    budget: int | Budget,
    seed: int = 0,
    *,
    rules: SelectionRules | None = None,
    gate: QualityGate | None = None,
    query: MiningQuery | None = None,
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
    rules, gate, query = rules or SelectionRules(), gate or QualityGate(), query or MiningQuery()
    budget = Budget(frames=budget) if isinstance(budget, int) else budget
    budget.check()
    if query.is_search:
        rules = rules.model_copy(update={"diversity": 0.0, "drive_share": 1.0})
    dataset = datasets.load_dataset(store, dataset_ref)
    source: Encoder | TorchPredictor = query.encoder or load_checkpoint(store, model_ref)
    pool, labelled = _embed_pool_and_labelled(store, dataset, source, progress)
    frames = {frame.id: frame for frame in dataset.frames}
    ranked = _rank_pool(store, source, pool, labelled, frames, query, rules)
    candidates = _make_candidates(pool, ranked, frames, gate)
    allotted = allocate(candidates, budget, seed, rules)
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
            **_request_parameters(query, budget, allotted),
        },
        chosen=allotted.chosen,
        minutes=budget.minutes,
        notes=allotted.notes,
    )
    return store.put(record, {SCORES_FILE: _score_lines(pool, ranked, candidates)})


def embed_pool(
    store: Store, dataset: Dataset, model_ref: Ref, progress: Progress | None = None
) -> tuple[Embeddings, Embeddings | None]:
    """Embeddings of the pool and of what is labelled (None when nothing is)."""
    return _embed_pool_and_labelled(store, dataset, load_checkpoint(store, model_ref), progress)


def _embed_pool_and_labelled(
    store: Store,
    dataset: Dataset,
    encoder: Encoder | TorchPredictor,
    progress: Progress | None = None,
) -> tuple[Embeddings, Embeddings | None]:
    waiting = dataset.role(Role.POOL).frames
    known = dataset.role(Role.SEED, Role.TRAIN).frames
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
    return describe_conditions(frame, unknown="all")


def _rank_pool(
    store: Store,
    encoder: Encoder | TorchPredictor,
    pool: Embeddings,
    labelled: Embeddings | None,
    frames: dict[str, Frame],
    query: MiningQuery,
    rules: SelectionRules,
) -> Ranking:
    """The pool in the order that the query asks for."""
    conditions = [condition_of(frames[name]) for name in pool.frames]
    if query.is_search:
        return _search_pool(store, encoder, pool, frames, query, conditions)
    known = labelled.frames if labelled else ()
    waiting = [frames[name] for name in pool.frames]
    others = [
        embed(store.workspace, load_checkpoint(store, ref), waiting) for ref in query.other_models
    ]
    return ranking.rank_by_rarity(
        pool,
        labelled,
        conditions,
        [condition_of(frames[name]) for name in known],
        drives=[frame.drive for frame in waiting],
        typical=len(known) < rules.typical_below,
        signals=query.signals,
        other_models=others,
    )


def _search_pool(
    store: Store,
    encoder: Encoder | TorchPredictor,
    pool: Embeddings,
    frames: dict[str, Frame],
    query: MiningQuery,
    conditions: Sequence[str],
) -> Ranking:
    if query.text is not None:
        found = similarity.search_by_text(pool, SingleTextEncoder.of(encoder), query.text)
        none = [False] * len(pool.frames)
        rows = range(len(pool.frames))
        return ranking.rank_by_similarity(found, rows, conditions, none, query.text)
    there = set(pool.frames)
    names = (*pool.frames, *(name for name in query.frames if name not in there))
    # Exemplars may be labelled already: what is looked for is then known well.
    both = embed(store.workspace, encoder, [frames[name] for name in names])
    found = similarity.search_by_example(both, query.like, query.unlike)
    place = {name: row for row, name in enumerate(both.frames)}
    own = {one.frame for one in query.like}
    return ranking.rank_by_similarity(
        found,
        [place[name] for name in pool.frames],
        conditions,
        [name in own for name in pool.frames],
    )


def _make_candidates(
    pool: Embeddings, ranked: Ranking, frames: dict[str, Frame], gate: QualityGate
) -> Candidates:
    known = [frames[name] for name in pool.frames]
    nan = float("nan")
    times = (frame.timestamp_us for frame in known)
    believed = pool.owner[pool.scores >= CONFIDENCE_THRESHOLD]
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


def _request_parameters(query: MiningQuery, budget: Budget, allotted: Allocation) -> dict[str, Any]:
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
