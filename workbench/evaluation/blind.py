"""The blind holdout: frames that only answer PASS or FAIL, a limited number of times.

A set of frames that is asked often enough is learned from, even if nobody trains on it: the next
candidate is chosen by its answers (Dwork et al., "The reusable holdout", Science 349, 2015). So the
rules are fixed when the holdout is opened, each model that is judged costs one query of a budget,
and nothing but verdicts comes out: no figure, no frame, no box.

Queries are counted in the audit log, which cannot be shortened unseen. Where the log has no entry
of the holdout's opening, its count was lost, and it answers no more.
"""

from __future__ import annotations

from dataclasses import dataclass

from workbench.audit import log as audit
from workbench.core.errors import DataError, ParameterError, Refusal, VerificationError
from workbench.core.names import check_person
from workbench.core.text import counted, short_repr
from workbench.core.types import Progress
from workbench.core.workspace import exclusive
from workbench.detection.model import Model, Predictions
from workbench.detection.predictor import predict_frames
from workbench.evaluation.gate_rules import FloorGate, GateRules
from workbench.evaluation.gates import choose_threshold, judge
from workbench.evaluation.metrics import evaluate
from workbench.records.base import Ref, Verdict, short_ref
from workbench.records.dataset import load_dataset
from workbench.records.evidence_types import Holdout
from workbench.records.frames import Role
from workbench.records.model_types import Checkpoint
from workbench.records.store import Store

__all__ = ["BlindVerdict", "ask_holdout", "open_holdout"]

_LOCK_TIMEOUT_S = 60


@short_repr
@dataclass(frozen=True)
class BlindVerdict:
    """The answer of a blind holdout: verdicts, and nothing else.

    Attributes:
        gates: Verdict by gate.
        asked: Models that were judged so far, this one included.
        budget: Models that may be judged at all.
        simulated: Whether rendered drives or replayed labels are among the frames.
    """

    verdict: Verdict
    gates: dict[str, Verdict]
    asked: int
    budget: int
    simulated: bool


@dataclass(frozen=True)
class HoldoutState:
    """A holdout and what it was asked."""

    ref: Ref
    record: Holdout
    asked: tuple[Ref, ...]


def open_holdout(store: Store, dataset: Ref, rules: GateRules, *, budget: int, by: str) -> Ref:
    """Open the frames of role ``blind`` of a dataset version to a limited number of models.

    Only the floors among the rules are kept: they need no other model and no inspection.

    Args:
        store: With the dataset version.
        dataset: Its reference.
        rules: Fixed from now on.
        budget: How many models may be judged.
        by: Who opens it.

    Raises:
        DataError: There are no blind frames.
        ParameterError: The budget is below one, or no required floor is among the rules.
        VerificationError: Some of the frames were opened before: a count is never begun again.
    """
    by = check_person(by, "name of who opens the holdout")
    if budget < 1:
        raise ParameterError(f"budget must be at least 1, not {budget}")
    frames = tuple(f.id for f in load_dataset(store, dataset).frames if f.role is Role.BLIND)
    if not frames:
        raise DataError(
            "no frames with the role blind",
            where=short_ref(dataset),
            hint="`workbench ingest … --blind 0.1` holds out a tenth of the drives",
        )
    floors = [gate for gate in rules.gates if isinstance(gate, FloorGate)]
    if not any(gate.required for gate in floors):
        raise ParameterError(
            "the rules have no required gate of the kind `floor`",
            hint="Other kinds compare with a model or an inspection, which would cost queries",
        )
    kept = rules.model_copy(update={"gates": tuple(floors)})
    record = Holdout(dataset=dataset, frames=frames, rules=kept.as_json(), budget=budget, by=by)
    with exclusive(store.workspace, "holdout", "opening a holdout", timeout_s=_LOCK_TIMEOUT_S):
        for ref, other in store.readable(Holdout):
            shared = set(other.frames) & set(frames)
            if shared:
                raise VerificationError(
                    f"{counted(len(shared), 'frame')} were opened before, with a budget of "
                    f"{counted(other.budget, 'query', 'queries')}",
                    where=short_ref(ref),
                    hint="A new budget needs new frames",
                    reason=Refusal.HOLDOUT_RESET,
                )
        here = set(store.refs(Holdout.KIND))
        opened = audit.read_log(store.workspace, events=("holdout-opened",))
        lost = [entry.subjects[0] for entry in opened if entry.subjects[0] not in here]
        if lost:
            raise VerificationError(
                "the record of a holdout that was opened before is gone",
                where=short_ref(lost[0]),
                hint="Restore it from a backup: without it nobody knows which frames were asked",
                reason=Refusal.HOLDOUT_RESET,
            )
        ref = store.put(record)
        audit.append(
            store.workspace,
            "holdout-opened",
            by=by,
            subjects=(ref, dataset),
            budget=budget,
            frames=len(frames),
        )
    return ref


