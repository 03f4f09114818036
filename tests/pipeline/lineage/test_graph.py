"""Lineage in both directions, from records, frames, annotators and files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from tests.pipeline.lineage import many_records
from tests.pipeline.lineage import world as lineage_world
from tests.pipeline.lineage.world import LABELER, POOL, SAFETY, World
from workbench.cli import cli
from workbench.core import digest
from workbench.core.errors import RecordError
from workbench.core.workspace import Workspace
from workbench.pipeline.lineage import graph, page
from workbench.pipeline.lineage import graph as lineage
from workbench.pipeline.lineage.graph import EdgeIndex
from workbench.records.model_types import ExportBundle, StepRun
from workbench.records.store import Store
from workbench.records.types import Selection


@pytest.fixture
def world(store: Store) -> World:
    return lineage_world.make(store)


def run_lineage(*arguments: str) -> dict[str, object]:
    result = CliRunner().invoke(cli, ["lineage", *arguments, "--json"], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    output: dict[str, object] = json.loads(result.stdout)
    return output


def ids(output: dict[str, object]) -> set[str]:
    return {node["id"] for node in output["nodes"]}  # type: ignore[attr-defined]


def test_upstream_reaches_drives_and_annotators(store: Store, world: World) -> None:
    graph = lineage.trace(store, world["release"])
    refs = set(world.refs.values())
    assert refs <= set(graph.nodes)
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


def test_downstream_is_the_inverse_of_upstream(store: Store, world: World) -> None:
    for name in ("first", "selection", "checkpoint", "run send"):
        graph = lineage.trace(store, world[name], forward=True)
        assert world["release"] in graph.nodes
        for other, ref in world.refs.items():
            back = lineage.trace(store, ref)
            assert (world[name] in back.nodes) == (ref in graph.nodes), (name, other)
    assert set(lineage.trace(store, world["release"], forward=True).nodes) == {world["release"]}


def test_a_frame_leads_to_its_datasets_and_their_models(world: World) -> None:
    output = run_lineage(f"frame/{POOL[:8]}", "--forward")
    assert output["root"] == f"frame/{POOL}"
    assert {world[name] for name in ("first", "second", "selection", "batch", "release")} <= ids(
        output
    )
    direct = {edge["to"] for edge in output["edges"] if edge["from"] == output["root"]}  # type: ignore[attr-defined]
    assert direct == {world[name] for name in ("first", "second", "selection", "batch")}
    nodes = {node["id"]: node for node in output["nodes"]}  # type: ignore[attr-defined]
    assert nodes[world["first"]]["holds"] == {"role": "pool", "labels": 0}
    assert nodes[world["second"]]["holds"] == {"role": "pool", "labels": 1}
    other = run_lineage(f"sha256:{SAFETY}", "--forward")
    assert world["selection"] in ids(other)  # made from a dataset that contains
    direct = {edge["to"] for edge in other["edges"] if edge["from"] == other["root"]}  # type: ignore[attr-defined]
    assert direct == {world["first"], world["second"]}


def test_a_frame_has_its_drive_and_annotators_upstream(world: World) -> None:
    output = run_lineage(f"frame/{POOL}")
    assert ids(output) == {f"frame/{POOL}", "drive/north", f"label/human/{LABELER}"}


def test_an_annotator_leads_to_models_trained_on_the_labels(world: World) -> None:
    output = run_lineage(f"annotator/{LABELER}", "--forward")
    direct = {edge["to"] for edge in output["edges"] if edge["from"] == output["root"]}  # type: ignore[attr-defined]
    assert direct == {world["labels"], world["second"]}
    assert world["checkpoint"] in ids(output)
    assert world["first"] not in ids(output)


def test_a_model_file_leads_to_its_bundle(store: Store, world: World, tmp_path: Path) -> None:
    first = store.get(world["bundle"], ExportBundle)
    bundle = store.put(first, {"int8.onnx": b"weights"})
    copy = tmp_path / "model.onnx"
    copy.write_bytes(b"weights")
    for reference in (str(copy), f"sha256:{digest.of_file(copy)[:16]}"):
        output = run_lineage(reference)
        assert output["root"] == bundle
        assert world["checkpoint"] in ids(output)
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
        ("release/ffff", "no release has this digest"),
        ("nonsense", "unknown dataset name"),
    ],
)
@pytest.mark.usefixtures("world")
def test_unknown_references_are_errors(reference: str, message: str) -> None:
    with pytest.raises(RecordError, match=message):
        CliRunner().invoke(cli, ["lineage", reference], catch_exceptions=False)


def test_missing_and_damaged_records_are_marked(store: Store, world: World) -> None:
    damaged = store.folder(world["checkpoint"]) / "record.json"
    damaged.write_bytes(damaged.read_bytes().replace(b"car", b"bus"))
    (store.folder(world["first"]) / "COMPLETE").unlink()
    graph = lineage.trace(store, world["release"])
    assert "changed" in graph.nodes[world["checkpoint"]]["damaged"]
    assert graph.nodes[world["first"]]["missing"]
    text = lineage.graph_text(graph)
    assert "DAMAGED" in text
    assert "MISSING" in text


def test_the_index_adds_new_records_and_repairs_itself(workspace: Workspace, world: World) -> None:
    store = Store(workspace)
    before = len(EdgeIndex(store))
    path = workspace.index / graph.EDGES_FILE
    content = path.read_bytes()
    assert len(EdgeIndex(store)) == before
    run = StepRun.model_validate(
        {**store.get(world["run curate"], StepRun).model_dump(), "parameters": {"n": 99}}
    )
    again = store.put(run)
    links = EdgeIndex(store)
    assert again in links
    assert links.run_of(world["selection"]) == world["run curate"]  # who made it first
    assert again in links.downstream(world["first"])
    path.write_bytes(content[: len(content) // 2] + b"rubbish")
    repaired = EdgeIndex(store)
    assert len(repaired) == before + 1
    assert repaired.run_of(world["selection"]) == world["run curate"]
    (store.folder(again) / "record.json").unlink()
    store.folder(again).rename(store.folder(again).with_name(".gone"))
    assert again not in EdgeIndex(store)


def test_a_cycle_ends(store: Store, world: World) -> None:
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


def test_ten_thousand_records_are_traced_and_drawn(store: Store) -> None:
    first, last = many_records.chains(store, 50, 100)
    EdgeIndex(store)  # each record is read once in its life
    back = lineage.trace(store, last)
    assert sum(node["kind"] == "run" for node in back.nodes.values()) == 100
    forth = lineage.trace(store, first, forward=True)
    assert len(forth.nodes) == 10_001
    assert page.show(forth).html
    assert Selection.KIND in lineage.graph_text(forth)
