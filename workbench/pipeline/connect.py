"""Connect a notebook to its run: ``step = workbench.step()``.

In a pipeline, a step reads its inputs from a spec file and writes results into its run folder,
where the runner reads them while the notebook is running. By hand in JupyterLab, the same notebook
uses the inputs of its newest run, or else the newest records of the right kinds, and writes to a
scratch folder.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from workbench.core.errors import WorkbenchError
from workbench.core.workspace import write_atomic
from workbench.data.drawing import use_neutral_style
from workbench.pipeline.step import Step

__all__ = ["step"]

SPEC_VARIABLE = "WORKBENCH_STEP_SPEC"


def step() -> Step:
    """Connect the running notebook to its run, or to a scratch folder when run by hand."""
    use_neutral_style()
    spec_file = os.environ.get(SPEC_VARIABLE)
    if spec_file:
        current = Step.from_spec(json.loads(Path(spec_file).read_bytes()), headless=True)
        from workbench.core.processes import die_with_parent

        die_with_parent()
    else:
        from workbench.pipeline import interactive

        current = interactive.connect_interactive()
    _report_failures(current.folder)
    return current


def _report_failures(folder: Path) -> None:
    """Write expected errors as data, so that the runner does not have to parse tracebacks."""
    try:
        from IPython import get_ipython
    except ImportError:
        return
    shell = get_ipython()  # type: ignore[no-untyped-call]
    if shell is None:
        return

    def report(shell: Any, etype: Any, error: Any, tb: Any, tb_offset: int | None = None) -> Any:
        failure = {
            "kind": error.kind,
            "message": error.what,
            "where": error.where,
            "hint": error.hint,
        }
        write_atomic(folder / "failure.json", json.dumps(failure).encode())
        trace = shell.InteractiveTB.structured_traceback(etype, error, tb, tb_offset=tb_offset)
        shell._showtraceback(etype, error, trace)
        return trace

    shell.set_custom_exc((WorkbenchError,), report)
