"""FiftyOne on the real mongod: what is published, replaced, tagged and read back."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.curation.conftest import make_checkpoint, make_dataset, record_step
from workbench import api, cli, curation
from workbench.core.errors import DataError, ParameterError, ServiceError
from workbench.core.workspace import Workspace
from workbench.curation.fiftyone import publishing
from workbench.curation.fiftyone.evaluations import publish_evaluations
from workbench.curation.fiftyone.publishing import PLUGIN
from workbench.records.dataset import Dataset, load_dataset, save_dataset
from workbench.records.frames import Box, Role
from workbench.records.store import Store
from workbench.records.types import Prediction, SelectedFrame, Selection

NAME = "curation-contract"


@pytest.fixture(scope="module")
def dataset(attached: Workspace) -> Dataset:
    return make_dataset(attached, drives=4, per_drive=4)


def selection_of(dataset: Dataset, rows: list[int]) -> Selection:
    pool = dataset.role(Role.POOL).frames
    return Selection(
        dataset="dataset/" + "0" * 64,
        budget=len(rows),
        seed=0,
        method="test",
        chosen=tuple(
            SelectedFrame(
                frame=pool[row].id,
                rank=rank,
                score=0.5,
                arm="random" if rank == len(rows) else "mined",
                reasons=(f"reason {row}", "and more"),
            )
            for rank, row in enumerate(rows, start=1)
        ),
    )


def test_publish_shows_everything_of_a_frame(attached: Workspace, dataset: Dataset) -> None:
    import fiftyone as fo

    selection = selection_of(dataset, [0, 3, 5])
    first = selection.chosen[0].frame
    box = Box(x=12, y=20, w=60, h=30)
    predictions = [Prediction(frame=first, cls="cyclist", box=box, score=0.75)]
    curation.publish(
        attached, dataset, predictions, selection, NAME, scores={first: {"rarity": 0.9}}
    )
    shown = fo.load_dataset(NAME)
    assert shown.persistent
    assert set(shown.values("frame")) == {frame.id for frame in dataset.frames}
    sample = shown.match(fo.ViewField("frame") == first).first()
    assert (sample.drive, sample.light, sample.role) == ("drive-1", "day", "pool")
    assert sample.reason == "reason 0; and more"
    assert (sample.rank, sample.rarity) == (1, 0.9)
    found = sample.predictions.detections[0]
    assert (found.label, found.confidence) == ("cyclist", 0.75)
    assert found.bounding_box == pytest.approx([0.1, 0.25, 0.5, 0.375])
    assert sample.ground_truth is None
    labelled = shown.match(fo.ViewField("role") == "seed").first()
    assert labelled.ground_truth.detections[0].origin == "imported"
    assert shown.load_saved_view("mined").values("frame") == [
        choice.frame for choice in selection.chosen[:2]
    ]
    assert shown.load_saved_view("random").values("frame") == [selection.chosen[2].frame]
    assert curation.is_published(attached, selection, NAME)


def test_publishing_again_replaces_content_and_keeps_peoples_tags(
    attached: Workspace, dataset: Dataset
) -> None:
    import fiftyone as fo

    first = selection_of(dataset, [0, 3, 5])
    curation.publish(attached, dataset, (), first, NAME)
    frame = first.chosen[0].frame
    before = dict(zip(*fo.load_dataset(NAME).values(["frame", "id"]), strict=True))
    curation.tag_frames(NAME, [frame], "odd", by="mia", workspace=attached)
    fewer = dataset.where(lambda one: one.drive != "drive-3")
    second = selection_of(dataset, [1, 4])
    curation.publish(attached, fewer, (), second, NAME)
    shown = fo.load_dataset(NAME)
    tags = dict(zip(*shown.values(["frame", "tags"]), strict=True))
    assert set(tags) == {one.id for one in fewer.frames}
    assert tags[frame] == ["odd"]
    assert [tags[choice.frame] for choice in second.chosen] == [["mined"], ["random"]]
    assert dict(zip(*shown.values(["frame", "id"]), strict=True)).items() <= before.items()
    assert shown.count("predictions.detections") == 0
    assert not curation.is_published(attached, first, NAME)
    assert curation.is_published(attached, second, NAME)


def test_a_workspace_that_moved_is_published_afresh(attached: Workspace, dataset: Dataset) -> None:
    import fiftyone as fo

    name = f"{NAME}-moved"
    selection = selection_of(dataset, [0, 2])
    curation.publish(attached, dataset, (), selection, name)
    shown = fo.load_dataset(name)
    shown.set_values("filepath", ["/elsewhere/x.png"] * len(shown))
    assert not curation.is_published(attached, selection, name)
    curation.publish(attached, dataset, (), selection, name)
    assert all(Path(path).is_file() for path in shown.values("filepath"))


def test_tags_say_who_and_when(attached: Workspace, dataset: Dataset) -> None:
    name = f"{NAME}-tags"
    curation.publish(attached, dataset, (), None, name)
    frames = [frame.id for frame in dataset.frames[:3]]
    assert curation.tag_frames(name, frames[:2], "odd", by="mia", workspace=attached) == 2
    assert curation.tag_frames(name, frames, "odd", by="tom", workspace=attached) == 1
    assert set(curation.tagged_frames(name, "odd", workspace=attached)) == set(frames)
    log = curation.read_tag_log(name, workspace=attached)
    assert [(entry["by"], entry["frames"]) for entry in log] == [
        ("mia", frames[:2]),
        ("tom", frames[2:]),
    ]
    assert all(entry["at"].startswith("20") for entry in log)


def test_what_cannot_be_tagged_says_why(attached: Workspace, dataset: Dataset) -> None:
    name = f"{NAME}-tags"
    curation.publish(attached, dataset, (), None, name)
    with pytest.raises(DataError, match="1 frame not in the FiftyOne dataset"):
        curation.tag_frames(name, ["f" * 64], "odd", workspace=attached)
    with pytest.raises(ParameterError, match="reserved tag 'mined'"):
        curation.tag_frames(name, [dataset.frames[0].id], "mined", workspace=attached)
    with pytest.raises(DataError, match="FiftyOne has no dataset 'nowhere'"):
        curation.tagged_frames("nowhere", "odd", workspace=attached)
    with pytest.raises(DataError, match="no frames to publish"):
        curation.publish(attached, dataset.where(lambda _: False), name=name)


def test_a_dataset_of_somebody_else_is_left_alone(attached: Workspace, dataset: Dataset) -> None:
    import fiftyone as fo

    foreign = fo.Dataset(f"{NAME}-foreign", persistent=True)
    foreign.add_sample(fo.Sample(filepath="/nowhere.jpg"))
    with pytest.raises(ParameterError, match="was not made by the workbench"):
        curation.publish(attached, dataset, name=foreign.name)
    assert len(foreign) == 1


def test_without_a_server_it_says_what_to_run(
    attached: Workspace, dataset: Dataset, tmp_path: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FIFTYONE_DATABASE_URI", "mongodb://127.0.0.1:9")
    with pytest.raises(ServiceError, match=r"mongod does not answer.*workbench up"):
        curation.publish(attached, dataset, name=NAME)


def test_nothing_is_started_by_fiftyone_itself(workspace: Workspace) -> None:
    """In a workspace without servers it refuses before FiftyOne is even imported."""
    code = (
        "import sys; from workbench import curation\n"
        "from workbench.core.errors import ServiceError\n"
        "try: curation.tagged_frames('x', 'y')\n"
        "except ServiceError as error: print(error, 'fiftyone' in sys.modules)\n"
    )
    clean = {key: value for key, value in os.environ.items() if not key.startswith("FIFTYONE")}
    ran = subprocess.run(
        [sys.executable, "-c", code], env=clean, capture_output=True, text=True, check=True
    )
    assert "workbench up" in ran.stdout
    assert ran.stdout.rstrip().endswith("False")


def test_mine_publishes_its_selection_and_tags_it(
    attached: Workspace,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("WORKBENCH_HOME", str(attached.root))
    store = Store(attached)
    ref = save_dataset(store, make_dataset(attached, drives=4, per_drive=4), made_by="test")
    make_checkpoint(store, ref, tmp_path / "weights")
    with pytest.raises(SystemExit) as exit_info:
        cli.main(["mine", ref, "--budget", "3", "--tag", "odd", "--json"])
    assert not exit_info.value.code
    result = json.loads(capsys.readouterr().out)
    name = load_dataset(store, ref).name
    assert result["fiftyone"] == f"in FiftyOne: dataset {name!r}, saved view 'mined'"
    selection = api.Selection(attached, result["selection"])
    assert curation.is_published(attached, selection.record, name)
    assert set(curation.tagged_frames(name, "odd", workspace=attached)) == set(selection.frames)


def test_models_are_evaluated_where_there_are_labels(attached: Workspace, dataset: Dataset) -> None:
    import fiftyone as fo

    labelled = [label for label in dataset.labels if label.cls == "car"]
    right = [Prediction(frame=one.frame, cls=one.cls, box=one.box, score=0.9) for one in labelled]
    seed = next(frame for frame in dataset.frames if frame.role is Role.SEED)
    wrong = Prediction(frame=seed.id, cls="car", box=Box(x=1, y=1, w=4, h=4), score=0.8)
    models = {"models:/front/1": right, "checkpoint/ab": [*right[:1], wrong]}
    curation.publish(attached, dataset, [], selection_of(dataset, [0, 3]), "mined-frames")
    failures = {"checkpoint/ab": {seed.id: ["class", "nothing"]}}
    runs = publish_evaluations(attached, dataset, models, "curation-contract@1", failures=failures)
    assert runs == ("eval_models_front_1", "eval_checkpoint_ab")
    shown = fo.load_dataset("curation-contract@1")
    assert len(shown) == len(dataset.frames), "frames of every role"
    colored = {one["path"] for one in shown.app_config.color_scheme.fields}
    assert {"ground_truth", "model_models_front_1", "model_checkpoint_ab"} <= colored
    assert set(shown.list_evaluations()) == set(runs)
    counts = {run: shown.load_evaluation_results(run).metrics() for run in runs}
    assert counts[runs[0]]["precision"] == 1 and counts[runs[0]]["support"] == len(dataset.labels)
    assert counts[runs[1]]["precision"] == 0.5
    pool = shown.match(fo.ViewField("role") == "pool")
    assert not any(pool.values("eval_models_front_1_fn")), "without labels nothing is missed"
    misses = shown.load_saved_view("missed: checkpoint_ab")
    assert sum(misses.values("eval_checkpoint_ab_fn")) == len(dataset.labels) - 1
    assert shown.load_saved_view("by drive").first().drive == "drive-0"
    assert shown.load_saved_view("missed (class): checkpoint_ab").values("frame") == [seed.id]
    night = shown.load_saved_view("slice: light=night")
    assert night.distinct("light") == ["night"] and len(night) == 4
    # Published again, it is replaced; mined views under another name stay.
    publish_evaluations(attached, dataset, {"models:/front/1": []}, "curation-contract@1")
    shown.reload()
    assert "missed (class): checkpoint_ab" in shown.list_saved_views(), "of another model"
    missed = shown.values("eval_models_front_1_fn")  # None on frames without labels
    assert sum(count or 0 for count in missed) == len(dataset.labels)
    assert len(fo.load_dataset("mined-frames").match_tags("mined")) == 1
    with pytest.raises(ParameterError, match="one name in FiftyOne"):
        publish_evaluations(attached, dataset, {"a/1": [], "a 1": []}, "curation-contract@1")


@pytest.fixture(scope="module")
def published(attached: Workspace, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A dataset in FiftyOne, beside a model that finds nothing."""
    store = Store(attached)
    ref = save_dataset(store, make_dataset(attached, drives=5, per_drive=3), made_by="test")
    checkpoint = make_checkpoint(store, ref, tmp_path_factory.mktemp("weights"))
    record_step(store, "baseline", {"checkpoint": checkpoint})
    # A part of a version, as `workbench app --role` publishes it.
    part = load_dataset(store, ref).role("seed", "pool")
    publish_evaluations(attached, part, {"blind": []}, "buttons@1", version=ref)
    return "buttons@1"


