"""Several real labelers on a real server: agreement, adjudication, gold frames, time limits."""

from __future__ import annotations

import json
from pathlib import Path

import httpx
import numpy as np
import pytest
from click.testing import CliRunner

from tests.contracts.conftest import exported_tasks
from tests.labeling.conftest import MODEL, Sample, make_sample
from tests.servers import Servers
from workbench import labeling
from workbench.cli.labeling import label as label_command
from workbench.core.errors import ParameterError, Waiting
from workbench.labeling import LabelingOptions, LabelingRule, LabelStudio
from workbench.labeling.answers import AnswerRow
from workbench.labeling.regions import DrawnObject, to_regions
from workbench.labeling.sender import priority_order
from workbench.records import dataset
from workbench.records.base import Ref, digest_of
from workbench.records.frames import Box, Frame, Label, Origin
from workbench.records.references import resolve_dataset
from workbench.records.types import Agreement, DatasetVersion, LabelBatch, LabelSet

HERE, THERE = Box(x=3, y=4, w=50.5, h=60.25), Box(x=120, y=40, w=30, h=30)


@pytest.fixture(scope="module")
def people(servers: Servers, server: LabelStudio) -> dict[str, LabelStudio]:
    return {
        name: server.as_user(
            f"{name}@example.org",
            "correct horse 7",
            token_file=servers.workspace.secrets / f"{name}-token",
        )
        for name in ("ann", "ben", "cleo")
    }


@pytest.fixture
def fresh(servers: Servers, request: pytest.FixtureRequest) -> Sample:
    return make_sample(servers.workspace, request.node.name[:40], 3)


def draw(
    who: LabelStudio, frame: Frame, task: int, *boxes: tuple[str, Box], seconds: float = 30
) -> None:
    drawn = [DrawnObject(f"r{number}", cls, box) for number, (cls, box) in enumerate(boxes)]
    regions = [part for one in drawn for part in to_regions(one, frame.width, frame.height)]
    who.annotate(task, regions, lead_time_s=seconds)


