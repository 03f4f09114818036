"""Notebooks as tests run them: cell by cell, in this process."""

import importlib.util
import json
from pathlib import Path
from types import ModuleType

EXPLORE = Path(__file__).resolve().parents[2] / "notebooks" / "explore"


def run_cells(path: Path, **parameters: object) -> dict[str, object]:
    """Run the code cells of a notebook with other parameters; returns its names."""
    names: dict[str, object] = {}
    for cell in json.loads(path.read_text())["cells"]:
        if cell["cell_type"] == "code":
            exec("".join(cell["source"]), names)  # noqa: S102 - our own notebook
        if "parameters" in cell["metadata"].get("tags", ()):
            names |= parameters
    return names


def load_app(name: str) -> ModuleType:
    """A marimo app as a module: its functions can be called."""
    spec = importlib.util.spec_from_file_location(name, EXPLORE / "apps" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
