"""Executed notebooks as pages that a stranger may open."""

from __future__ import annotations

from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from workbench.pipeline import recorder


def test_a_page_shows_everything_and_runs_nothing(tmp_path: Path) -> None:
    stream = new_output("stream", name="stdout", text="a <b> & c")
    evil = new_output("display_data", data={"text/html": "<script>alert(1)</script><i>shown</i>"})
    view = {"application/vnd.jupyter.widget-view+json": {"model_id": "x"}, "text/plain": "Slider()"}
    script = {"application/javascript": "alert(2)", "text/plain": "nothing"}
    widget, run = new_output("display_data", data=view), new_output("display_data", data=script)
    error = new_output("error", ename="KeyError", evalue="'gone'", traceback=["Traceback …"])
    cells = [
        new_markdown_cell("# Curate"),
        new_code_cell("x = 1", outputs=[stream, evil, widget, run, error]),
    ]
    notebook, page = tmp_path / "executed.ipynb", tmp_path / "out" / "page.html"
    nbformat.write(new_notebook(cells=cells), notebook)
    recorder.render_notebook(notebook, page, caption="trial <r1>")
    text = page.read_text()
    for part in ("Curate", "a &lt;b&gt; &amp; c", "shown", "Slider()", "Traceback", "&lt;r1&gt;"):
        assert part in text
    assert "alert(2)" not in text
    # What a notebook's own HTML brings is kept, and the page's policy keeps it from running.
    assert "default-src 'none'" in text
    assert "http://" not in text
    assert "https://" not in text


def test_what_was_printed_in_pieces_is_one_piece(tmp_path: Path) -> None:
    names = ("stdout", "stdout", "stderr", "stdout")
    said = [new_output("stream", name=name, text=f"line {n}\n") for n, name in enumerate(names)]
    notebook, page = tmp_path / "executed.ipynb", tmp_path / "page.html"
    nbformat.write(new_notebook(cells=[new_code_cell("x", outputs=said)]), notebook)
    recorder.render_notebook(notebook, page)
    assert page.read_text().count('class="output_area"') == 3
    assert "line 0\nline 1" in page.read_text()


def test_rubbish_is_an_error_and_leaves_no_page(tmp_path: Path) -> None:
    notebook = tmp_path / "executed.ipynb"
    notebook.write_text("rubbish")
    with pytest.raises(ValueError, match=r"(?i)json"):
        recorder.render_notebook(notebook, tmp_path / "page.html")
    assert not (tmp_path / "page.html").exists()
