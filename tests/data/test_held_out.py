"""Safety and blind frames: every door into learning, labeling and viewers is tried and is shut."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace

import cv2
import numpy as np
import pytest

from workbench import curation, labeling
from workbench.audit import log as audit
from workbench.core import digest
from workbench.core.errors import DataError, ParameterError, Refusal, VerificationError
from workbench.curation.selection.mining import select_manually
from workbench.data import FRONT_CAMERA
from workbench.data.ingest import IngestResult
from workbench.deployment.session import frames_from_dataset
from workbench.detection.model import Model
from workbench.evaluation import blind as holdouts
from workbench.evaluation.gate_rules import FloorGate, GateRules, NoLeaksGate
from workbench.export.calibration import pick_calibration_frames
from workbench.records.base import Verdict
from workbench.records.dataset import Dataset, load_dataset, media_path, save_dataset
from workbench.records.evidence_types import Holdout
from workbench.records.frames import Box, Drive, Frame, Label, Origin, Role
from workbench.records.model_types import Checkpoint
from workbench.records.store import Store
from workbench.records.types import Prediction, SelectedFrame, Selection
from workbench.training.targets import check_dataset

RULES = GateRules(
    schema_version=1,
    evaluation={"resamples": 100},
    gates=(
        FloorGate(
            name="recall", kind="floor", metric="recall", bound=0.5, min_drives=10, min_boxes=1
        ),
        NoLeaksGate(name="leaks", kind="no_leaks"),
    ),
)
ROLES = (Role.SEED, Role.POOL, Role.TRAIN, Role.SAFETY, *[Role.BLIND] * 12)


@pytest.fixture
def dataset(store: Store) -> Dataset:
    """One frame a drive, one car on each."""
    frames, labels = [], []
    for index, role in enumerate(ROLES):
        content = cv2.imencode(".png", np.full((48, 64, 3), index + 1, np.uint8))[1].tobytes()
        frame = Frame(
            id=digest.of_bytes(content),
            drive=f"d{index:02d}",
            index=0,
            width=64,
            height=48,
            suffix=".png",
            role=role,
        )
        path = media_path(store.workspace, frame)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        frames.append(frame)
        box = Box(x=10, y=10, w=20, h=20)
        labels.append(Label(frame=frame.id, cls="car", box=box, origin=Origin.HUMAN))
    drives = tuple(Drive(id=frame.drive) for frame in frames)
    found = Dataset("rides", FRONT_CAMERA, drives, tuple(frames), tuple(labels))
    ref = save_dataset(store, replace(found, workspace=store.workspace), made_by="ingest")
    return load_dataset(store, ref)


def disguised(dataset: Dataset, role: Role, other: Role) -> Dataset:
    """The frames of a role, in memory, as if they had another."""
    part = dataset.role(role)
    frames = tuple(frame.model_copy(update={"role": other}) for frame in part.frames)
    return replace(part, frames=frames, ref=dataset.ref)


def train(store: Store, dataset: Dataset, role: Role) -> None:
    check_dataset(disguised(dataset, role, Role.TRAIN), FRONT_CAMERA.classes)


def calibrate(store: Store, dataset: Dataset, role: Role) -> None:
    pick_calibration_frames(disguised(dataset, role, Role.TRAIN), 1)


def mine(store: Store, dataset: Dataset, role: Role) -> None:
    # A version that was written past `save_dataset`, with a lie about the role.
    lie = disguised(dataset, role, Role.POOL)
    ref = put_past_the_door(store, dataset, lie)
    curation.mine(store, ref, None, 1)


def save_version(store: Store, dataset: Dataset, role: Role) -> None:
    save_dataset(
        store, disguised(dataset, role, Role.TRAIN), made_by="collect", parents=[dataset.ref]
    )


def put_past_the_door(store: Store, dataset: Dataset, lie: Dataset) -> str:
    from workbench.records.dataset import to_json_lines

    record = store.load(dataset.ref).model_copy(update={"frames": len(lie.frames)})
    names = ("drives.jsonl", "labels.jsonl", "quarantine.jsonl")
    payload = {name: store.read_payload(dataset.ref, name) for name in names}
    return store.put(record, {**payload, "frames.jsonl": to_json_lines(lie.frames)})


def label(store: Store, dataset: Dataset, role: Role) -> None:
    frame = dataset.role(role).frames[0].id
    chosen = (SelectedFrame(frame=frame, rank=1, score=1.0),)
    selection = Selection(dataset=dataset.ref, budget=1, seed=0, method="x", chosen=chosen)
    labeling.make_batch(store, dataset.ref, store.put(selection))


def select(store: Store, dataset: Dataset, role: Role) -> None:
    select_manually(store, dataset.ref, [dataset.role(role).frames[0].id], "rare")


def publish(store: Store, dataset: Dataset, role: Role) -> None:
    curation.publish(store.workspace, disguised(dataset, role, Role.POOL))


def predict(store: Store, dataset: Dataset, role: Role) -> None:
    Model.predict(SimpleNamespace(workspace=store.workspace), disguised(dataset, role, Role.VAL))


def draw(store: Store, dataset: Dataset, role: Role) -> None:
    frames_from_dataset(store.workspace, dataset.role(role))


@pytest.mark.parametrize(
    ("door", "role"),
    [
        *((door, role) for role in (Role.SAFETY, Role.BLIND) for door in (train, calibrate)),
        (save_version, Role.SAFETY),
        (save_version, Role.BLIND),
        (mine, Role.BLIND),
        *((door, Role.BLIND) for door in (label, select, publish, predict, draw)),
    ],
)
def test_every_door_refuses_held_out_frames_by_their_digest(
    store: Store, dataset: Dataset, door: Callable[..., None], role: Role
):
    with pytest.raises(VerificationError) as refused:
        door(store, dataset, role)
    assert refused.value.reason == Refusal.FRAME_HELD_OUT


def test_other_frames_pass_the_same_doors(store: Store, dataset: Dataset):
    check_dataset(dataset.role(Role.SEED, Role.TRAIN), FRONT_CAMERA.classes)
    pick_calibration_frames(dataset, 1)
    label(store, dataset, Role.POOL)
    select(store, dataset, Role.POOL)
    moved = disguised(dataset, Role.POOL, Role.TRAIN)
    save_dataset(store, moved, made_by="collect", parents=[dataset.ref])


def test_a_source_may_be_split_anew_but_blind_frames_stay_blind(store: Store, dataset: Dataset):
    anew = replace(
        dataset,
        frames=tuple(frame.model_copy(update={"role": Role.TRAIN}) for frame in dataset.frames),
        ref=None,
    )
    ref = IngestResult(anew, (), {}, store.root).save(store)
    roles = {frame.drive: frame.role for frame in load_dataset(store, ref).frames}
    assert [roles[f"d{index:02d}"] for index in (3, 4)] == [Role.TRAIN, Role.BLIND]
    check_dataset(load_dataset(store, ref).role(Role.TRAIN), FRONT_CAMERA.classes)


class FakePredictor:
    """Finds the car on every frame, or nothing."""

    classes = FRONT_CAMERA.classes


def model(store: Store, dataset: Dataset, name: str) -> SimpleNamespace:
    checkpoint = Checkpoint(
        dataset=dataset.ref,
        classes=("car",),
        architecture={"name": name},
        training={},
        preprocessing={},
    )
    ref = store.put(checkpoint, {"weights.safetensors": b"w"})
    return SimpleNamespace(
        ref=ref,
        checkpoint=ref,
        name=name,
        predictor=FakePredictor(),
        operating_point=None,
        predict=None,
    )


@pytest.fixture
def finds(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Whether a model finds the car; one entry per call."""
    answers: list[bool] = []

    def predict_frames(workspace: object, predictor: object, frames: object, **_: object):
        found = answers.pop(0)
        box = Box(x=10, y=10, w=20, h=20)
        return [Prediction(frame=one.id, cls="car", box=box, score=0.9) for one in frames if found]

    monkeypatch.setattr(holdouts, "predict_frames", predict_frames)
    return answers


