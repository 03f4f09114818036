"""A board of what this workbench has made: runs, gates and coverage, read from its records."""

import marimo

__generated_with = "0.25.2"
app = marimo.App(width="medium", app_title="Workbench board")

with app.setup:
    from collections import Counter
    from typing import Any

    import marimo as mo

    from workbench.core import digest, workspace
    from workbench.core.errors import WorkbenchError
    from workbench.records import dataset as datasets
    from workbench.records.base import GateReport, digest_of
    from workbench.records.dataset import Dataset
    from workbench.records.frames import Role
    from workbench.records.model_types import Release, StepRun
    from workbench.records.store import Store
    from workbench.records.types import DatasetVersion


@app.function
def newest(store: Store, kind: str, limit: int = 200) -> list[str]:
    """References of a kind, the newest first."""
    return list(store.refs(kind))[::-1][:limit]


@app.function
def run_rows(store: Store) -> list[dict[str, Any]]:
    """One row a finished step."""
    rows = []
    for ref in newest(store, StepRun.KIND):
        run = store.get(ref, StepRun)
        rows.append(
            {
                "when": store.side(ref, "created")["at"][:19].replace("T", " "),
                "step": run.step,
                "made": ", ".join(sorted(run.outputs)) or "-",
                "parameters": ", ".join(f"{k}={v}" for k, v in sorted(run.parameters.items())),
                "run": digest.shorten(digest_of(ref)),
            }
        )
    return rows


@app.function
def gate_rows(report: GateReport) -> list[dict[str, Any]]:
    """One row a gate, refusals first."""
    order = {"FAIL": 0, "INSUFFICIENT EVIDENCE": 1, "PASS": 2}

    def number(value: float | None) -> str:
        return "-" if value is None else f"{value:.4g}"

    return [
        {
            "verdict": str(gate.verdict),
            "gate": gate.name,
            "slice": gate.slice,
            "value": number(gate.value),
            "interval": "-" if gate.low is None else f"{number(gate.low)} to {number(gate.high)}",
            "bound": number(gate.bound),
            "n": f"{gate.n} {gate.unit}",
            "required": "yes" if gate.required else "no",
            "why": gate.why,
        }
        for gate in sorted(report.gates, key=lambda gate: (order[gate.verdict], gate.name))
    ]


@app.function
def coverage_rows(dataset: Dataset) -> list[dict[str, Any]]:
    """Labelled boxes of each class by light, on frames that are learned from, thinnest first."""
    learned = dataset.role(Role.SEED, Role.TRAIN)
    light = {frame.id: str(frame.conditions.light) for frame in learned.frames}
    counts = Counter((label.cls, light[label.frame]) for label in learned.labels)
    lights = sorted({str(frame.conditions.light) for frame in dataset.frames})
    rows = [
        {
            "class": cls,
            **{name: counts[cls, name] for name in lights},
            "all": sum(counts[cls, name] for name in lights),
        }
        for cls in dataset.label_schema.classes
    ]
    return sorted(rows, key=lambda row: (row["all"], row["class"]))


@app.function
def coverage_rank(store: Store, ref: str) -> tuple[int, int]:
    """Orders versions: answers held back for replay last, then by labels."""
    version = store.get(ref, DatasetVersion)
    return (version.made_by != "withhold", version.labels)


@app.function
def role_rows(dataset: Dataset) -> list[dict[str, Any]]:
    """Frames, drives and boxes of each role."""
    rows = []
    for role in Role:
        part = dataset.role(role)
        if part.frames:
            sizes = {"frames": len(part.frames), "drives": len(part.drives)}
            rows.append({"role": str(role), **sizes, "boxes": len(part.labels)})
    return rows


@app.cell
def _():
    place = workspace.find_workspace()
    store = Store(place)
    refresh = mo.ui.refresh(options=["10s", "1m"], label="read the records again")
    mo.vstack([mo.md(f"# Workbench board\n\nThe records of `{place.root.parent.name}`."), refresh])
    return refresh, store


@app.cell
def _(refresh, store):
    refresh.value
    _reports = newest(store, GateReport.KIND)
    _releases = newest(store, Release.KIND)
    if _reports:
        _report = store.get(_reports[0], GateReport)
        _note = " **The judged drives are simulated.**" if _report.simulated else ""
        _promoted = _releases and store.get(_releases[0], Release).promoted
        _next = "promoted to champion" if _promoted else "registered as candidate, not promoted"
        _said = f" The newest release is {_next}." if _releases else ""
        _view = mo.vstack(
            [
                mo.md(
                    f"## Gates: {_report.verdict}\n\n{len(_report.gates)} gates on candidate "
                    f"`{digest.shorten(digest_of(_report.candidate))}`.{_note}{_said}"
                ),
                mo.ui.table(gate_rows(_report), selection=None, page_size=20),
            ]
        )
    else:
        _view = mo.md("## Gates\n\nNo model was judged yet. `make run` goes all the way there.")
    _view


@app.cell
def _(refresh, store):
    refresh.value
    _names = {}
    for _ref in newest(store, DatasetVersion.KIND):
        _version = store.get(_ref, DatasetVersion)
        _label = f"{_version.name} {digest.shorten(digest_of(_ref))} ({_version.made_by})"
        _names[_label] = _ref
    _fullest = max(_names, key=lambda name: coverage_rank(store, _names[name]), default=None)
    version = mo.ui.dropdown(options=_names, value=_fullest, label="dataset version")
    return (version,)


@app.cell
def _(store, version):
    if version.value is None:
        _view = mo.md(
            "## Coverage\n\nThere is no dataset yet. `workbench ingest` or `make run` makes one."
        )
    else:
        try:
            _dataset = datasets.load_dataset(store, version.value)
            _note = " **Simulated drives.**" if _dataset.simulated else ""
            _view = mo.vstack(
                [
                    mo.md(f"## Coverage\n\nBoxes to learn from, thinnest class first.{_note}"),
                    version,
                    mo.ui.table(coverage_rows(_dataset), selection=None, page_size=20),
                    mo.ui.table(role_rows(_dataset), selection=None),
                ]
            )
        except WorkbenchError as _error:
            _view = mo.vstack([version, mo.md(f"This version cannot be read: {_error}")])
    _view


@app.cell
def _(refresh, store):
    refresh.value
    _rows = run_rows(store)
    if _rows:
        _view = mo.vstack(
            [
                mo.md(f"## Runs\n\n{len(_rows)} finished steps, the newest first."),
                mo.ui.table(_rows, selection=None, page_size=12),
            ]
        )
    else:
        _view = mo.md("## Runs\n\nNo step has finished yet. `make run` runs them all.")
    _view


if __name__ == "__main__":
    app.run()
