"""Round trips through a real Label Studio: nothing lost, nothing duplicated."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import requests
from click.testing import CliRunner

from tests.contracts.conftest import exported_tasks
from tests.labeling.conftest import Sample, make_sample
from tests.servers import Servers
from workbench import labeling, services
from workbench.cli.labeling import label as label_command
from workbench.core.errors import ParameterError, ServiceError, Waiting
from workbench.labeling import LabelStudio, sender, sync
from workbench.labeling.answers import AnswerRow, region_id
from workbench.labeling.regions import DrawnObject, to_regions
from workbench.records import dataset
from workbench.records.base import Ref, digest_of
from workbench.records.frames import Box, Frame, Label, Origin
from workbench.records.types import LabelSet, Prediction
from workbench.widgets import sent_batches


@pytest.fixture(scope="module")
def ada(servers: Servers, server: LabelStudio) -> LabelStudio:
    """A labeler who is no replay."""
    token = servers.workspace.secrets / "ada-token"
    return server.as_user("ada@example.org", "correct horse 7", token_file=token)


@pytest.fixture
def fresh(servers: Servers, request: pytest.FixtureRequest) -> Sample:
    """Frames that no other test has sent, in the servers' own workspace."""
    return make_sample(servers.workspace, request.node.name[:40], 5)


def answer(
    labeler: LabelStudio, frame: Frame, task: int, *boxes: DrawnObject, seconds: float = 30
) -> None:
    regions = [part for box in boxes for part in to_regions(box, frame.width, frame.height)]
    labeler.annotate(task, regions, lead_time_s=seconds)


def labels_of(sample: Sample, labelset: Ref) -> list[Label]:
    return list(dataset.read_json_lines(sample.store.payload(labelset, "labels.jsonl"), Label))


def test_a_second_send_writes_nothing(fresh: Sample, server: LabelStudio) -> None:
    batch = fresh.batch()
    seen: list[tuple[int, int]] = []
    first = labeling.send(fresh.workspace, server, batch, progress=lambda *at: seen.append(at))
    assert (first.sent, first.already) == (5, 0)
    assert seen[-1] == (5, 5)
    before = exported_tasks(server, first.project)
    second = labeling.send(fresh.workspace, server, batch)
    assert (second.sent, second.already, second.project) == (0, 5, first.project)
    assert exported_tasks(server, first.project) == before
    assert sum(task["total_predictions"] for task in before) == 3  # frames with boxes


