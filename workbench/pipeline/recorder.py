"""Write a run to MLflow while it happens, from a background thread."""

from __future__ import annotations

import html
import queue
import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from workbench.core import digest, workspace
from workbench.core.errors import WorkbenchError
from workbench.pipeline import git_state, ipynb, openlineage
from workbench.pipeline import runs as history
from workbench.pipeline.lineage.edges import EdgeIndex
from workbench.pipeline.runner import EXECUTED_NOTEBOOK
from workbench.pipeline.step_output import StepFiles, resources
from workbench.pipeline.unit import RESULT_FILE
from workbench.records.base import Ref
from workbench.records.model_types import Release, StepRun
from workbench.records.store import Store
from workbench.tracking import MetricPoint, Tracker, record_tags

_PAGE_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; font-src data:"
_PAGE_STYLE = """
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
_WIDGET_TYPES = ("application/vnd.jupyter.widget-view+json", "application/javascript")


def render_notebook(notebook: Path, target: Path, *, caption: str = "") -> None:
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
            cell["outputs"] = _merge_streams(cell["outputs"])
        for output in cell.get("outputs", []):
            for view in _WIDGET_TYPES:
                output.get("data", {}).pop(view, None)
    exporter, colours = _html_exporter()
    body, _ = exporter.from_notebook_node(content)
    page = (
        "<!doctype html><html lang='en'><head><meta charset='utf-8'>"
        f'<meta http-equiv="Content-Security-Policy" content="{_PAGE_POLICY}">'
        f"<title>{html.escape(notebook.parent.name)}</title>"
        f"<style>{_PAGE_STYLE}{colours}</style></head>"
        f"<body>{body}<footer>{html.escape(caption)}</footer></body></html>"
    )
    workspace.write_atomic(target, page.encode())


def _try_render_notebook(notebook: Path, target: Path, caption: str) -> dict[str, str]:
    """As `render`, failing nothing: what kept a page from being drawn is returned as a tag."""
    try:
        render_notebook(notebook, target, caption=caption)
    except Exception as error:
        return {"workbench.page": f"could not be drawn: {error}"[:500]}
    return {}


def _merge_streams(outputs: list[Any]) -> list[Any]:
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
def _html_exporter() -> tuple[Any, str]:
    """Made once: its import and templates cost over a second, a notebook a tenth of that."""
    from nbconvert import HTMLExporter
    from pygments.formatters import HtmlFormatter  # type: ignore[import-untyped]

    colours: str = HtmlFormatter(style="friendly").get_style_defs(".highlight")
    exporter = HTMLExporter(template_name="basic")  # type: ignore[no-untyped-call]
    return exporter, colours


# ---- Writes a run into MLflow while it happens, from a thread of its own.
#
# MLflow takes seconds to import and can be slow to answer; the steps do not wait for it. What could
# not be written is not lost: every finished step carries a mark once MLflow has all of it, and the
# next run writes what is missing from the step's folder.


TRACKED_MARK = "mlflow"
"""Side file of a step's run record once MLflow has it."""

PAGE_FILE = "executed.html"
LOCK_FILE = "requirements.lock"


@dataclass(frozen=True)
class StepStart:
    """What is known when a step starts. An input of several records is a tuple of them."""

    step: str
    parameters: Mapping[str, Any]
    inputs: Mapping[str, Ref | tuple[Ref, ...]]
    tags: Mapping[str, str]
    folder: Path

    def named_inputs(self) -> dict[str, Ref]:
        """Each input record under a name of its own: ``name``, or ``name[0]`` and so on."""
        named: dict[str, Ref] = {}
        for name, given in self.inputs.items():
            if isinstance(given, str):
                named[name] = given
            else:
                named |= {f"{name}[{at}]": ref for at, ref in enumerate(given)}
        return named