def opened(store: Store, dataset: Dataset, budget: int = 2) -> str:
    return holdouts.open_holdout(store, dataset.ref, RULES, budget=budget, by="Ann")


def test_a_holdout_answers_verdicts_only_and_no_more_than_its_budget(
    store: Store, dataset: Dataset, finds: list[bool]
):
    ref = opened(store, dataset)
    finds += [True, False]
    good, bad, third = (model(store, dataset, name) for name in ("good", "bad", "third"))
    answer = holdouts.ask_holdout(store, ref, good, by="Bea")
    assert (answer.verdict, answer.gates) == (Verdict.PASS, {"recall": Verdict.PASS})
    assert not [one for one in vars(answer).values() if isinstance(one, float)]
    assert holdouts.ask_holdout(store, ref, bad, by="Bea").verdict is Verdict.FAIL
    assert holdouts.ask_holdout(store, ref, good, by="Cyd") == answer, "again costs nothing"
    with pytest.raises(VerificationError) as refused:
        holdouts.ask_holdout(store, ref, third, by="Bea")
    assert refused.value.reason == Refusal.HOLDOUT_SPENT
    events = [(entry.event, entry.by) for entry in audit.read_log(store.workspace, ref)]
    assert events == [
        ("holdout-opened", "Ann"),
        ("holdout-asked", "Bea"),
        ("holdout-answered", "Bea"),
        ("holdout-asked", "Bea"),
        ("holdout-answered", "Bea"),
    ]