@pytest.fixture
def app(
    attached: Workspace, published: str, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., tuple[str, list[Any]]]:
    """Press a button of the App: what it answers, and what it asks of the page."""
    import fiftyone as fo
    import fiftyone.operators as foo

    monkeypatch.setenv("WORKBENCH_HOME", str(attached.root))
    monkeypatch.setattr(fo.config, "plugins_dir", str(PLUGIN))

    def press(operator: str, frames: Sequence[str] = (), **params: Any) -> tuple[str, list[Any]]:
        ids = dict(zip(*fo.load_dataset(published).values(["frame", "id"]), strict=True))
        context = {
            "dataset": published,
            "selected": [ids[one] for one in frames],
            **{
                key: params.pop(key)
                for key in ("selected", "selected_labels", "view")
                if key in params
            },
            "params": params,
        }
        done = foo.execute_operator(f"@workbench/workbench/{operator}", context)
        return done.result["answer"], done.executor.to_json()["requests"]

    return press


def test_mining_from_the_app_shows_the_chosen_frames_to_who_asked(
    attached: Workspace, app: Callable[..., tuple[str, list[Any]]]
) -> None:
    import fiftyone as fo
    from fiftyone.operators.executor import ExecutionError

    shown = fo.load_dataset("buttons@1")
    answer, asked = app("mine", budget=3)
    assert answer.startswith("3 frames mined, kept as `selection/")
    assert [one["operator_uri"].rpartition("/")[2] for one in asked] == [
        "set_view",
        "clear_selected_samples",
    ]
    selection = api.Selection(attached, curation.newest_selection(Store(attached)))
    [stage] = asked[0]["params"]["view"]
    names = dict(zip(*shown.values(["id", "frame"]), strict=True))
    chosen = dict(stage["kwargs"])["sample_ids"]
    assert [names[one] for one in chosen] == list(selection.frames)
    shown.reload()
    assert not shown.match_tags("mined"), "what others see stays"
    # Like a selected frame, and like a box on it.
    pool = [one for one in selection.dataset.frames if one.role is Role.POOL]
    answer, _ = app("more_like_this", [pool[0].id], budget=2)
    assert "2 frames mined" in answer and "similar to" in answer
    with pytest.raises(ExecutionError, match="Select frames, or boxes on frames, first"):
        app("more_like_this", budget=2)


