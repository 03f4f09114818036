"""Lineage both ways: from a release to its drives, from a frame or a labeler to the models."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
from click.testing import CliRunner

from tests.pipeline import lineage_world, many_records
from tests.pipeline.lineage_world import LABELER, POOL, SAFETY, World
from workbench.cli import cli
from workbench.core import digest
from workbench.core.errors import RecordError
from workbench.core.workspace import Workspace
from workbench.pipeline.lineage import edges, page
from workbench.pipeline.lineage import graph as lineage
from workbench.pipeline.lineage.edges import EdgeIndex
from workbench.records.model_types import ExportBundle, StepRun
from workbench.records.store import Store
from workbench.records.types import Selection


@pytest.fixture
def world(store: Store) -> World:
    return lineage_world.make(store)


def ask(*arguments: str) -> dict[str, object]:
    result = CliRunner().invoke(cli, ["lineage", *arguments, "--json"], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    told: dict[str, object] = json.loads(result.stdout)
    return told


def ids(told: dict[str, object]) -> set[str]:
    return {node["id"] for node in told["nodes"]}  # type: ignore[attr-defined]


def test_backwards_reaches_drives_and_annotators(store: Store, world: World) -> None:
    graph = lineage.trace(store, world["release"])
    made = set(world.refs.values())
    assert made <= set(graph.nodes)
    assert {node["kind"] for node in graph.nodes.values()} == set(lineage.NODE_KINDS)
    assert (world["release"], world["run ingest"]) not in graph.edges
    assert (world["run train"], world["checkpoint"]) in graph.edges
    assert {(world["first"], world["run train"]), (world["second"], world["run train"])} <= set(
        graph.edges
    )
    text = lineage.graph_text(graph)
    assert text.startswith("release ")
    assert "ada <ada@example.org>  boxes" not in text.splitlines()[0]
    assert text.count("human") >= 1


def test_forwards_is_backwards_the_other_way(store: Store, world: World) -> None:
    for name in ("first", "selection", "checkpoint", "run send"):
        graph = lineage.trace(store, world[name], forward=True)
        assert world["release"] in graph.nodes
        for other, ref in world.refs.items():
            back = lineage.trace(store, ref)
            assert (world[name] in back.nodes) == (ref in graph.nodes), (name, other)
    assert set(lineage.trace(store, world["release"], forward=True).nodes) == {world["release"]}


def test_a_frame_leads_to_what_holds_it_and_what_became_of_that(world: World) -> None:
    told = ask(f"frame/{POOL[:8]}", "--forward")
    assert told["root"] == f"frame/{POOL}"
    assert {world[name] for name in ("first", "second", "selection", "batch", "release")} <= ids(
        told
    )
    direct = {edge["to"] for edge in told["edges"] if edge["from"] == told["root"]}  # type: ignore[attr-defined]
    assert direct == {world[name] for name in ("first", "second", "selection", "batch")}
    nodes = {node["id"]: node for node in told["nodes"]}  # type: ignore[attr-defined]
    assert nodes[world["first"]]["holds"] == {"role": "pool", "labels": 0}
    assert nodes[world["second"]]["holds"] == {"role": "pool", "labels": 1}
    other = ask(f"sha256:{SAFETY}", "--forward")
    assert world["selection"] in ids(other)  # made from a dataset that contains
    direct = {edge["to"] for edge in other["edges"] if edge["from"] == other["root"]}  # type: ignore[attr-defined]
    assert direct == {world["first"], world["second"]}


def test_a_frame_came_from_its_drive_and_its_labelers(world: World) -> None:
    told = ask(f"frame/{POOL}")
    assert ids(told) == {f"frame/{POOL}", "drive/north", f"label/human/{LABELER}"}


def test_a_labeler_leads_to_the_models_trained_on_the_work(world: World) -> None:
    told = ask(f"annotator/{LABELER}", "--forward")
    direct = {edge["to"] for edge in told["edges"] if edge["from"] == told["root"]}  # type: ignore[attr-defined]
    assert direct == {world["labels"], world["second"]}
    assert world["checkpoint"] in ids(told)
    assert world["first"] not in ids(told)


def test_a_model_file_leads_back_to_what_it_was_made_from(
    store: Store, world: World, tmp_path: Path
) -> None:
    first = store.get(world["bundle"], ExportBundle)
    bundle = store.put(first, {"int8.onnx": b"weights"})
    copy = tmp_path / "model.onnx"
    copy.write_bytes(b"weights")
    for reference in (str(copy), f"sha256:{digest.of_file(copy)[:16]}"):
        told = ask(reference)
        assert told["root"] == bundle
        assert world["checkpoint"] in ids(told)
    copy.write_bytes(b"others")
    with pytest.raises(RecordError, match="no record, frame or file"):
        CliRunner().invoke(cli, ["lineage", str(copy)], catch_exceptions=False)


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("frame/ffff", "no frame has this digest"),
        ("annotator/nobody", "unknown annotator"),
        ("sha256:ffffffff", "no record, frame or file"),
        ("sha256:" + "e" * 64, "no record, frame or file"),
        ("release/ffff", "no record has this digest"),
        ("nonsense", "unknown dataset name"),
    ],
)
@pytest.mark.usefixtures("world")
def test_what_is_not_there_is_said(reference: str, message: str) -> None:
    with pytest.raises(RecordError, match=message):
        CliRunner().invoke(cli, ["lineage", reference], catch_exceptions=False)


def test_missing_and_damaged_records_are_shown_not_raised(store: Store, world: World) -> None:
    damaged = store.folder(world["checkpoint"]) / "record.json"
    damaged.write_bytes(damaged.read_bytes().replace(b"car", b"bus"))
    (store.folder(world["first"]) / "COMPLETE").unlink()
    graph = lineage.trace(store, world["release"])
    assert "changed" in graph.nodes[world["checkpoint"]]["damaged"]
    assert graph.nodes[world["first"]]["missing"]
    text = lineage.graph_text(graph)
    assert "DAMAGED" in text
    assert "MISSING" in text


def test_the_index_takes_in_what_is_new_and_heals(workspace: Workspace, world: World) -> None:
    store = Store(workspace)
    before = len(EdgeIndex(store))
    path = workspace.index / edges.EDGES_FILE
    kept = path.read_bytes()
    assert len(EdgeIndex(store)) == before
    run = StepRun.model_validate(
        {**store.get(world["run curate"], StepRun).model_dump(), "parameters": {"n": 99}}
    )
    again = store.put(run)
    links = EdgeIndex(store)
    assert again in links
    assert links.run_of(world["selection"]) == world["run curate"]  # who made it first
    assert again in links.downstream(world["first"])
    path.write_bytes(kept[: len(kept) // 2] + b"rubbish")
    healed = EdgeIndex(store)
    assert len(healed) == before + 1
    assert healed.run_of(world["selection"]) == world["run curate"]
    (store.folder(again) / "record.json").unlink()
    store.folder(again).rename(store.folder(again).with_name(".gone"))
    assert again not in EdgeIndex(store)


def test_a_run_that_makes_what_it_was_given_is_no_endless_way(store: Store, world: World) -> None:
    run = StepRun.model_validate(
        {
            **store.get(world["run ingest"], StepRun).model_dump(),
            "step": "touch",
            "inputs": {"same": world["selection"]},
            "outputs": {"same": world["selection"]},
        }
    )
    store.put(run)
    assert world["selection"] in lineage.trace(store, world["release"]).nodes
    graph = lineage.trace(store, world["selection"], forward=True)
    assert "<svg" in page.show(graph).svg


def test_ten_thousand_records_stay_quick(store: Store) -> None:
    first, last = many_records.chains(store, 50, 100)
    EdgeIndex(store)  # each record is read once in its life
    started = time.monotonic()
    back = lineage.trace(store, last)
    assert time.monotonic() - started < 5
    assert sum(node["kind"] == "run" for node in back.nodes.values()) == 100
    forth = lineage.trace(store, first, forward=True)
    assert len(forth.nodes) == 10_001
    page.show(forth).html  # noqa: B018
    assert time.monotonic() - started < 20
    assert Selection.KIND in lineage.graph_text(forth)
