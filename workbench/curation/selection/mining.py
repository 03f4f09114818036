"""Mine a dataset version for frames to label, and keep the choice as a Selection record."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace

import numpy as np

from workbench.core.errors import DataError, ParameterError
from workbench.core.text import counted
from workbench.core.types import Json, Progress
from workbench.curation.embedding.compute import embed
from workbench.curation.embedding.embeddings import Embeddings, vocabulary_of
from workbench.curation.embedding.encoders import Encoder
from workbench.curation.embedding.lite0 import Lite0Encoder
from workbench.curation.embedding.quality import QualityGate
from workbench.curation.selection.allocation import Allocation, allocate
from workbench.curation.selection.backtest import (
    MIN_DRIVES,
    Signals,
    backtest,
    hidden_kinds,
    sample_drives,
)
from workbench.curation.selection.candidates import Budget, Candidates, SelectionRules
from workbench.curation.selection.ranking import (
    MiningQuery,
    Ranking,
    rank_at_random,
    rank_by_rarity,
    rank_by_similarity,
    rank_by_words,
)
from workbench.curation.selection.report import rare_classes
from workbench.curation.signals.probe import SteeredSearch
from workbench.curation.signals.rarity import (
    DEFAULT_SIGNALS,
    DEFAULT_SIGNALS_WITH_WORDS,
    SIGNAL_WEIGHTS,
)
from workbench.curation.signals.similarity import search_by_text
from workbench.curation.signals.words import find_words, read_watch_list, word_evidence
from workbench.data.slices import describe_conditions
from workbench.detection.boxes import CONFIDENCE_THRESHOLD
from workbench.detection.predictor import TorchPredictor, load_checkpoint
from workbench.records.base import Ref
from workbench.records.dataset import Dataset, load_dataset, save_dataset
from workbench.records.frames import Frame, Role
from workbench.records.held_out import refuse_held_out
from workbench.records.store import Store
from workbench.records.types import Arm, Backtest, SelectedFrame, Selection

__all__ = ["dataset_of_arm", "mine", "newest_selection", "read_scores", "select_manually"]

MANUAL_METHOD = "chosen by hand"
_MAX_TESTED_TILES = 100
_SCORES_FILE = "scores.jsonl"
"""Payload of a mined Selection: one line with the scores of each frame of the pool."""


def mine(  # noqa: PLR0913 - the inputs and the rules of one selection
    store: Store,
    dataset_ref: Ref,
    model_ref: Ref | None,
    budget: int | Budget,
    seed: int = 0,
    *,
    rules: SelectionRules | None = None,
    gate: QualityGate | None = None,
    query: MiningQuery | None = None,
    progress: Progress | None = None,
) -> Ref:
    """Choose the pool's frames to label first, and keep the choice as a Selection record.

    Frames of role ``pool`` are candidates; those of role ``seed`` and ``train`` are labelled
    already. Results of a search are spaced by events and time only, without diversity or a drive's
    cap: they are meant to be similar and may all be in one drive.

    Args:
        store: Holds the records.
        dataset_ref: The dataset version.
        model_ref: The checkpoint used for embeddings and boxes; None from a cold start, when
            `Lite0Encoder` embeds the frames.
        budget: Number of frames, or a `Budget`.
        seed: Of the random arm.
        rules: How to spend the budget.
        gate: Quality limits of candidates.
        query: Exemplars, a text, a watch list or signals; by default the watch list for roads on
            real drives, and rarity on rendered ones.
        progress: Called with the number of embedded frames and their total.

    Returns:
        The reference of the Selection.

    Raises:
        DataError: The dataset has no frames of role ``pool``, or none is usable.
        ParameterError: The budget is not positive, or an exemplar is not in the dataset.
    """
    rules, gate, query = rules or SelectionRules(), gate or QualityGate(), query or MiningQuery()
    budget = Budget(frames=budget) if isinstance(budget, int) else budget
    budget.check()
    if query.unlike and not query.like:
        raise ParameterError(
            "no exemplar to search for: only negative ones are given",
            where=", ".join(one.frame[:12] for one in query.unlike),
            hint="Give at least one exemplar to find more of, with `like` (--like)",
        )
    if query.is_search:
        rules = rules.model_copy(update={"diversity": 0.0, "drive_share": 1.0})
    dataset = load_dataset(store, dataset_ref)
    refuse_held_out(store, dataset.role(Role.POOL, Role.SEED, Role.TRAIN).frames, "mining")
    given = bool(query.signals or query.watch)
    if _needs_words(dataset, query) and not query.is_search and not query.watch:
        query = replace(query, watch=read_watch_list())
    # On real drives its regions find far more of the same than those of a detector do.
    by_lite0 = model_ref is None or (bool(query.like) and not dataset.simulated)
    source: Encoder | TorchPredictor = query.encoder or (
        Lite0Encoder(workspace=store.workspace)
        if model_ref is None or by_lite0
        else load_checkpoint(store, model_ref)
    )
    pool, labelled = _embed_pool_and_labelled(store, dataset, source, progress)
    frames = {frame.id: frame for frame in dataset.frames}
    if _needs_words(dataset, query):
        pool = _with_words(store, pool, frames, progress)
    tested = None
    if not query.is_search:
        tested = _backtest(store, dataset, source, pool, query, budget, given=given)
    if tested and tested.led_by == "random":
        ranking = rank_at_random([condition_of(frames[name]) for name in pool.frames], seed)
    else:
        ranking = _rank_pool(store, source, pool, labelled, frames, query, rules, tested)
    candidates = _make_candidates(pool, ranking, frames, gate, query)
    allocation = allocate(candidates, budget, seed, rules)
    record = Selection(
        dataset=dataset_ref,
        model=model_ref,
        budget=budget.frames or len(allocation.of("mined")) + len(allocation.of("random")),
        seed=seed,
        method=ranking.method,
        parameters={
            "rules": rules.model_dump(mode="json"),
            "quality_gate": gate.model_dump(mode="json"),
            "pool": len(pool.frames),
            "labelled": 0 if labelled is None else len(labelled.frames),
            "kept_out": dict(sorted(Counter(one for one in candidates.faults if one).items())),
            "unreadable": [{"frame": frame, "reason": why} for frame, why in pool.skipped],
            "embedding": {"model": pool.model, "preprocessing": pool.preprocessing},
            **ranking.parameters,
            **_request_parameters(query, budget, allocation),
        },
        chosen=allocation.chosen,
        minutes=budget.minutes,
        notes=(*allocation.notes, *_backtest_notes(tested)),
        backtest=tested,
    )
    return store.put(record, {_SCORES_FILE: _score_lines(pool, ranking, candidates)})


def _needs_words(dataset: Dataset, query: MiningQuery) -> bool:
    """Whether the ranking asks for words that an image classifier answers."""
    if query.text is not None:
        return query.encoder is None or bool(vocabulary_of(query.encoder))
    if query.like or query.signals:
        return "watch" in query.signals
    return bool(query.watch) or not dataset.simulated


def _with_words(
    store: Store, pool: Embeddings, frames: dict[str, Frame], progress: Progress | None
) -> Embeddings:
    """The pool with the words of `Lite0Encoder` beside its own vectors."""
    if pool.words.vocabulary:
        return pool
    encoder = Lite0Encoder(workspace=store.workspace)
    own = [frames[name] for name in pool.frames]
    seen = embed(store.workspace, encoder, own, progress)
    if seen.frames != pool.frames:
        raise DataError(
            f"{counted(len(pool.frames) - len(seen.frames), 'frame')} cannot be searched for words",
            where=(set(pool.frames) - set(seen.frames)).pop(),
            hint="The image classifier gave no finite answer; remove the frame from the dataset",
        )
    return replace(pool, words=seen.words)


def _embed_pool_and_labelled(
    store: Store,
    dataset: Dataset,
    encoder: Encoder | TorchPredictor,
    progress: Progress | None = None,
) -> tuple[Embeddings, Embeddings | None]:
    unlabelled = dataset.role(Role.POOL).frames
    known = dataset.role(Role.SEED, Role.TRAIN).frames
    if not unlabelled:
        raise DataError(
            "the dataset has no frames of role pool",
            where=dataset.ref or dataset.name,
            hint="All frames are labelled or held out; ingest more drives",
        )

    def report_from(start: int) -> Progress:
        def report(done: int, _: int) -> None:
            if progress:
                progress(start + done, len(unlabelled) + len(known))

        return report

    pool = embed(store.workspace, encoder, unlabelled, report_from(0))
    if not known:
        return pool, None
    return pool, embed(store.workspace, encoder, known, report_from(len(unlabelled)))


def _rank_pool(
    store: Store,
    encoder: Encoder | TorchPredictor,
    pool: Embeddings,
    labelled: Embeddings | None,
    frames: dict[str, Frame],
    query: MiningQuery,
    rules: SelectionRules,
    tested: Backtest | None,
) -> Ranking:
    """The pool in the order that the query asks for, with the signals that the backtest chose."""
    conditions = [condition_of(frames[name]) for name in pool.frames]
    if query.is_search:
        return _search_pool(store, encoder, pool, frames, query, conditions)
    weights: dict[str, float] = {}
    if tested and tested.led_by in ("weighed", "entropy"):
        weights = {one.signal: one.weight for one in tested.signals if one.weight > 0}
    known = labelled.frames if labelled else ()
    pool_frames = [frames[name] for name in pool.frames]
    others = [
        embed(store.workspace, load_checkpoint(store, ref), pool_frames)
        for ref in query.other_models
    ]
    return rank_by_rarity(
        pool,
        labelled,
        conditions,
        [condition_of(frames[name]) for name in known],
        drives=[frame.drive for frame in pool_frames],
        typical=len(known) < rules.typical_below,
        signals=query.signals or tuple(weights),
        weights=weights,
        other_models=others,
        watch_list=query.watch,
    )


def _backtest(
    store: Store,
    dataset: Dataset,
    encoder: Encoder | TorchPredictor,
    pool: Embeddings,
    query: MiningQuery,
    budget: Budget,
    *,
    given: bool,
) -> Backtest | None:
    """The signals tested on what is labelled; None where that is too little."""
    frames = sample_drives(dataset.role(Role.SEED, Role.TRAIN, Role.VAL).frames)
    if len({frame.drive for frame in frames}) < MIN_DRIVES:
        return None
    labelled = embed(store.workspace, encoder, frames)
    others = [
        embed(store.workspace, load_checkpoint(store, ref), frames) for ref in query.other_models
    ]
    by_id = {frame.id: frame for frame in frames}
    if query.watch:
        labelled = _with_words(store, labelled, by_id, None)
    usable = [by_id[name] for name in labelled.frames]
    try:
        rare = [one.terms[0][1] for one in rare_classes(dataset)]
    except ParameterError:  # none is rare
        rare = []
    kinds = hidden_kinds(usable, dataset.labels, dataset.label_schema.classes, rare)
    return backtest(
        labelled,
        kinds,
        [frame.drive for frame in usable],
        _signals_to_test(pool, query, given=given),
        share=(budget.frames or 0) / len(pool.frames),
        learned=[frame.role is not Role.VAL for frame in usable],
        other_models=others,
    )


def _signals_to_test(pool: Embeddings, query: MiningQuery, *, given: bool) -> Signals:
    """All signals that this pool has, or those that were ``given`` with the query."""
    usual = query.signals or (DEFAULT_SIGNALS_WITH_WORDS if query.watch else DEFAULT_SIGNALS)
    if query.other_models and not query.signals:
        usual = (*usual, "disagreement")
    names = tuple(usual)
    if not given:
        left_out = {"typicality"}
        left_out |= set() if query.watch else {"watch"}
        left_out |= set() if query.other_models else {"disagreement"}
        left_out |= set() if len(pool.scores) else {"novelty", "doubt", "entropy", "objects"}
        # Hundreds of tiles a frame take minutes, and on real drives they found nothing.
        left_out |= {"tiles"} if pool.tiles.per_frame > _MAX_TESTED_TILES else set()
        names = tuple(name for name in SIGNAL_WEIGHTS if name not in left_out)
    return Signals(names, {name: SIGNAL_WEIGHTS[name] for name in usual}, given, query.watch)


def _backtest_notes(tested: Backtest | None) -> tuple[str, ...]:
    return (tested.reason,) if tested and tested.led_by in ("entropy", "random") else ()


def _search_pool(
    store: Store,
    encoder: Encoder | TorchPredictor,
    pool: Embeddings,
    frames: dict[str, Frame],
    query: MiningQuery,
    conditions: Sequence[str],
) -> Ranking:
    if query.text is not None and pool.words.vocabulary:
        words = find_words(query.text)
        evidence = word_evidence(pool, words)
        return rank_by_words(pool, evidence, words, conditions)
    if query.text is not None:
        similarity = search_by_text(pool, encoder, query.text)
        rows = range(len(pool.frames))
        no_exemplars = [False] * len(pool.frames)
        return rank_by_similarity(similarity, rows, conditions, no_exemplars, query.text)
    # Exemplars may lie outside the pool, among labelled frames for example.
    outside = set(query.frames) - set(pool.frames)
    names = (*pool.frames, *(name for name in query.frames if name in outside))
    both = embed(store.workspace, encoder, [frames[name] for name in names])
    row_of = {name: row for row, name in enumerate(both.frames)}
    search = SteeredSearch(both, query.like, query.unlike)
    for one in query.answers:
        search.refit(one.yes, one.no)
    own, confirmed = {exemplar.frame for exemplar in query.like}, set(search.accepted)
    return rank_by_similarity(
        search.scores,
        [row_of[name] for name in pool.frames],
        conditions,
        [name in own for name in pool.frames],
        confirmed=[name in confirmed for name in pool.frames],
    )


def condition_of(frame: Frame) -> str:
    """Light, weather and road works in words; ``all`` when unknown."""
    return describe_conditions(frame, unknown="all")


def _make_candidates(
    pool: Embeddings,
    ranking: Ranking,
    frames: dict[str, Frame],
    gate: QualityGate,
    query: MiningQuery,
) -> Candidates:
    rejected = {frame for one in query.answers for frame in one.no}
    pool_frames = [frames[name] for name in pool.frames]
    nan = float("nan")
    times = (frame.timestamp_us for frame in pool_frames)
    confident = pool.owner[pool.scores >= CONFIDENCE_THRESHOLD]
    return Candidates(
        frames=pool.frames,
        drives=[frame.drive for frame in pool_frames],
        index=np.array([frame.index for frame in pool_frames], np.int64),
        time_s=np.array([nan if time is None else time / 1e6 for time in times]),
        conditions=[condition_of(frame) for frame in pool_frames],
        score=ranking.score,
        faults=[
            "answered no" if frame in rejected else gate.verdict(row)
            for frame, row in zip(pool.frames, pool.quality, strict=True)
        ],
        boxes=np.bincount(confident, minlength=len(pool_frames)),
        lead=ranking.lead,
        groups=ranking.condition,
        vectors=pool.vectors,
        reasons=ranking.reasons,
        signals=ranking.signals,
        box=ranking.box,
    )


def _request_parameters(query: MiningQuery, budget: Budget, allocation: Allocation) -> Json:
    """The parts of the request that have no field of their own in the record."""
    parameters: Json = {"query": query.as_json()} if query.as_json() else {}
    if budget.minutes is not None and budget.pace is not None:
        parameters["pace"] = budget.pace.model_dump(mode="json")
        parameters["expected_minutes"] = round(allocation.cost, 3)
    if control := allocation.of("control"):
        parameters["control"] = {"frames": len(control), "probability": control[0].probability}
    return parameters


def _score_lines(pool: Embeddings, ranking: Ranking, candidates: Candidates) -> bytes:
    lines = []
    for row, frame in enumerate(candidates.frames):
        line = {
            "frame": frame,
            "rarity": round(float(candidates.score[row]), 6),
            "ranks": ranking.signals(row),
            "condition": ranking.condition[row],
            "quality": [round(float(value), 5) for value in pool.quality[row]],
            "fault": candidates.faults[row],
        }
        lines.append(json.dumps(line, sort_keys=True))
    return ("\n".join(lines) + "\n").encode()


def select_manually(
    store: Store,
    dataset_ref: Ref,
    frames: Iterable[str],
    reason: str,
    model_ref: Ref | None = None,
    *,
    query: MiningQuery | None = None,
) -> Ref:
    """Keep a person's choice, such as the frames of a tag, as a Selection record.

    Args:
        store: Holds the records.
        dataset_ref: The dataset version that has the frames.
        frames: Digests, most important first.
        reason: Shown to labelers beside every frame.
        model_ref: The checkpoint used to find the frames, if any.
        query: The search that found them, if any: exemplars and answers are kept.

    Raises:
        DataError: No frames, or frames outside the dataset.
    """
    selected = list(dict.fromkeys(frames))
    known = {frame.id for frame in load_dataset(store, dataset_ref).frames}
    unknown = [frame for frame in selected if frame not in known]
    if not selected or unknown:
        what = "no frames given"
        if selected:
            what = f"{counted(len(unknown), 'frame')} not in the dataset"
        raise DataError(
            what,
            where=unknown[0] if unknown else dataset_ref,
            hint="Give at least one frame of this dataset version, by its full digest",
        )
    refuse_held_out(store, selected, "a selection", roles=(Role.BLIND,))
    chosen = tuple(
        SelectedFrame(frame=frame, rank=rank, score=1.0, reasons=(reason,))
        for rank, frame in enumerate(selected, start=1)
    )
    record = Selection(
        dataset=dataset_ref,
        model=model_ref,
        budget=len(chosen),
        seed=0,
        method=MANUAL_METHOD,
        parameters={"query": query.as_json()} if query else {},
        chosen=chosen,
    )
    return store.put(record)


def _is_mined(selection: Selection) -> bool:
    """Whether the selection ranked a pool; manual choices and label reviews did not."""
    return "pool" in selection.parameters


def newest_selection(store: Store) -> Ref:
    """The newest selection made by `mine`.

    Raises:
        DataError: There is none.
    """
    for ref, record in reversed(list(store.readable(Selection))):
        if _is_mined(record):
            return ref
    raise DataError(
        "no mined selection",
        where=store.root,
        hint="Run `make run` first, or `workbench run pipelines/data_engine.yaml`",
    )


def read_scores(store: Store, selection_ref: Ref) -> dict[str, Json]:
    """Scores by frame, as `mine` wrote them; empty for other selections."""
    if _SCORES_FILE not in store.payload_names(selection_ref):
        return {}
    lines = store.payload(selection_ref, _SCORES_FILE).read_text().splitlines()
    return {row["frame"]: row for row in map(json.loads, lines)}


def dataset_of_arm(store: Store, dataset_ref: Ref, selection_ref: Ref, arm: Arm) -> Ref:
    """Save a dataset version in which only one arm of a selection is labelled.

    Frames of the other arms return to the pool, without their labels, so that models trained on two
    such versions differ in nothing but the arm. The version gets a name of its own, so that it
    never is the newest version of the dataset.

    Args:
        store: Holds the records.
        dataset_ref: A version with the labels of all arms.
        selection_ref: The selection.
        arm: The arm to keep.

    Raises:
        ParameterError: The selection has no such arm, or none of it is labelled.
    """
    selection = store.get(selection_ref, Selection)
    dataset = load_dataset(store, dataset_ref)
    arms = {choice.frame: choice.arm for choice in selection.chosen}
    others = {frame for frame, own in arms.items() if own != arm}
    trained_on = {frame.id for frame in dataset.role(Role.TRAIN).frames}
    if not any(arms.get(frame) == arm for frame in trained_on):
        raise ParameterError(
            f"no frame of the {arm} arm is labelled in this dataset",
            where=dataset_ref,
            hint=f"Arms of the selection: {', '.join(sorted(set(arms.values())))};"
            " collect and merge their labels first",
        )
    returned = others & trained_on
    reduced = replace(
        dataset,
        name=f"{dataset.name}-{arm}",
        frames=tuple(
            frame.model_copy(update={"role": Role.POOL}) if frame.id in returned else frame
            for frame in dataset.frames
        ),
        labels=tuple(label for label in dataset.labels if label.frame not in returned),
        ref=None,
    )
    return save_dataset(store, reduced, made_by="arm", parents=[dataset_ref, selection_ref])