def test_sending_from_the_app_sends_the_selected_frames(
    app: Callable[..., tuple[str, list[Any]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    import fiftyone as fo

    from workbench.widgets import browser

    sent: list[Any] = []

    def send(workspace: Workspace, selection: Selection, reason: str) -> Callable[[Any], str]:
        def act(frames: tuple[str, ...]) -> str:
            sent.append((selection.dataset, selection.model, reason, frames))
            return f"{len(frames)} sent"

        return act

    monkeypatch.setattr(browser, "send_action", send)
    frames = fo.load_dataset("buttons@1").limit(2).values("frame")
    assert app("send_to_labelers", frames, reason="odd")[0] == "2 sent"
    [(version, model, reason, chosen)] = sent
    assert version == fo.load_dataset("buttons@1").info["workbench"]["dataset"]
    assert model.startswith("checkpoint/") and reason == "odd" and list(chosen) == frames


def test_missed_labels_become_an_incident_from_the_app(
    attached: Workspace, app: Callable[..., tuple[str, list[Any]]]
) -> None:
    import fiftyone as fo

    from workbench.data.incidents import find_incident, load_incident

    shown = fo.load_dataset("buttons@1")
    seed = shown.match(fo.ViewField("role") == "seed")
    frame = seed.first()
    box = frame.ground_truth.detections[0]
    details = {"why": "not seen", "by": "mia"}
    answer, asked = app("add_to_incidents", [seed.first().frame], name="Bad Name", **details)
    assert "incident name" in answer and asked[0]["params"]["variant"] == "error"
    # All that the evaluation calls missed on the frame; then one label; then a patch of a miss.
    assert app("add_to_incidents", [frame.frame], name="from-frame", **details)[0].startswith(
        "from-frame: 1 object"
    )
    picked = [{"label_id": box.id, "sample_id": frame.id, "field": "ground_truth"}]
    app("add_to_incidents", selected_labels=picked, name="from-label", **details)
    missed = shown.to_evaluation_patches("eval_blind").match(fo.ViewField("type") == "fn")
    patch = dict(zip(*missed.values(["sample_id", "id"]), strict=True))[frame.id]
    app("add_to_incidents", selected=[patch], view=missed, name="from-patch", **details)
    for name in ("from-frame", "from-label", "from-patch"):
        state = find_incident(Store(attached), name)
        assert state.record is not None and state.record.found_in == "fiftyone"
        [label] = load_incident(Store(attached), state.ref).labels
        assert label.frame == frame.frame and label.id == box.digest
    pool = shown.match(fo.ViewField("role") == "pool").first()
    answer, _ = app("add_to_incidents", [pool.frame], name="nothing", **details)
    assert answer.startswith("nothing is selected"), "no labels, so no misses"


def test_lineage_from_the_app(app: Callable[..., tuple[str, list[Any]]]) -> None:
    answer, _ = app("show_lineage")
    assert "drawn" in answer and "frames 15" in answer and "drives 5" in answer


def test_the_apps_server_finds_workspace_and_plugins(
    attached: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import fiftyone as fo

    own = tmp_path / "own"
    own.mkdir()
    monkeypatch.setattr(fo.config, "plugins_dir", str(own))
    monkeypatch.delenv("WORKBENCH_HOME", raising=False)
    for _ in range(2):  # opened twice
        with publishing._server_environment(fo, attached):
            folder = Path(os.environ["FIFTYONE_PLUGINS_DIR"])
            assert os.environ["WORKBENCH_HOME"] == str(attached.root)
            assert (folder / "workbench" / "fiftyone.yml").is_file()
            assert (folder / "own").resolve() == own
    assert "WORKBENCH_HOME" not in os.environ