def test_an_invited_labeler_can_sign_in_and_is_made_once(
    servers: Servers, server: LabelStudio, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORKBENCH_HOME", str(servers.workspace.root))
    call = CliRunner().invoke
    first = call(label_command, ["invite", "Dora@example.org", "--json"], catch_exceptions=False)
    (email, file), *others = json.loads(first.stdout)["accounts"].items()
    assert (email, others) == ("dora@example.org", [])
    assert Path(file).stat().st_mode & 0o077 == 0 and Path(file).read_text() not in first.stdout
    signed_in = httpx.Client(base_url=server.url)
    signed_in.get("/user/login/")
    form = {"email": email, "password": Path(file).read_text()}
    form["csrfmiddlewaretoken"] = signed_in.cookies["csrftoken"]
    answer = signed_in.post("/user/login/", data=form, headers={"Referer": server.url})
    assert answer.status_code == 302, "the form is shown again if the password is wrong"
    again = call(label_command, ["invite", email], catch_exceptions=False)
    assert "dora@example.org: has an account already" in again.stdout
    link = json.loads(call(label_command, ["invite", "--json"]).stdout)["link"]
    assert "sign up" in httpx.get(link).text.lower()
    wrong = call(label_command, ["invite", "dora"])
    assert isinstance(wrong.exception, ParameterError)


def test_disagreements_are_adjudicated_blind_and_merged(
    fresh: Sample,
    server: LabelStudio,
    people: dict[str, LabelStudio],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("WORKBENCH_HOME", str(fresh.workspace.root))
    batch = labeling.make_batch(fresh.store, fresh.ref, fresh.selection, overlap=1.0)
    sent = labeling.send(fresh.workspace, server, batch)
    tasks = server.task_by_frame(sent.project, digest_of(batch))
    same, missed, named = fresh.frames
    for name in ("ann", "ben"):
        draw(people[name], same, tasks[same.id], ("car", HERE))
        draw(people[name], missed, tasks[missed.id], *[("car", HERE)][: name == "ann"])
        draw(people[name], named, tasks[named.id], ("car" if name == "ann" else "pedestrian", HERE))
    labels = run("collect", batch)["labels"]
    assert isinstance(labels, str)

    result = run("agreement", batch)
    assert (result["frames"], result["disputed"]) == (3, 2)
    (whole,) = (one for one in result["rates"] if one["subject"] == "all")  # type: ignore[attr-defined]
    assert (whole["n"], whole["missed"], whole["iou"]) == (5, 0.2, 1.0)

    settling = run("adjudicate", labels)
    assert settling["sent"] == 2 and settling["project"] != sent.project
    assert run("adjudicate", labels)["sent"] == 0
    again = str(settling["batch"])
    shown = json.dumps(exported_tasks(server, int(str(settling["project"]))))
    assert "ann@example.org" not in shown and "ben@example.org" not in shown
    tasks = server.task_by_frame(int(str(settling["project"])), digest_of(again))
    draw(people["ann"], missed, tasks[missed.id], ("car", HERE))
    draw(people["cleo"], named, tasks[named.id], ("pedestrian", HERE))
    with pytest.raises(Waiting, match="answers to correct") as waiting:
        labeling.collect(fresh.workspace, server, again)
    assert "your own boxes are disputed" in str(waiting.value.hint)
    draw(people["cleo"], missed, tasks[missed.id])
    exported = {one["id"]: one for one in exported_tasks(server, int(str(settling["project"])))}
    me = whoami(people["ann"])
    given = exported[tasks[missed.id]]["annotations"]
    mine = next(one["id"] for one in given if one["completed_by"] == me)
    people["ann"]._sdk.annotations.delete(mine)

    merged = run("collect", again, "--merge")
    version = str(merged["dataset"])
    final = dataset.load_dataset(fresh.store, version).labels_by_frame
    assert final[missed.id] == ()
    assert [(one.cls, one.origin, one.annotator) for one in final[named.id]] == [
        ("pedestrian", Origin.HUMAN, "cleo@example.org")
    ]
    parents = fresh.store.get(version, DatasetVersion).parents
    kinds = [ref.partition("/")[0] for ref in parents]
    assert kinds == ["dataset", "label", "agreement", "label"]
    assert fresh.store.get(parents[2], Agreement).disputed == 2

    done = run("withdraw", version, "--annotator", "cleo@example.org", "--reason", "consent")
    assert done["frames_back_in_pool"] == 2 and done["models"] == []
    name = fresh.dataset.name
    number = int(str(merged["version"]).removeprefix(f"{name}@"))
    assert done["version"] == f"{name}@{number + 1}"
    assert resolve_dataset(fresh.workspace, name) == done["dataset"]


def test_a_team_of_one_is_told_and_can_collect(
    fresh: Sample,
    server: LabelStudio,
    people: dict[str, LabelStudio],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("WORKBENCH_HOME", str(fresh.workspace.root))
    sent = run("send", fresh.selection, "--overlap", "0.34")
    assert sent["several"] == 1
    batch, project = str(sent["batch"]), int(str(sent["project"]))
    tasks = server.task_by_frame(project, digest_of(batch))
    for frame in fresh.frames:
        draw(people["ann"], frame, tasks[frame.id], ("car", HERE))
    (status,) = run("status", batch)["batches"]  # type: ignore[misc]
    assert (status["done"], status["partly"], status["complete"]) == (2, 1, False)
    with pytest.raises(Waiting, match="2 of 3 frames labeled, 1 waits for another") as waiting:
        labeling.collect(fresh.workspace, server, batch)
    assert "--fewer-labelers" in str(waiting.value.hint)
    collected = run("collect", batch, "--fewer-labelers", "--merge")
    assert collected["boxes"] == 3
    # The step of a waiting run then takes the same labels.
    assert labeling.collect(fresh.workspace, server, batch) == collected["labels"]


def test_gold_frames_measure_each_labeler_and_keep_their_labels(
    fresh: Sample, server: LabelStudio, people: dict[str, LabelStudio]
) -> None:
    """The third frame has two boxes that are known; Ann finds both, Ben one."""
    selection = chosen_without(fresh, fresh.frames[2])
    options = LabelingOptions(gold=1)
    batch = labeling.make_batch(fresh.store, fresh.ref, selection, options=options)
    gold = fresh.store.get(batch, LabelBatch).gold
    (known,) = (frame for frame in fresh.frames if frame.id in gold)
    truth = fresh.boxes(known.id)
    sent = labeling.send(fresh.workspace, server, batch)
    tasks = server.task_by_frame(sent.project, digest_of(batch))
    assert "gold" not in json.dumps(exported_tasks(server, sent.project))
    for frame in fresh.frames:
        if frame.id in tasks and frame.id not in gold:
            draw(people["ann"], frame, tasks[frame.id])
    draw(people["ann"], known, tasks[known.id], *(("car", one.box) for one in truth))
    draw(people["ben"], known, tasks[known.id])
    labels = labeling.collect(fresh.workspace, server, batch)
    record = fresh.store.get(labeling.assess_agreement(fresh.store, labels), Agreement)
    missed = {
        one.name: one.missed
        for one in record.rates
        if (one.subject, one.against) == ("labeler", "gold")
    }
    assert missed == {"ann@example.org": 0.0, "ben@example.org": 1.0}
    merged = labeling.merge(fresh.store, fresh.dataset, labels)
    assert merged.labels_by_frame[known.id] == truth
    suspects = labeling.suspects_from_agreement(
        fresh.store, labeling.assess_agreement(fresh.store, labels)
    )
    assert known.id in {one.frame for one in suspects if one.kind == "poor"}


def test_answers_below_the_minimum_time_are_returned(
    fresh: Sample, server: LabelStudio, people: dict[str, LabelStudio]
) -> None:
    options = LabelingOptions(
        (LabelingRule("all", min_seconds=10), LabelingRule("vru", labelers=3, priority=2))
    )
    batch = labeling.make_batch(
        fresh.store, fresh.ref, fresh.selection, MODEL, fresh.predictions, options=options
    )
    sent = labeling.send(fresh.workspace, server, batch)
    tasks = server.task_by_frame(sent.project, digest_of(batch))
    order = sorted(tasks, key=lambda frame: tasks[frame])
    assert order == priority_order(fresh.store.get(batch, LabelBatch))
    for frame in fresh.frames:
        draw(people["ann"], frame, tasks[frame.id], seconds=2 if frame is fresh.frames[0] else 12)
    with pytest.raises(Waiting) as waiting:
        labeling.collect(fresh.workspace, server, batch)
    assert "labeled in 2 s; this frame needs at least 10 s" in str(waiting.value.hint)
    draw(people["ann"], fresh.frames[0], tasks[fresh.frames[0].id], seconds=15)
    ref = labeling.collect(fresh.workspace, server, batch)
    notes = {task["data"]["note"] for task in exported_tasks(server, sent.project)}
    assert notes == {""}  # what was mended is no longer asked for
    rows = dataset.read_json_lines(fresh.store.payload(ref, "answers.jsonl"), AnswerRow)
    assert sum(row.removed for row in rows) == len(fresh.predictions)
    effort = labeling.labeling_effort(fresh.store, [ref])
    assert effort.minutes == pytest.approx((12 + 12 + 15) / 60)
    rows_ = fresh.store.payload(ref, "annotations.jsonl").read_text().splitlines()
    assert len(rows_) == 4 and sum('"counts":false' in line for line in rows_) == 1


def test_drafts_and_predictions_are_not_labels(
    fresh: Sample, server: LabelStudio, people: dict[str, LabelStudio]
) -> None:
    batch = fresh.batch()
    sent = labeling.send(fresh.workspace, server, batch)
    tasks = server.task_by_frame(sent.project, digest_of(batch))
    ann = people["ann"]
    box = to_regions(DrawnObject("d", "car", HERE), fresh.frames[0].width, fresh.frames[0].height)
    ann._client.request(
        "POST", f"/api/tasks/{tasks[fresh.frames[0].id]}/drafts", json={"result": box}
    )
    state = labeling.batch_status(fresh.workspace, server, batch)
    assert (state.done, state.drafts) == (0, 1)
    for frame in fresh.frames:
        draw(ann, frame, tasks[frame.id])
    ref = labeling.collect(fresh.workspace, server, batch)
    assert fresh.store.get(ref, LabelSet).labels == 0
    rows = dataset.read_json_lines(fresh.store.payload(ref, "labels.jsonl"), Label)
    assert rows == ()


@pytest.mark.slow
def test_five_hundred_boxes_survive_the_round_trip(
    servers: Servers, server: LabelStudio, people: dict[str, LabelStudio]
) -> None:
    """None lost, none doubled, none moved."""
    sample = make_sample(servers.workspace, "five-hundred", 100)
    batch = labeling.make_batch(sample.store, sample.ref, sample.selection)
    sent = labeling.send(sample.workspace, server, batch)
    tasks = server.task_by_frame(sent.project, digest_of(batch))
    generator = np.random.default_rng(0)
    drawn: dict[str, list[tuple[float, ...]]] = {}
    for number, frame in enumerate(sample.frames):
        corners = generator.uniform((0, 0), (frame.width - 40, frame.height - 30), (5, 2))
        sizes = generator.uniform((1, 1), (40, 30), (5, 2))
        boxes = [
            Box(x=float(x), y=float(y), w=float(w), h=float(h))
            for (x, y), (w, h) in zip(corners, sizes, strict=True)
        ]
        drawn[frame.id] = sorted(box.xyxy for box in boxes)
        who = people["ann" if number % 2 else "ben"]
        draw(who, frame, tasks[frame.id], *(("car", box) for box in boxes))
    ref = labeling.collect(sample.workspace, server, batch)
    collected: dict[str, list[tuple[float, ...]]] = {}
    for label in dataset.read_json_lines(sample.store.payload(ref, "labels.jsonl"), Label):
        collected.setdefault(label.frame, []).append(label.box.xyxy)
    assert collected.keys() == drawn.keys() and sum(map(len, collected.values())) == 500
    moved = [np.abs(np.array(sorted(collected[one])) - np.array(drawn[one])).max() for one in drawn]
    assert max(moved) < 1e-6


def run(*arguments: str) -> dict[str, object]:
    result = CliRunner().invoke(label_command, [*arguments, "--json"], catch_exceptions=False)
    assert result.exit_code == 0
    answer: dict[str, object] = json.loads(result.stdout)
    return answer


def whoami(user: LabelStudio) -> int:
    email = user.whoami()
    return next(number for number, name in user.users().items() if name == email)


def chosen_without(sample: Sample, gold: Frame) -> Ref:
    from workbench.records.types import Selection

    selection = sample.store.get(sample.selection, Selection)
    rows_ = tuple(choice for choice in selection.chosen if choice.frame != gold.id)
    return sample.store.put(selection.model_copy(update={"chosen": rows_}))
