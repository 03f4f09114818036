"""A table of telemetry in which known things changed: what is found, why, and by which command."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from tests.notebooks import EXPLORE, load_app, run_cells
from workbench.cli import cli
from workbench.core.workspace import HOME_VARIABLE, Workspace
from workbench.data.telemetry import TelemetryBundle, count, sketch
from workbench.monitoring.causes import find_cause
from workbench.monitoring.store import TelemetryStore
from workbench.monitoring.watch import read_rides
from workbench.pipeline.kpis import measure_kpis

PIPELINE = Path(__file__).resolve().parents[2] / "pipelines" / "retraining.yaml"


def ride(rng, number, day, *, light="day", darker=0.0, confidence=0.6, hardware="orin", model="m1"):
    own = rng.normal() * 0.02
    frames = 40
    return TelemetryBundle(
        vehicle=f"vehicle-{number:04}",
        sequence=day + 1 + (1000 if model != "m1" else 0),
        day=day,
        ride=f"{day}",
        evidence="simulated",
        model=model,
        version=1,
        hardware=hardware,
        conditions={"light": light},
        sketches=(
            sketch("input.brightness", np.clip(rng.normal(0.5 + own - darker, 0.05, frames), 0, 1)),
            sketch(
                "confidence", np.clip(rng.normal(confidence + own, 0.1, frames), 0, 1), cls="car"
            ),
            count("frames.late", int(rng.integers(0, 3)), frames),
        ),
    )


def fleet(seed=1, vehicles=24, current=None, **changed):
    """Days 0 to 27 unchanged; 28 to 34 with changes, of those vehicles that ``current`` names."""
    rng = np.random.default_rng(seed)
    made = []
    for number in range(vehicles):
        kind = {"hardware": "orin" if number % 2 else "thor"}
        light = "night" if number % 4 == 0 else "day"
        for day in (3, 12, 24):
            made.append(ride(rng, number, day, light=light, **kind))
        now = changed if current is None or current(number) else {}
        made.append(ride(rng, number, 30, **({"light": light} | kind | now)))
    return made


@pytest.fixture
def table(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> TelemetryStore:
    monkeypatch.setenv(HOME_VARIABLE, str(workspace.root))
    return TelemetryStore(str(workspace.root / "telemetry"))


def run(*arguments: str, code: int = 0):
    result = CliRunner().invoke(cli, ["monitor", *arguments, "--json"])
    assert result.exit_code == code, result.output
    return json.loads(result.stdout)


def test_an_unchanged_fleet_raises_nothing(table):
    table.write(fleet())
    found = run("drift", "--days", "28-34", "--raise")
    assert found["drifted"] == []
    assert found["raised"] == {"alarms": [], "quiet": {}}
    assert found["evidence"] == "simulated"
    assert "not tested" not in found and found["skipped"] == {
        "light=night": "6 and 6 drives, at least 8 each are needed"
    }


def test_a_darker_world_is_one_alarm_with_its_drives_and_raised_once(table):
    table.write(fleet(darker=0.2))
    found = run("drift", "--days", "28-34", "--raise")
    assert {row["signal"] for row in found["drifted"]} == {"input.brightness"}
    assert found["drifted"][0]["cause"] == "unknown"
    assert "no drives of the same weeks of an earlier year" in found["drifted"][0]["why"]
    (ref,) = found["raised"]["alarms"]
    again = run("drift", "--days", "28-34", "--raise")
    assert again["raised"]["alarms"] == []
    (alarm,) = run("alarms", "list")["alarms"]
    assert alarm["ref"] == ref
    assert alarm["alarm"]["slice"] == "light=day"
    assert len(alarm["alarm"]["drives"]) > 5
    run("alarms", "dismiss", ref[:14], "--reason", "winter", "--by", "ana")
    assert run("alarms", "list")["alarms"] == []
    shown = run("alarms", "show", ref[:14])
    assert [one["action"] for one in shown["history"]] == ["raised", "dismissed"]
    assert run("status")["alarms"]["dismissed"] == 1


def test_one_car_that_reports_nonsense_raises_nothing(table):
    table.write(fleet(vehicles=40, current=lambda number: number == 7, darker=0.5, confidence=0.0))
    found = run("drift", "--days", "28-34", "--raise")
    assert (found["drifted"], found["raised"]["alarms"]) == ([], [])


def test_a_sensor_that_drifts_is_told_from_the_world(table):
    table.write(fleet(vehicles=40, current=lambda number: number % 2, darker=0.2))
    (row,) = run("drift", "--days", "28-34")["drifted"]
    assert row["cause"] == "sensor"
    assert "vehicles with orin changed" in row["why"]


def test_a_changed_mix_is_told_from_drift(table):
    rng = np.random.default_rng(3)
    made = [ride(rng, n, 5, light="night" if n < 10 else "day") for n in range(60)]
    made += [ride(rng, 100 + n, 30, light="night" if n < 45 else "day") for n in range(60)]
    table.write(made)
    found = run("drift", "--days", "28-34", "--raise")
    assert found["drifted"] == [] and found["mix"]["changed"]
    (alarm,) = run("alarms", "list")["alarms"]
    assert (alarm["alarm"]["cause"], alarm["alarm"]["what"]) == ("fleet-mix", "mix")


def test_a_candidate_is_compared_with_the_champion_on_the_same_vehicles(table):
    rng = np.random.default_rng(4)
    made = []
    for number in range(30):
        light = "night" if number < 12 else "day"
        made.append(ride(rng, number, 30, light=light))
        lower = 0.45 if light == "night" else 0.6
        made.append(ride(rng, number, 30, light=light, confidence=lower, model="m2"))
    table.write(made)
    found = run("drift", "--models", "m2,m1", "--raise")
    assert {(row["slice"], row["signal"]) for row in found["drifted"]} == {
        ("light=night", "confidence[car]")
    }
    (alarm,) = run("alarms", "list")["alarms"]
    assert (alarm["alarm"]["what"], alarm["alarm"]["cause"]) == ("disagreement", "model")
    wrong = CliRunner().invoke(cli, ["monitor", "drift", "--models", "m2,m7"])
    assert "no rides of model 'm7'" in str(wrong.exception)


def test_season_and_world_are_told_apart_by_the_year_before():
    rng = np.random.default_rng(5)
    values = np.concatenate([rng.normal(0.6, 0.05, 30), rng.normal(0.3, 0.05, 30)])
    current = np.arange(60) >= 30
    kinds = ["orin", "thor"] * 30
    winter = rng.normal(0.3, 0.05, 30)
    assert find_cause(values, current, kinds, year_ago=winter).name == "season"
    assert find_cause(values, current, kinds, year_ago=winter + 0.3).name == "world"
    assert find_cause(values, current, kinds).name == "unknown"
    alone = find_cause(values, current, ["orin"] * 60, year_ago=winter + 0.3)
    assert (alone.name, "all vehicles are of one kind" in alone.why) == ("unknown", True)


def test_without_rides_it_is_said(table):
    result = CliRunner().invoke(cli, ["monitor", "drift"])
    assert "no rides in the current period" in str(result.exception)
    assert run("status")["telemetry"]["rides"] == 0


def test_an_alarm_is_not_accepted_without_a_signed_envelope(table):
    table.write(fleet(darker=0.2))
    (ref,) = run("drift", "--days", "28-34", "--raise")["raised"]["alarms"]
    refused = CliRunner().invoke(cli, ["monitor", "alarms", "accept", ref[:14]])
    assert refused.exception.reason == "no-envelope"
    signed = run("envelope", str(PIPELINE), "--by", "ana")
    assert signed["pipeline"].endswith("retrain.yaml")
    refused = CliRunner().invoke(
        cli, ["monitor", "alarms", "accept", ref[:14], "-p", "budget=100000"]
    )
    assert refused.exception.reason == "outside-envelope"
    assert run("alarms", "show", ref[:14])["status"] == "open"


def test_rides_keep_what_was_not_reported_apart_from_zero(table):
    rng = np.random.default_rng(6)
    silent = ride(rng, 1, 3).model_copy(update={"sketches": (count("frames.late", 0, 40),)})
    table.write([ride(rng, 2, 3), silent])
    rides = read_rides(table.url)
    late, brightness = rides.values["frames.late"], rides.values["input.brightness"]
    assert late[rides.vehicles.index("vehicle-0001")] == 0
    assert brightness[rides.vehicles.index("vehicle-0001")].sum() == 0


def test_the_notebook_says_what_drifted(table, capsys):
    table.write(fleet(darker=0.2))
    run_cells(EXPLORE / "what_drifted.ipynb")
    said = capsys.readouterr().out
    assert "light=day input.brightness" in said
    assert "unknown: no drives of the same weeks of an earlier year" in said


def test_a_candidate_in_the_shadow_counts_only_where_it_is_asked_for(table, capsys):
    rng = np.random.default_rng(4)
    made = []
    for number in range(20):
        made.append(ride(rng, number, 30, light="night"))
        shadow = ride(rng, number, 30, light="night", confidence=0.3, model="shadow/m2")
        made.append(shadow.model_copy(update={"ride": made[-1].ride}))
    table.write(made)
    table.put_frame("vehicle-0001", 7, json.dumps(RETURNED).encode(), JPEG)
    assert set(read_rides(table.url).models) == {"m1"}
    assert run("status")["telemetry"]["rides"] == 20
    found = run("drift", "--models", "m2,m1")  # the prefix need not be written
    assert [row["signal"] for row in found["drifted"]] == ["confidence[car]"]
    names = run_cells(EXPLORE / "shadow_against_champion.ipynb")
    said = capsys.readouterr().out
    assert (names["candidate"], names["champion"]) == ("shadow/m2", "m1")
    assert "light=night confidence[car]" in said and "1 frames: 0 at random" in said


BOX = {"cls": "car", "score": 0.9, "xyxy": [1, 1, 5, 5]}
RETURNED = {
    "vehicle": "vehicle-0001", "sequence": 7, "shadow": "m2", "arm": "disagreement",
    "drive": "30", "champion": [BOX], "candidate": [],
}  # fmt: skip
_STREAM = io.BytesIO()
Image.new("RGB", (8, 8)).save(_STREAM, "JPEG")
JPEG = _STREAM.getvalue()


def test_the_board_draws_stages_series_and_figures_that_nobody_typed_in(table, workspace):
    board = load_app("board")
    rng = np.random.default_rng(4)
    rides = [ride(rng, number, number % 3) for number in range(12)]
    table.write([*rides, ride(rng, 1, 9, model="shadow/m2")])
    series = board.daily_values(table.url)
    days, values = series["frames.late in 1,000 frames"]
    assert days == [0, 1, 2] and max(values) > 0  # not the shadow's day
    assert 0.5 < series["mean confidence"][1][0] < 0.7
    assert board.draw_series(series).startswith(b"\x89PNG")
    rollout = {
        "id": "camera-1", "state": "rolled-back", "why": "<worse>", "running": 0, "back": 12,
        "stages": ["lab", "limited", "full"], "stage": "limited",
    }  # fmt: skip
    drawn = board.stage_map(rollout)
    assert "<b>lab</b><br>done" in drawn and "<b>limited</b><br>rolled-back" in drawn
    assert "<b>full</b><br>ahead" in drawn and "&lt;worse&gt;" in drawn
    rows = board.kpi_rows(measure_kpis(workspace, telemetry=table.url))
    said = {row["figure"]: row["value"] for row in rows}
    assert said["wrong boxes"] == said["automation share"] == "not observed"
    assert said["experiments in the last week"] == "0"
