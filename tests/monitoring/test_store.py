"""Sketches add up exactly, and the table gives back what was written, once."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
import yaml
from pydantic import ValidationError

from workbench.data.telemetry import SIGNALS, Sketch, TelemetryBundle, count, merge, sketch
from workbench.monitoring.ingest import QuarantineReason, metrics_text
from workbench.monitoring.store import (
    TelemetryStore,
    bundle_digest,
    read_telemetry,
)


def bundle(vehicle: str = "vehicle-1", sequence: int = 1, **values: object) -> TelemetryBundle:
    rng = np.random.default_rng(sequence)
    fields: dict[str, object] = {
        "day": sequence // 2, "ride": f"ride {sequence}", "evidence": "simulated", "model": "m",
        "version": 1, "conditions": {"light": "night"},
        "sketches": (
            sketch("input.brightness", rng.random(100)),
            sketch("confidence", rng.random(30), cls="car"),
            count("frames.late", 3, 100),
        ),
    }  # fmt: skip
    return TelemetryBundle.model_validate(
        {"vehicle": vehicle, "sequence": sequence, **fields, **values}
    )


@pytest.mark.parametrize("signal", [name for name, one in SIGNALS.items() if one.edges])
def test_parts_merge_into_the_sketch_of_all_values_in_any_order(signal: str) -> None:
    rng = np.random.default_rng(0)
    spec = SIGNALS[signal]
    values = rng.normal(spec.edges[-1] / 2, spec.edges[-1], 1000)
    values[::97] = np.nan
    cls = "car" if spec.by_class else ""
    whole = sketch(signal, values, cls=cls)
    parts = [sketch(signal, part, cls=cls) for part in np.array_split(values, 7)]
    rng.shuffle(parts)  # type: ignore[arg-type]
    assert merge(parts) == whole
    assert merge([merge(parts[:3]), sketch(signal, [], cls=cls), merge(parts[3:])]) == whole
    assert whole.invalid == 11 and whole.n == 989 and whole.low and whole.high
    clipped = np.clip(values[np.isfinite(values)], spec.edges[0], spec.edges[-1])
    assert whole.mean == pytest.approx(clipped.mean(), abs=spec.resolution)
    assert whole.variance == pytest.approx(clipped.var(), rel=0.01)


@pytest.mark.parametrize(
    "lie",
    [
        {"n": 101},
        {"sum": -1},
        {"sum": 10**9},
        {"sum_squares": 0},
        {"maximum": 5000},
        {"counts": (100,)},
        {"counts": (-1, *(0,) * 18, 101)},
        {"low": 101},
        {"signal": "mood"},
        {"cls": "car"},
        {"n": float("nan")},
    ],
)
def test_impossible_sketches_are_refused(lie: dict[str, object]) -> None:
    honest = sketch("input.brightness", np.linspace(0, 1, 100)).model_dump()
    with pytest.raises(ValidationError):
        Sketch.model_validate({**honest, **lie})


def test_more_late_frames_than_frames_are_refused() -> None:
    with pytest.raises(ValidationError, match="more frames"):
        count("frames.late", 11, 10)


@pytest.mark.parametrize("kind", ["folder", "memory"])
def test_the_table_gives_back_each_bundle_once(kind: str, tmp_path: Path) -> None:
    url = str(tmp_path / "it's here") if kind == "folder" else f"memory://{tmp_path.name}"
    store = TelemetryStore(url)
    assert read_telemetry(url).num_rows == 0 and store.stored() == {}
    bundles = [bundle(f"vehicle-{car}", number) for car in (1, 2) for number in (1, 2, 3)]
    assert store.write(bundles) == 2  # days 0 and 1
    store.write(bundles)  # again: the same files
    store.write([bundles[0], bundle("vehicle-3")])  # another service wrote one of them too
    assert len(store.files()) == 3
    table = read_telemetry(url)
    assert table.num_rows == 7 * 3
    assert len(store.stored()) == 7
    late = read_telemetry(url, signals=["frames.late"], since=1)
    assert late.num_rows == 4 and set(late["mean"].to_pylist()) == {0.03}
    bright = read_telemetry(url, signals=["input.brightness"])
    expected = merge([one.sketches[0] for one in [*bundles, bundle("vehicle-3")]])
    assert merge(list(sketches_in(bright))) == expected
    row = bright.slice(0, 1).to_pylist()[0]
    assert row["mean"] == pytest.approx(bundles[0].sketches[0].mean)
    assert row["variance"] == pytest.approx(bundles[0].sketches[0].variance)
    assert (row["evidence"], row["conditions"]) == ("simulated", '{"light": "night"}')
    if kind == "memory":
        fsspec.filesystem("memory").rm(store._root, recursive=True)


def sketches_in(table: Any) -> Iterator[Sketch]:
    names = list(Sketch.model_fields)
    for row in table.select(names).to_pylist():
        yield Sketch.model_validate(row)


def test_the_page_explains_every_reason_and_the_rules_are_valid() -> None:
    root = Path(__file__).resolve().parents[2] / "docs" / "how-to"
    page = (root / "telemetry.md").read_text()
    table = page.split("| reason | meaning |")[1].split("\n\n")[0]
    assert re.findall(r"^\| `([a-z-]+)` \|", table, re.M) == [one.value for one in QuarantineReason]
    for name in SIGNALS:
        assert f"`{name}`" in page or f"`.{name.partition('.')[2]}`" in page, name
    rules = yaml.safe_load((root / "telemetry-rules.yaml").read_text())["groups"][0]["rules"]
    metrics = metrics_text({"counts": {"quarantined impossible": 1}, "last_message": 1.0})
    for rule in rules:
        named = re.findall(r"workbench_\w+", rule["expr"])
        assert named and all(f"\n{name}" in metrics for name in named)


@pytest.mark.skipif(
    shutil.which("promtool") is None,
    reason="needs promtool: install Debian's `prometheus` package",
)
def test_the_rules_fire_when_they_should_and_not_before(tmp_path: Path) -> None:
    rules = Path(__file__).resolve().parents[2] / "docs" / "how-to" / "telemetry-rules.yaml"
    refused = 'workbench_telemetry_messages_total{result="quarantined",reason="impossible"}'
    series = [
        # The last message came at 0 s; 1 message a minute is put aside from 3 h on.
        {"series": "workbench_telemetry_last_message_seconds", "values": "0x300"},
        {"series": refused, "values": "0x180 1+1x120"},
    ]

    def expected(name: str, minutes: int, *alerts: dict[str, object]) -> dict[str, object]:
        return {"eval_time": f"{minutes}m", "alertname": name, "exp_alerts": list(alerts)}

    labels = {"severity": "ticket", "reason": "impossible"}
    annotations = {
        "summary": "15 messages were put aside in an hour: impossible",
        "action": "Look into quarantine/impossible of the table",
    }
    silent = yaml.safe_load(rules.read_text())["groups"][0]["rules"][0]
    page = {"exp_labels": silent["labels"], "exp_annotations": silent["annotations"]}
    ticket = {"exp_labels": labels, "exp_annotations": annotations}
    checks = [
        expected("TelemetrySilent", 60),
        expected("TelemetrySilent", 65),  # `for` has not passed
        expected("TelemetrySilent", 75, page),
        expected("TelemetryQuarantined", 185),
        expected("TelemetryQuarantined", 195, ticket),
    ]
    body = {
        "rule_files": [str(rules)],
        "evaluation_interval": "1m",
        "tests": [{"interval": "1m", "input_series": series, "alert_rule_test": checks}],
    }
    (tmp_path / "test.yaml").write_text(yaml.safe_dump(body))
    subprocess.run(["promtool", "check", "rules", str(rules)], check=True)
    done = subprocess.run(
        ["promtool", "test", "rules", "test.yaml"],
        check=False,
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_bundles_and_tables_of_version_1_stay_readable(tmp_path: Path) -> None:
    golden = Path(__file__).parent / "golden"
    old = TelemetryBundle.model_validate_json((golden / "bundle-1.json").read_bytes())
    assert old == bundle()
    folder = tmp_path / "v1" / "day=00000"
    folder.mkdir(parents=True)
    shutil.copy(golden / "table-1.parquet", folder)
    table = read_telemetry(str(tmp_path))
    found = {(one.signal, one.cls): one for one in sketches_in(table)}
    assert found == {(one.signal, one.cls): one for one in old.sketches}
    assert TelemetryStore(str(tmp_path)).stored() == {("vehicle-1", 1): bundle_digest(old)}
