"""The picture of a graph: nodes do not overlap, edges point down, and names cannot inject code."""

from __future__ import annotations

import itertools
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
from click.testing import CliRunner

from docs import screenshots
from tests.pipeline.lineage import world as lineage_world
from tests.pipeline.lineage.world import World
from workbench.cli import cli
from workbench.pipeline.lineage import graph as graph_module
from workbench.pipeline.lineage import page as lineage
from workbench.pipeline.lineage.graph import LineageGraph
from workbench.pipeline.lineage.page import NODE_GAP, NODE_HEIGHT
from workbench.records.store import Store

EVIL = "</script><img src=x onerror=alert(1)>'\"&"


@pytest.fixture
def world(store: Store) -> World:
    return lineage_world.make(store)


def test_nodes_do_not_overlap_and_edges_point_down(store: Store, world: World) -> None:
    page = lineage.show(graph_module.trace(store, world["release"]))
    widths = {name: 180.0 + len(node["kind"]) for name, node in page.nodes.items()}
    layout = lineage.lay_out(widths, page.edges)
    rows: dict[float, list[str]] = {}
    for name, (_, y) in layout.centres.items():
        rows.setdefault(y, []).append(name)
    for names in rows.values():
        names.sort(key=lambda name: layout.centres[name][0])
        for left, right in itertools.pairwise(names):
            free = (
                layout.centres[right][0]
                - layout.centres[left][0]
                - (widths[left] + widths[right]) / 2
            )
            assert free >= NODE_GAP - 1e-6
    for start, end in page.edges:
        assert layout.centres[start][1] + NODE_HEIGHT <= layout.centres[end][1]
        assert len(layout.paths[start, end]) >= 2
    assert (
        max(x + widths[name] / 2 for name, (x, _) in layout.centres.items()) <= layout.width + 1e-6
    )


def test_an_empty_graph_and_a_cycle_have_a_picture() -> None:
    assert lineage.lay_out({}, []).height == NODE_HEIGHT
    nodes = {name: {"kind": "run", "step": name} for name in "abc"}
    graph = LineageGraph(nodes, (("a", "b"), ("b", "c"), ("c", "a")), "a")
    assert lineage.show(graph).svg.count("<path data-from") == 3


def test_code_is_folded_into_runs_and_shortcuts_are_left_out(store: Store, world: World) -> None:
    page = lineage.show(graph_module.trace(store, world["release"]))
    kinds = {node["kind"] for node in page.nodes.values()}
    assert not kinds & {"notebook", "environment"}
    output = {node["kind"] for node in page.nodes[world["run train"]]["with"]}
    assert output == {"notebook", "environment"}
    assert (world["bundle"], world["release"]) in page.graph.edges
    assert (world["gates"], world["release"]) not in page.edges  # over the run that released
    downstream = graph_module.trace(
        store, *[ref for ref in page.graph.nodes if ref.startswith("notebook")], forward=True
    )
    assert downstream.root in lineage.show(downstream).nodes


def test_the_heading_names_the_root(store: Store, world: World) -> None:
    back = lineage.show(graph_module.trace(store, world["release"])).html
    assert "<small>Upstream of</small> release front</h1>" in back
    forth = lineage.show(graph_module.trace(store, world["checkpoint"], forward=True)).html
    digest = world["checkpoint"].split("/")[1][:12]
    assert f"<small>Downstream of</small> checkpoint {digest}</h1>" in forth


def test_names_cannot_inject_html(tmp_path: Path) -> None:
    node = {"kind": "dataset", "digest": "0" * 64, "name": EVIL, "frames": 1}
    page = lineage.show(LineageGraph({f"dataset/{EVIL}": node}, (), f"dataset/{EVIL}"))
    assert "<img" not in page.html
    assert page.html.count("</script>") == 2
    assert "'sha256-" in page.html
    assert "unsafe-inline'; script" in page.html
    page.write_svg(tmp_path / "p.svg")
    ET.parse(tmp_path / "p.svg")  # noqa: S314 - our own file: it has to be well formed
    assert "sandbox='allow-scripts'" in page._repr_html_()
    assert EVIL not in page._repr_html_()


def test_the_command_writes_html_and_svg(world: World, tmp_path: Path) -> None:
    html, svg = tmp_path / "deep" / "l.html", tmp_path / "l.svg"
    arguments = ["lineage", world["release"], "--html", str(html), "--svg", str(svg)]
    result = CliRunner().invoke(cli, arguments, catch_exceptions=False)
    assert result.exit_code == 0
    assert f"wrote {html}" in result.stderr
    assert "release" in result.stdout
    for path in (html, svg):
        text = path.read_text()
        assert "front" in text
        for address in ("https://", "src="):
            assert address not in text


@pytest.mark.browser
@pytest.mark.skipif(screenshots.chromium() is None, reason="needs Chromium")
def test_a_click_shows_details_and_paths_of_a_node(
    store: Store, world: World, tmp_path: Path
) -> None:
    path = tmp_path / "l.html"
    shown = lineage.show(graph_module.trace(store, world["release"]))
    shown.write_html(path)
    with screenshots.browser() as page:
        problems: list[str] = []
        page.on("console", lambda message: problems.append(message.text))
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.goto(path.as_uri())
        page.locator("#fit").click()
        page.locator(f".node[data-id='{world['run curate']}']").click()
        page.locator("#details h2", has_text="curate.ipynb").wait_for(timeout=5000)
        assert page.locator("#details").get_by_text("the run's environment").count() == 1
        on = page.locator(".node.on").evaluate_all("all => all.map(one => one.dataset.id)")
        assert {world["first"], world["release"]} <= set(on)
        page.keyboard.press("Escape")
        assert page.locator(".node.on").count() == 0
        page.fill("#search", "checkp")
        assert page.locator(".node.on").count() == 1
        page.set_content(shown._repr_html_())  # as a notebook shows it
        box = page.frame_locator("iframe").locator(".node.root")
        page.frame_locator("iframe").locator("#details").wait_for(state="attached")
        width = 0.0
        for _ in range(50):  # the script sets the scale once the frame has its size
            width = (box.bounding_box() or {"width": 0.0})["width"]
            if 100 < width < 300:
                break
            page.wait_for_timeout(100)
        assert 100 < width < 300
        assert problems == []