class RunRecorder:
    """One pipeline run in MLflow, and as OpenLineage events where those are asked for.

    All methods return at once, except `close`.

    Args:
        connect: Makes the tracker, which may take seconds and may fail.
        tags: On the run and all its steps; ``workbench.pipeline``, ``.run`` and ``.workspace``
            among them.
        project: The folder whose git state and lock are kept with the run.
        secrets: Values by name that must not leave with the git diff.
    """

    def __init__(
        self,
        connect: Callable[[], Tracker],
        store: Store,
        tags: Mapping[str, str],
        *,
        project: Path | None = None,
        secrets: Mapping[str, str] | None = None,
    ) -> None:
        self._store = store
        self._tags = dict(tags)
        self._project = project or Path.cwd()
        self._secrets = dict(secrets or {})
        self._source_tags: dict[str, str] = {}
        self._work: queue.Queue[Callable[[], None] | None] = queue.Queue()
        self._children: dict[str, str] = {}
        self._makers: dict[Ref, str] = {}
        self._edges: EdgeIndex | None = None
        self._parent = ""
        self._stopped: tuple[str, str] | None = None
        self._error: Exception | None = None
        self._connect = connect
        self._tracker: Tracker | None = None
        self._events = openlineage.events_from_environment(
            pipeline=tags["workbench.pipeline"],
            run_id=tags["workbench.run"],
            workspace=tags["workbench.workspace"],
        )
        self._thread = threading.Thread(target=self._drain, name="mlflow", daemon=True)
        self._thread.start()

    def begin(self, name: str, parameters: Mapping[str, Any]) -> None:
        """Begin the parent run, and end those that a killed runner left running."""

        def work() -> None:
            same = ("workbench.pipeline", "workbench.workspace")
            self._mlflow.end_abandoned({key: self._tags[key] for key in same}, self._alive())
            self._parent = self._mlflow.start(name, tags=self._tags, parameters=parameters)
            url = self._mlflow.run_url(self._parent)
            history.save_mlflow_url(self._store.workspace, self._tags["workbench.run"], url)
            self._keep_source()

        if self._events:
            self._events.end_abandoned(self._store.workspace)
            self._events.run_begun(parameters)
        self._work.put(work)

    def _alive(self) -> set[str]:
        """Runs of this workspace whose runner is still at work."""
        runs = history.list_runs(self._store.workspace, self._tags["workbench.pipeline"])
        return {run.run_id for run in runs if run.alive}

    def step_begun(self, begun: StepStart) -> None:
        if self._events:
            inputs = list(begun.named_inputs().values())
            notebook = begun.tags.get("workbench.notebook", "")
            self._events.step_begun(begun.step, begun.parameters, inputs, notebook)
        self._work.put(lambda: self._start(begun))

    def points(self, step: str, points: list[MetricPoint]) -> None:
        if points:
            self._work.put(lambda: self._mlflow.log_points(self._children[step], points))

    def step_ended(
        self, begun: StepStart, status: str, tags: Mapping[str, str], run: Ref | None
    ) -> None:
        """End a step's run with its files; ``run`` is its record when it finished well.

        A step that is FINISHED without a record waits for people.
        """
        if status != "FINISHED":
            self._stopped = (status, f"{begun.step}: {tags.get('workbench.failure', 'cancelled')}")
        if self._events:
            self._events.step_ended(
                begun.step,
                status,
                inputs=list(begun.named_inputs().values()),
                outputs=list(self._store.get(run, StepRun).outputs.values()) if run else (),
                reason=tags.get("workbench.failure", ""),
                waiting=status == "FINISHED" and run is None,
            )
        self._work.put(lambda: self._finish(begun, status, tags, run))

    def register(self, step: str, release_ref: Ref, bundle: Path, notes: Mapping[str, str]) -> None:
        """Register a release as ``candidate``, and as ``champion`` when its gates passed."""

        def work() -> None:
            release = self._store.get(release_ref, Release)
            run_id = self._children[step]
            self._mlflow.log_files(run_id, [bundle], "bundle")
            aliases = ["candidate", *(["champion"] if release.promoted else [])]
            tags = {
                **notes,
                "workbench.release": release_ref,
                "workbench.bundle": release.bundle,
                "workbench.gates": release.gates,
                "workbench.verdict": release.verdict.value,
            }
            version = self._mlflow.register(
                release.model, run_id, source="bundle", tags=tags, aliases=aliases
            )
            self._store.write_side(release_ref, "registry", {"version": version, "run": run_id})

        self._work.put(work)

    def write_missing(self, begun: StepStart, run: Ref) -> None:
        """Write a step that finished earlier but never reached MLflow."""
        self._work.put(lambda: self._start(begun))
        self.points(begun.step, StepFiles(begun.folder).points())
        self._work.put(lambda: self._finish(begun, "FINISHED", {"workbench.written": "later"}, run))

    def end(self, status: str, tags: Mapping[str, str]) -> None:
        """End the parent run; a step that failed or was cancelled says how and why."""
        if self._stopped is not None:
            status, reason = self._stopped
            tags = {"workbench.failure": reason, **tags}
        if self._events:
            waiting = tags.get("workbench.waiting") == "True"
            self._events.run_ended(status, tags.get("workbench.failure", ""), waiting=waiting)
        self._work.put(lambda: self._mlflow.end(self._parent, status, tags))

    def close(self) -> Exception | None:
        """Wait until all is written; returns what kept it from being, if anything did."""
        self._work.put(None)
        self._thread.join()
        if self._events:
            self._events.close()
        return self._error

    @property
    def _mlflow(self) -> Tracker:
        if self._tracker is None:
            self._tracker = self._connect()
        return self._tracker

    def _drain(self) -> None:
        while (work := self._work.get()) is not None:
            if self._error is None:
                self._attempt(work)

    def _attempt(self, work: Callable[[], None]) -> None:
        try:
            work()
        except WorkbenchError:
            try:
                self._tracker = self._connect()  # it may have been restarted elsewhere
                work()
            except Exception as error:
                self._error = error
        except Exception as error:
            self._error = error

    def _start(self, begun: StepStart) -> None:
        inputs = begun.named_inputs()
        upstream = self._upstream(inputs.values())
        tags = {
            **self._tags,
            **self._source_tags,
            **begun.tags,
            **record_tags(inputs, context="input", made_by=upstream),
            "workbench.step": begun.step,
        }
        run_id = self._mlflow.start(
            begun.step, tags=tags, parameters=begun.parameters, parent=self._parent
        )
        self._children[begun.step] = run_id
        self._mlflow.log_records(run_id, inputs, context="input", made_by=upstream)

    def _finish(
        self, begun: StepStart, status: str, tags: Mapping[str, str], run: Ref | None
    ) -> None:
        run_id = self._children[begun.step]
        executed, result = begun.folder / EXECUTED_NOTEBOOK, begun.folder / RESULT_FILE
        page, told = begun.folder / PAGE_FILE, {}
        if executed.exists():
            caption = f"{self._tags['workbench.pipeline']} {self._tags['workbench.run']}"
            told = _try_render_notebook(
                executed, page, f"{caption} · {begun.step} · {status.lower()}"
            )
        files = [path for path in (executed, page, result) if path.exists()]
        self._mlflow.log_files(run_id, files)
        figures = begun.folder / "figures"
        if figures.exists():
            self._mlflow.log_files(run_id, [figures], "figures")
        if run is not None:
            told |= self._show_outputs(run, run_id)
        self._mlflow.end(run_id, status, {**tags, **told}, resources(result))
        if run is not None:
            self._store.write_side(run, TRACKED_MARK, {"run": run_id})

    def _show_outputs(self, run: Ref, run_id: str) -> dict[str, str]:
        """Show what a step made as datasets; returns the tags that tell the same."""
        record = self._store.get(run, StepRun)
        self._mlflow.log_records(run_id, record.outputs, context="output")
        self._makers |= dict.fromkeys(record.outputs.values(), run_id)
        made = record_tags(record.outputs, context="output")
        return {**made, "workbench.record": run, "workbench.environment": record.environment}

    def _keep_source(self) -> None:
        """Git state with what was changed since, and the lock, on the parent run."""
        state = git_state.read_git_state(self._project, self._secrets)
        if state is not None:
            self._source_tags |= state.tags()
            if state.dirty:
                self._mlflow.log_text(self._parent, state.as_patch(), "source/changes.patch")
        lock = self._project / LOCK_FILE
        if lock.is_file():
            self._source_tags["workbench.lock"] = digest.of_file(lock)
            self._mlflow.log_files(self._parent, [lock], "environment")
        self._mlflow.set_tags(self._parent, self._source_tags)

    def _upstream(self, refs: Iterable[Ref]) -> dict[Ref, str]:
        """The MLflow runs that made these records, as far as any did."""
        for ref in refs:
            if ref in self._makers:
                continue
            if self._edges is None:
                self._edges = EdgeIndex(self._store)
            maker = self._edges.maker(ref)
            mark = self._store.side(maker, TRACKED_MARK) if maker else None
            if mark:
                self._makers[ref] = mark["run"]
        return {ref: self._makers[ref] for ref in refs if ref in self._makers}