def holdout_state(store: Store, ref: Ref) -> HoldoutState:
    """A holdout with the models that were judged, as the verified audit log says.

    Raises:
        VerificationError: The log was changed, or has lost the count.
    """
    record = store.get(ref, Holdout)
    report = audit.verify_log(store.workspace)
    if report.problems:
        raise VerificationError(
            f"audit log was changed: {report.problems[0]}",
            where=store.workspace.root / "audit",
            hint="`workbench audit verify` lists all; restore it from a backup first",
            reason=report.reason,
        )
    entries = list(audit.read_log(store.workspace, ref, events=("holdout-opened", "holdout-asked")))
    if not any(entry.event == "holdout-opened" for entry in entries):
        raise VerificationError(
            "the audit log does not say how often this holdout was asked",
            where=short_ref(ref),
            hint="Restore the log from a backup, or hold out new frames",
            reason=Refusal.HOLDOUT_RESET,
        )
    asked = [entry.subjects[1] for entry in entries if entry.event == "holdout-asked"]
    return HoldoutState(ref, record, tuple(dict.fromkeys(asked)))


def ask_holdout(
    store: Store, ref: Ref, model: Model, *, by: str, progress: Progress | None = None
) -> BlindVerdict:
    """Judge a model on blind frames; the same model again costs nothing and gets the same answer.

    Args:
        store: With the holdout.
        ref: The holdout.
        model: A bundle or a checkpoint.
        by: Who asks.
        progress: Called with the number of frames done and their total.

    Raises:
        VerificationError: The budget is spent, the count was lost, or the model was trained on
            blind frames.
    """
    by = check_person(by, "name of who asks")
    record = store.get(ref, Holdout)
    dataset = load_dataset(store, record.dataset)
    blind = set(record.frames)
    _refuse_learned(store, model, blind)
    # Counted before it is judged: a process that is killed has not asked for free.
    with exclusive(store.workspace, "holdout", "asking a holdout", timeout_s=_LOCK_TIMEOUT_S):
        state = holdout_state(store, ref)
        if model.ref not in state.asked:
            if len(state.asked) >= record.budget:
                raise VerificationError(
                    f"the budget of {counted(record.budget, 'query', 'queries')} is spent",
                    where=short_ref(ref),
                    hint="Hold out new frames: these have answered as often as they may",
                    reason=Refusal.HOLDOUT_SPENT,
                )
            audit.append(store.workspace, "holdout-asked", by=by, subjects=(ref, model.ref))
            state = holdout_state(store, ref)
    number = state.asked.index(model.ref) + 1
    answered = audit.read_log(store.workspace, ref, events=("holdout-answered",))
    for entry in answered:
        if entry.subjects[1] == model.ref:
            gates = {name: Verdict(text) for name, text in entry.detail["gates"].items()}
            verdict = Verdict(entry.detail["verdict"])
            return BlindVerdict(verdict, gates, number, record.budget, dataset.simulated)
    rules = GateRules.model_validate(record.rules)
    frames = dataset.where(lambda frame: frame.id in blind)
    point = model.operating_point or choose_threshold(rules, model.predict, dataset)
    boxes = predict_frames(store.workspace, model.predictor, frames.frames, progress=progress)
    found = Predictions(frames, tuple(boxes), model.name)
    evaluation = evaluate(found, settings=rules.settings_at(point.threshold))
    decision = judge(rules, evaluation, operating_point=point)
    gates = {gate.name: gate.verdict for gate in decision.gates}
    audit.append(
        store.workspace,
        "holdout-answered",
        by=by,
        subjects=(ref, model.ref),
        verdict=decision.verdict.value,
        gates={name: verdict.value for name, verdict in gates.items()},
    )
    return BlindVerdict(decision.verdict, gates, number, record.budget, decision.simulated)


def _refuse_learned(store: Store, model: Model, blind: set[str]) -> None:
    """Refuse a model whose training data has a blind frame, whatever role it had there."""
    trained_on = load_dataset(store, store.get(model.checkpoint, Checkpoint).dataset)
    learned = [f for f in trained_on.role(Role.SEED, Role.TRAIN).frames if f.id in blind]
    if learned:
        raise VerificationError(
            f"the model was trained on {counted(len(learned), 'blind frame')}",
            where=short_ref(model.ref),
            hint="Train it again without them",
            reason=Refusal.FRAME_HELD_OUT,
        )