def test_a_query_that_was_interrupted_counts(store: Store, dataset: Dataset, finds: list[bool]):
    ref = opened(store, dataset, budget=1)
    good, other = model(store, dataset, "good"), model(store, dataset, "other")
    with pytest.raises(IndexError):  # as if the process had been killed while it predicts
        holdouts.ask_holdout(store, ref, good, by="Bea")
    with pytest.raises(VerificationError) as refused:
        holdouts.ask_holdout(store, ref, other, by="Bea")
    assert refused.value.reason == Refusal.HOLDOUT_SPENT
    finds.append(True)
    assert holdouts.ask_holdout(store, ref, good, by="Bea").asked == 1


def open_again(store: Store, dataset: Dataset, ref: str) -> None:
    opened(store, dataset, budget=9)


def delete_the_log(store: Store, dataset: Dataset, ref: str) -> None:
    for name in ("audit", "audit-checkpoint"):
        shutil.rmtree(store.workspace.root / name)


def cut_the_log(store: Store, dataset: Dataset, ref: str) -> None:
    path = store.workspace.root / "audit" / "log.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(line for line in lines if json.loads(line)["number"] < 2))


def delete_the_record(store: Store, dataset: Dataset, ref: str) -> None:
    shutil.rmtree(store.folder(ref))
    opened(store, dataset, budget=9)


@pytest.mark.parametrize(
    ("attack", "reason"),
    [
        (open_again, Refusal.HOLDOUT_RESET),
        (delete_the_log, Refusal.HOLDOUT_RESET),
        (cut_the_log, Refusal.LOG_TRUNCATED),
        (delete_the_record, Refusal.HOLDOUT_RESET),
    ],
)
def test_the_count_of_queries_cannot_be_reset(
    store: Store, dataset: Dataset, finds: list[bool], attack: Callable[..., None], reason: Refusal
):
    ref = opened(store, dataset, budget=1)
    finds += [True, True]
    holdouts.ask_holdout(store, ref, model(store, dataset, "good"), by="Bea")
    with pytest.raises(VerificationError) as refused:
        attack(store, dataset, ref)
        holdouts.ask_holdout(store, ref, model(store, dataset, "other"), by="Bea")
    assert refused.value.reason == reason


def test_a_model_that_learned_blind_frames_is_not_judged(store: Store, dataset: Dataset):
    ref = opened(store, dataset)
    lie = put_past_the_door(store, dataset, disguised(dataset, Role.BLIND, Role.TRAIN))
    cheat = model(store, replace(dataset, ref=lie), "cheat")
    with pytest.raises(VerificationError) as refused:
        holdouts.ask_holdout(store, ref, cheat, by="Bea")
    assert refused.value.reason == Refusal.FRAME_HELD_OUT
    assert not holdouts.holdout_state(store, ref).asked


def test_a_holdout_needs_frames_and_floors(store: Store, dataset: Dataset):
    only_leaks = RULES.model_copy(update={"gates": RULES.gates[1:]})
    with pytest.raises(ParameterError, match="no required gate of the kind `floor`"):
        holdouts.open_holdout(store, dataset.ref, only_leaks, budget=1, by="Ann")
    without = save_dataset(store, dataset.role(Role.SEED), made_by="part")
    with pytest.raises(DataError, match="no frames with the role blind"):
        holdouts.open_holdout(store, without, RULES, budget=1, by="Ann")
    record = store.get(opened(store, dataset), Holdout)
    assert [gate["name"] for gate in record.rules["gates"]] == ["recall"]
    assert len(record.frames) == 12
