"""Executed notebooks as pages: one file without scripts, which opens from disk years later."""

from __future__ import annotations

import html
from functools import lru_cache
from pathlib import Path
from typing import Any

from workbench import workspace
from workbench.pipeline.contracts import ipynb

_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; font-src data:"
_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #1d2430; background: #fff;
       max-width: 1080px; margin: 2rem auto; padding: 0 1.5rem; }
.cell { margin: 0 0 1rem; }
.code_cell { display: block; }
.prompt { font: 11px ui-monospace, monospace; color: #8a94a3; }
.input_area { background: #f6f7f9; border: 1px solid #e3e7ec; border-radius: 6px; overflow: auto; }
pre { font: 12.5px/1.45 ui-monospace, monospace; margin: 0; padding: .6rem .8rem; overflow: auto; }
.output_area pre { color: #38414e; white-space: pre-wrap; overflow-wrap: anywhere; }
.output_stderr pre { background: #fff6ec; }
.output_error pre { background: #fdeeee; }
img { max-width: 100%; height: auto; }
table { border-collapse: collapse; margin: .5rem 0; font-size: 13px; }
th, td { border: 1px solid #e3e7ec; padding: .25rem .6rem; text-align: left; }
.anchor-link { display: none; }
footer { margin-top: 3rem; color: #8a94a3; font-size: 12px; border-top: 1px solid #e3e7ec; }
"""
_VIEWS = ("application/vnd.jupyter.widget-view+json", "application/javascript")


def render(notebook: Path, target: Path, *, caption: str = "") -> None:
    """Write an executed notebook as HTML; what only a kernel could show keeps its plain text.

    Args:
        caption: A line at the foot of the page: which run this was.

    Raises:
        ValueError: The file is no notebook.
        OSError: It cannot be read or written.
    """
    content = ipynb.import_nbformat().read(str(notebook), as_version=4)
    for cell in content.cells:
        if "outputs" in cell:
            cell["outputs"] = _joined(cell["outputs"])
        for output in cell.get("outputs", []):
            for view in _VIEWS:
                output.get("data", {}).pop(view, None)
    exporter, colours = _exporter()
    body, _ = exporter.from_notebook_node(content)
    page = (
        "<!doctype html><html lang='en'><head><meta charset='utf-8'>"
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        f"<title>{html.escape(notebook.parent.name)}</title>"
        f"<style>{_STYLE}{colours}</style></head>"
        f"<body>{body}<footer>{html.escape(caption)}</footer></body></html>"
    )
    workspace.write_atomic(target, page.encode())


def attempt(notebook: Path, target: Path, caption: str) -> dict[str, str]:
    """As `render`, failing nothing: what kept a page from being drawn is returned as a tag."""
    try:
        render(notebook, target, caption=caption)
    except Exception as error:
        return {"workbench.page": f"could not be drawn: {error}"[:500]}
    return {}


def _joined(outputs: list[Any]) -> list[Any]:
    """Outputs with what was printed in pieces put together again."""
    made: list[Any] = []
    for output in outputs:
        stream = output["output_type"] == "stream"
        if stream and made and made[-1].get("name") == output["name"]:
            made[-1]["text"] += output["text"]
        else:
            made.append(output)
    return made


@lru_cache(maxsize=1)
def _exporter() -> tuple[Any, str]:
    """Made once: its import and templates cost over a second, a notebook a tenth of that."""
    from nbconvert import HTMLExporter
    from pygments.formatters import HtmlFormatter  # type: ignore[import-untyped]

    colours: str = HtmlFormatter(style="friendly").get_style_defs(".highlight")
    exporter = HTMLExporter(template_name="basic")  # type: ignore[no-untyped-call]
    return exporter, colours