def test_a_send_killed_before_its_index_entry_is_completed(
    fresh: Sample, server: LabelStudio, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = fresh.batch()

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(sync, "write_entry", killed)
        labeling.send(fresh.workspace, server, batch)
    arrived = labeling.send(fresh.workspace, server, batch)
    assert (arrived.sent, arrived.already) == (5, 0)  # only the project had been made

    (fresh.workspace.root / "labeling" / f"{digest_of(batch)}.json").unlink()
    assert labeling.send(fresh.workspace, server, batch).sent == 0
    assert len(exported_tasks(server, arrived.project)) == 5


def test_a_partial_import_is_completed(
    fresh: Sample, server: LabelStudio, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The call fails after the server took part of it: what is missing follows, nothing else."""
    real, calls = server.import_tasks, []

    def breaks_once(project: int, tasks: list[dict[str, object]]) -> list[int]:
        calls.append(len(tasks))
        if len(calls) == 1:
            real(project, tasks[:2])
            raise ServiceError("connection lost")
        return real(project, tasks)

    monkeypatch.setattr(server, "import_tasks", breaks_once)
    monkeypatch.setattr(sender, "_IMPORT_WAITS_S", (0.1,))
    sent = labeling.send(fresh.workspace, server, fresh.batch())
    assert calls == [5, 3]
    frames = [task["data"]["frame"] for task in exported_tasks(server, sent.project)]
    assert sorted(frames) == sorted(frame.id for frame in fresh.frames)


def test_images_are_served_from_the_media_folder(fresh: Sample, server: LabelStudio) -> None:
    sent = labeling.send(fresh.workspace, server, fresh.batch())
    admin = services.label_studio_admin(fresh.workspace)
    shown = exported_tasks(server, sent.project)[0]["data"]
    headers = {"Authorization": f"Token {admin.token}"}
    image = requests.get(f"{server.url}{shown['image']}", headers=headers, timeout=20)
    frame = next(frame for frame in fresh.frames if frame.id == shown["frame"])
    assert image.content == dataset.media_path(fresh.workspace, frame).read_bytes()


def test_replay_is_idempotent_and_marked_as_simulated(fresh: Sample, server: LabelStudio) -> None:
    batch = fresh.batch(overlap=0.4)
    labeling.send(fresh.workspace, server, batch)
    first = labeling.replay(fresh.workspace, server, batch, fresh.dataset, seed=7)
    assert (first.drawn, first.already) == (7, 0)
    second = labeling.replay(fresh.workspace, server, batch, fresh.dataset, seed=7)
    assert (second.drawn, second.already) == (0, 7)

    ref = labeling.collect(fresh.workspace, server, batch)
    labelset = fresh.store.get(ref, LabelSet)
    labels = labels_of(fresh, ref)
    assert labelset.simulated and labelset.agreement["frames"] == 2
    assert {one.origin for one in labels} == {Origin.REPLAYED}
    assert {one.labeled_at for one in labels} == {None}
    assert len(labelset.annotators) == 2
    assert all(one.simulated and one.minutes is None for one in labelset.annotators)
    merged = labeling.merge(fresh.store, fresh.dataset, ref)
    assert len(merged.labels) == len(fresh.dataset.labels)

    # A collected batch is a record: neither the clock nor the server changes it any more.
    assert labeling.collect(fresh.workspace, server, batch, refresh=True) == ref
    for secret in fresh.workspace.secrets.glob("label-studio-replay-*"):
        assert secret.stat().st_mode & 0o077 == 0


def test_every_kind_of_answer_is_collected(
    fresh: Sample, server: LabelStudio, ada: LabelStudio
) -> None:
    batch = fresh.batch()
    sent = labeling.send(fresh.workspace, server, batch)
    tasks = server.task_by_frame(sent.project, digest_of(batch))
    empty, accepted, edited, skipped, own = fresh.frames
    first = predictions_of(fresh, accepted)[0]
    moved = predictions_of(fresh, edited)[0]
    away = moved.box.model_copy(update={"w": moved.box.w - 2})
    answer(ada, empty, tasks[empty.id])
    answer(ada, accepted, tasks[accepted.id], DrawnObject(region_id(first), "car", first.box))
    answer(ada, edited, tasks[edited.id], DrawnObject(region_id(moved), "car", away, occluded=0.25))
    ada.annotate(tasks[skipped.id], [], skipped=True)
    with pytest.raises(Waiting, match="4 of 5") as waiting:
        labeling.collect(fresh.workspace, server, batch)
    assert waiting.value.where == sent.url

    box = Box(x=3, y=4, w=50.5, h=60.25)
    answer(ada, own, tasks[own.id], DrawnObject("mine", "pedestrian", box), seconds=90)
    ref = labeling.collect(fresh.workspace, server, batch)
    labels = {one.frame: one for one in labels_of(fresh, ref)}
    assert {frame: one.origin for frame, one in labels.items()} == {
        accepted.id: Origin.HUMAN_ACCEPTED,
        edited.id: Origin.HUMAN_EDITED,
        own.id: Origin.HUMAN,
    }
    assert labels[own.id].box.xyxy == pytest.approx(box.xyxy, abs=1e-6)
    assert labels[edited.id].occluded == 0.25
    assert labels[own.id].labeled_at is not None
    labelset = fresh.store.get(ref, LabelSet)
    assert labelset.skipped == (skipped.id,) and not labelset.simulated
    (person,) = labelset.annotators
    assert (person.id, person.frames, person.minutes) == ("ada@example.org", 5, 3.0)
    rows = dataset.read_json_lines(fresh.store.payload(ref, "answers.jsonl"), AnswerRow)
    assert [row.frame for row in rows if row.skipped] == [skipped.id]


def test_an_invalid_box_is_returned_to_its_labeler(
    fresh: Sample, server: LabelStudio, ada: LabelStudio
) -> None:
    batch = fresh.batch()
    sent = labeling.send(fresh.workspace, server, batch)
    labeling.replay(fresh.workspace, server, batch, fresh.dataset, seed=1)
    task = server.task_by_frame(sent.project, digest_of(batch))[fresh.frames[0].id]
    outside = DrawnObject("r", "car", Box(x=230, y=4, w=50, h=60))
    answer(ada, fresh.frames[0], task, outside)
    state = labeling.batch_status(fresh.workspace, server, batch)
    assert (state.done, state.total, state.complete) == (4, 5, False)
    assert (state.invalid[0].annotator, state.invalid[0].frame) == (
        "ada@example.org",
        fresh.frames[0].id,
    )
    with pytest.raises(Waiting, match="answers to correct") as waiting:
        labeling.collect(fresh.workspace, server, batch)
    assert "leaves the 241x143 image" in str(waiting.value.hint)
    answer(ada, fresh.frames[0], task)
    assert labeling.collect(fresh.workspace, server, batch)


def test_a_project_with_another_schema_is_an_error(fresh: Sample, server: LabelStudio) -> None:
    title = f"taken {fresh.dataset.name}"[:50]
    config = '<View><Image name="i" value="$image"/><RectangleLabels name="b" toName="i">'
    config += '<Label value="boat"/></RectangleLabels></View>'
    server.create_project(title, config, description="", instruction="")
    with pytest.raises(ParameterError, match="boat"):
        labeling.send(fresh.workspace, server, fresh.batch(), title)


def test_a_deleted_project_is_created_again(fresh: Sample, server: LabelStudio) -> None:
    batch = fresh.batch()
    first = labeling.send(fresh.workspace, server, batch)
    server._sdk.projects.delete(first.project)
    with pytest.raises(ParameterError, match="project was deleted"):
        labeling.batch_status(fresh.workspace, server, batch)
    again = labeling.send(fresh.workspace, server, batch)
    assert again.sent == 5 and again.project != first.project


def test_a_lost_token_is_replaced(servers: Servers, server: LabelStudio, tmp_path: Path) -> None:
    token = tmp_path / "token"
    for _ in range(2):
        user = server.as_user("grace@example.org", "correct horse 7", token_file=token)
        assert user.whoami() == "grace@example.org"
        assert token.stat().st_mode & 0o077 == 0
        token.unlink()
    with pytest.raises(ServiceError, match="rejects the user grace"):
        server.as_user("grace@example.org", "another", token_file=token)


def test_an_unreachable_server_is_an_error_with_a_hint() -> None:
    with pytest.raises(ServiceError, match="does not respond") as error:
        labeling.connect("http://127.0.0.1:9", "token")
    assert "workbench up" in str(error.value.hint)


def test_a_wrong_token_is_an_error(server: LabelStudio) -> None:
    with pytest.raises(ServiceError, match="rejects the token"):
        labeling.connect(server.url, "0" * 40)


def test_the_status_widget_at_a_real_server(fresh: Sample, server: LabelStudio) -> None:
    batch = fresh.batch()
    labeling.send(fresh.workspace, server, batch)
    labeling.replay(fresh.workspace, server, batch, fresh.dataset, seed=1)
    for entry in (fresh.workspace.root / "labeling").glob("*.json"):
        if entry.stem != digest_of(batch):
            entry.unlink()  # other tests' batches, some of whose projects are gone
    widget = sent_batches(fresh.workspace)
    assert [state.batch for state in widget.states] == [batch]
    widget.collect_buttons[batch].click()
    assert widget.message.value.startswith("collected: label/")
    assert widget.states[0].collected and widget.collect_buttons == {}


def test_webhooks_name_the_batch_that_changed(fresh: Sample, server: LabelStudio) -> None:
    batch = fresh.batch()
    sent = labeling.send(fresh.workspace, server, batch)
    task = server.task_by_frame(sent.project, digest_of(batch))[fresh.frames[0].id]
    nothing = f"batch/{'0' * 64}"
    other = labeling.send(fresh.workspace, server, fresh.batch(0.5)).project
    with sync.listen(server, {sent.project: batch, other: nothing}) as events:
        assert events.wait(0.1, 0) == [nothing, batch]
        server.annotate(task, [])
        assert events.wait(10, 0) == [batch]
        address = server._client.request("GET", "/api/webhooks/", params={"project": sent.project})
        (hook,) = address.json()
        forged = requests.post(hook["url"], json={"project": {"id": sent.project}}, timeout=10)
        assert forged.status_code == 403 and len(events.wait(0.2, 0)) == 2
    left = server._client.request("GET", "/api/webhooks/", params={"project": sent.project})
    assert left.json() == []


def test_the_command_line(
    fresh: Sample, server: LabelStudio, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORKBENCH_HOME", str(fresh.workspace.root))
    batch = fresh.batch()

    def run(*arguments: str) -> dict[str, object]:
        result = CliRunner().invoke(label_command, [*arguments, "--json"], catch_exceptions=False)
        assert result.exit_code == 0
        answer: dict[str, object] = json.loads(result.stdout)
        return answer

    assert run("send", batch)["sent"] == 5
    (state,) = run("status", batch)["batches"]  # type: ignore[misc]
    assert (state["done"], state["total"]) == (0, 5)
    labeling.replay(fresh.workspace, server, batch, fresh.dataset, seed=1)
    collected = run("collect", f"batch/{digest_of(batch)[:12]}", "--merge")
    assert collected["simulated"] is True
    assert str(collected["dataset"]).startswith("dataset/")


def predictions_of(sample: Sample, frame: Frame) -> list[Prediction]:
    return [one for one in sample.predictions if one.frame == frame.id]
