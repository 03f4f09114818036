"""Every frame has an answer, and the answer names its source."""

from __future__ import annotations

import io
import json
import pickle
import zipfile
from pathlib import Path

import numpy as np
import onnx
import pytest

from workbench.core import digest
from workbench.core.errors import (
    ContractError,
    DataError,
    ParameterError,
    RecordError,
    Refusal,
    VerificationError,
)
from workbench.deployment import session
from workbench.deployment.runtime import (
    RULE_LAST_BOXES,
    RULE_NO_BOXES,
    AnswerBox,
    AnswerStatus,
    FallbackMemory,
    FallbackRule,
    LoadedBundle,
    Runtime,
    fuse_boxes,
    load_bundle,
)
from workbench.deployment.session import decode_ahead, frames_from_path
from workbench.detection.boxes import CONFIDENCE_THRESHOLD
from workbench.detection.bundles import refuse_unsafe
from workbench.detection.families import Detections
from workbench.detection.predictor import OnnxPredictor
from workbench.detection.preprocessing import CHECK_KEY, load_rgb


def test_frames_of_a_folder_are_answered_in_natural_order(
    whole: Path, images: Path, tmp_path: Path
) -> None:
    sources = frames_from_path(images)
    assert [source.file for source in sources] == [
        *(f"a/frame_{number}.png" for number in (9, 10, 11, 12)),
        "b/frame_1.png",
    ]
    runtime = Runtime([load_bundle(whole)])
    summary = session.run_session(runtime, sources, output=tmp_path / "out.jsonl")
    assert summary.statuses == {"ok": 4, "unreadable": 1}
    head, *answers = map(json.loads, (tmp_path / "out.jsonl").read_text().splitlines())
    assert head["bundles"][0]["digest"] == digest.of_file(whole / "manifest.json")
    before, torn = answers[1], answers[2]
    assert (torn["status"], torn["by"], torn["age"]) == ("unreadable", RULE_LAST_BOXES, 1)
    assert torn["boxes"][0]["xyxy"] == before["boxes"][0]["xyxy"]
    assert torn["boxes"][0]["score"] == pytest.approx(0.8 * before["boxes"][0]["score"], abs=1e-5)


def with_threshold(bundle: Path, threshold: object) -> Path:
    """The bundle with another operating point; None makes it one of schema version 1."""
    path = bundle / "manifest.json"
    manifest = json.loads(path.read_bytes())
    assert manifest["schema_version"] == 2
    if threshold is None:
        del manifest["operating_point"]
        manifest["schema_version"] = 1
    else:
        manifest["operating_point"]["threshold"] = threshold
    path.write_bytes(digest.canonical_json(manifest))
    return bundle


def test_a_bundle_acts_at_the_threshold_that_it_was_exported_with(
    bundle: Path, images: Path
) -> None:
    pixels = load_rgb(images / "b" / "frame_1.png")

    def scores(opened: LoadedBundle, score: float | None = None) -> list[float]:
        answer = Runtime([opened], score=score).answer(pixels, file="x", sequence="b")
        return [box.score for box in answer.boxes]

    everything = scores(load_bundle(bundle))  # at 0.05
    middle = sum(sorted(everything)[len(everything) // 2 :][:2]) / 2  # between two scores
    opened = load_bundle(with_threshold(bundle, middle))
    assert opened.threshold == middle
    assert scores(opened) == [score for score in everything if score >= middle] != everything
    assert scores(opened, 0.05) == everything  # `--score` of `workbench predict`
    assert load_bundle(with_threshold(bundle, None)).threshold == CONFIDENCE_THRESHOLD


@pytest.mark.parametrize("threshold", [1.5, "high", [0.3]])
def test_a_damaged_threshold_is_refused(bundle: Path, threshold: object) -> None:
    with pytest.raises(RecordError, match="no readable manifest"):
        load_bundle(with_threshold(bundle, threshold))


def test_answer_equals_the_prediction(whole: Path, images: Path) -> None:
    opened = load_bundle(whole)
    pixels = load_rgb(images / "b" / "frame_1.png")
    answer = Runtime([opened]).answer(pixels, file="x", sequence="b")
    found = opened.predictor.predict([pixels])[0]
    assert len(answer.boxes) == len(found) > 0
    boxes = np.array([box.xyxy for box in answer.boxes])
    assert boxes == pytest.approx(found.boxes, abs=1e-3)
    assert answer.status is AnswerStatus.OK
    assert answer.ms is not None


def test_late_answer_comes_from_the_fallback_rule(whole: Path, images: Path) -> None:
    runtime = Runtime([load_bundle(whole)])
    pixels = load_rgb(images / "b" / "frame_1.png")
    good = runtime.answer(pixels, file="0", sequence="s")
    runtime.budget_ms = 1e-6
    late = runtime.answer(pixels, file="1", sequence="s")
    assert (late.status, late.by, late.age) == (AnswerStatus.LATE, RULE_LAST_BOXES, 1)
    assert "budget is" in late.why
    assert max(box.score for box in late.boxes) < max(box.score for box in good.boxes)
    elsewhere = runtime.answer(pixels, file="2", sequence="other")
    assert (elsewhere.boxes, elsewhere.by) == ((), RULE_NO_BOXES)


def test_repeated_boxes_lose_score_and_are_then_dropped() -> None:
    memory = FallbackMemory(FallbackRule(decay=0.5, max_frames=2, min_score=0.3))
    boxes = tuple(AnswerBox(cls="car", score=score, xyxy=(0, 0, 1, 1)) for score in (0.9, 0.5))
    assert memory.recall("s")[:2] == ((), RULE_NO_BOXES)
    memory.remember("s", boxes)
    held, by, age = memory.recall("s")
    assert ([box.score for box in held], by, age) == ([0.45], RULE_LAST_BOXES, 1)
    assert memory.recall("s") == ((), RULE_LAST_BOXES, 2)  # all below the minimum score
    assert memory.recall("s") == ((), RULE_NO_BOXES, 3)
    with pytest.raises(ParameterError, match="decay"):
        FallbackRule(decay=0)


def test_model_output_of_nan_gives_a_fallback_answer(
    whole: Path, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = load_bundle(whole)
    runtime = Runtime([opened])
    pixels = load_rgb(images / "b" / "frame_1.png")
    runtime.answer(pixels, file="0", sequence="s")
    real = opened.predictor.raw
    monkeypatch.setattr(opened.predictor, "raw", lambda batch: [m * np.nan for m in real(batch)])
    answer = runtime.answer(pixels, file="1", sequence="s")
    assert (answer.status, answer.by) == (AnswerStatus.FALLBACK, RULE_LAST_BOXES)
    assert "NaN or infinite" in answer.why


def test_interrupted_session_is_resumed(whole: Path, images: Path, tmp_path: Path) -> None:
    sources, output = frames_from_path(images), tmp_path / "out.jsonl"
    session.run_session(Runtime([load_bundle(whole)]), sources, output=tmp_path / "whole.jsonl")
    session.run_session(Runtime([load_bundle(whole)]), sources[:3], output=output)
    with output.open("ab") as stream:
        stream.write(b'{"file": "a/frame_12')
    again = session.run_session(Runtime([load_bundle(whole)]), sources, output=output)
    assert (again.resumed, again.frames) == (3, 5)
    expected, found = (
        [json.loads(line) for line in path.read_text().splitlines()]
        for path in (tmp_path / "whole.jsonl", output)
    )
    for row in (*expected, *found):
        row.pop("ms", None)
    assert found == expected
    third = session.run_session(Runtime([load_bundle(whole)]), sources, output=output)
    assert third.resumed == third.frames == 5


def test_answers_of_another_bundle_are_not_continued(
    whole: Path, other: Path, images: Path, tmp_path: Path
) -> None:
    sources, output = frames_from_path(images), tmp_path / "out.jsonl"
    session.run_session(Runtime([load_bundle(whole)]), sources, output=output)
    with pytest.raises(ParameterError, match="other bundles"):
        session.run_session(Runtime([load_bundle(other)]), sources, output=output)
    with pytest.raises(ParameterError, match="other bundles"):
        session.run_session(Runtime([load_bundle(whole)]), sources[1:], output=output)
    output.write_text("hello\n")
    with pytest.raises(ParameterError, match="not a file of answers"):
        session.run_session(Runtime([load_bundle(whole)]), sources, output=output)


def test_ensemble_fuses_and_falls_back_to_the_first_bundle(
    whole: Path, other: Path, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = load_bundle(whole), load_bundle(other)
    runtime = Runtime([one, two])
    pixels = load_rgb(images / "b" / "frame_1.png")
    first = runtime.answer(pixels, file="0", sequence="s")
    assert first.by == f"bundle {digest.shorten(one.digest)}+bundle {digest.shorten(two.digest)}"
    assert first.boxes == runtime.answer(pixels, file="0", sequence="s").boxes
    alone = Runtime([one]).answer(pixels, file="0", sequence="s")
    assert first.boxes != alone.boxes

    def broken(batch: np.ndarray) -> list[np.ndarray]:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(two.predictor, "raw", broken)
    left = runtime.answer(pixels, file="0", sequence="s")
    assert (left.status, left.boxes) == (AnswerStatus.OK, alone.boxes)
    assert "out of memory" in left.why
    with pytest.raises(ParameterError, match="no bundle"):
        Runtime([])
    with pytest.raises(ParameterError, match="above 0"):
        Runtime([one], budget_ms=0)


def detections(*rows: tuple[float, float, float, float, float, int]) -> Detections:
    table = np.array(rows, np.float32).reshape(-1, 6)
    return Detections(table[:, :4], table[:, 4], table[:, 5].astype(np.int64))


def test_fused_boxes_are_weighted_means_and_single_detections_lose_score() -> None:
    one = detections((0, 0, 10, 10, 0.9, 0), (50, 50, 60, 60, 0.6, 0))
    two = detections((1, 0, 11, 10, 0.3, 0), (0, 0, 10, 10, 0.5, 1))
    fused = fuse_boxes([one, two])
    assert fused.boxes[0] == pytest.approx([0.25, 0, 10.25, 10])
    assert fused.scores == pytest.approx([0.6, 0.3, 0.25])
    assert fused.classes.tolist() == [0, 0, 1]
    turned = fuse_boxes([two, one])
    assert (turned.boxes == fused.boxes).all()
    assert (turned.scores == fused.scores).all()
    assert len(fuse_boxes([detections(), detections()])) == 0
    assert len(fuse_boxes([one, two], limit=2)) == 2


def test_incomplete_bundle_is_rejected(bundle: Path) -> None:
    (bundle / "manifest.json").unlink()
    with pytest.raises(RecordError, match="no readable manifest"):
        load_bundle(bundle)


def test_changed_bundle_file_is_rejected(bundle: Path) -> None:
    path = bundle / "int8.cpu.onnx"
    path.write_bytes(path.read_bytes()[:-1] + b"\0")
    with pytest.raises(RecordError, match="missing or was changed"):
        load_bundle(bundle)


def reseal(bundle: Path, name: str, content: bytes) -> None:
    """Somebody who knows about the manifest."""
    (bundle / name).write_bytes(content)
    manifest = json.loads((bundle / "manifest.json").read_text())
    manifest["files"][name] = {"sha256": digest.of_bytes(content), "bytes": len(content)}
    if name == "preprocessing.json":
        manifest["preprocessing"] = digest.of_bytes(content)
    (bundle / "manifest.json").write_bytes(digest.canonical_json(manifest))


def test_different_contracts_of_bundle_and_model_are_rejected(bundle: Path) -> None:
    spec = json.loads((bundle / "preprocessing.json").read_text())
    spec["mean"] = [0.485, 0.456, 0.406]
    reseal(bundle, "preprocessing.json", digest.canonical_json(spec))
    with pytest.raises(RecordError, match="different preprocessing contracts"):
        load_bundle(bundle)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ((0.5, 0.5, 0.5), "different preprocessing contracts"),
        (None, "golden values in the model file belong"),
    ],
    ids=["mean in the model", "check in the model"],
)
def test_changed_metadata_is_detected_even_with_recomputed_digests(
    bundle: Path, value: tuple[float, ...] | None, message: str
) -> None:
    model = onnx.load(bundle / "int8.cpu.onnx")
    for entry in model.metadata_props:
        content = json.loads(entry.value)
        if entry.key == CHECK_KEY and value is None:
            content["contract"] = "0" * 64
        elif entry.key == "workbench.preprocessing" and value:
            content["mean"] = value
        entry.value = json.dumps(content)
    reseal(bundle, "int8.cpu.onnx", model.SerializeToString())
    with pytest.raises((RecordError, ContractError), match=message):
        load_bundle(bundle)


def test_weights_in_a_file_that_no_digest_covers_are_refused(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = onnx.load(bundle / "int8.cpu.onnx")
    outside = onnx.external_data_helper
    outside.convert_model_to_external_data(model, location="w.bin", size_threshold=0)
    onnx.save(model, tmp_path / "model.onnx")
    monkeypatch.chdir(tmp_path)  # where ONNX Runtime looks for them
    assert (tmp_path / "w.bin").stat().st_size
    reseal(bundle, "int8.cpu.onnx", (tmp_path / "model.onnx").read_bytes())
    for load in (lambda: load_bundle(bundle), lambda: OnnxPredictor(tmp_path / "model.onnx")):
        with pytest.raises(VerificationError, match="weights in another file") as refused:
            load()
        assert refused.value.reason == Refusal.UNSAFE_FILE


class Runs:
    def __reduce__(self) -> tuple[object, ...]:
        return print, ("ran",)


def zipped(*members: tuple[str, bytes], before: bytes = b"") -> bytes:
    stream = io.BytesIO()
    stream.write(before)
    with zipfile.ZipFile(stream, "a") as archive:
        for name, content in members:
            archive.writestr(name, content)
    return stream.getvalue()


@pytest.mark.parametrize(
    "content",
    [
        *(pickle.dumps(Runs(), protocol) for protocol in range(6)),
        pickle.dumps(Runs(), 0) + b"behind it",
        zipped(("a/b.bin", pickle.dumps(Runs(), 0))),
        zipped(("model/data.pkl", pickle.dumps(Runs(), 2)), before=b"{}"),
        zipped(("a", b"1")).replace(b"PK\x03\x04", b"PK\x03\x05"),
    ],
)
def test_what_could_run_code_is_refused_whatever_its_name(content: bytes) -> None:
    with pytest.raises(VerificationError, match="can run code"):
        refuse_unsafe({"weights.bin": content}, where="here")
    refuse_unsafe({"a.json": b"{}", "b.bin": bytes(range(256)), "c": zipped(("d", b"1"))}, where="")


@pytest.mark.parametrize(
    "manifest", ["[]", '{"files": {}}', '{"files": []}', '{"files": {"a": 1}}', "[" * 100_000, ""]
)
def test_a_manifest_of_another_shape_is_refused_by_name(bundle: Path, manifest: str) -> None:
    (bundle / "manifest.json").write_text(manifest)
    with pytest.raises(RecordError, match="no readable manifest"):
        load_bundle(bundle)


def test_missing_or_empty_input_is_rejected(tmp_path: Path, whole: Path) -> None:
    with pytest.raises(ParameterError, match="no such image"):
        frames_from_path(tmp_path / "missing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ParameterError, match="no images"):
        frames_from_path(tmp_path / "empty")
    with pytest.raises(ParameterError, match="no model"):
        load_bundle(whole, file="int8.target.onnx")


def test_images_are_decoded_in_order_and_errors_are_values(images: Path) -> None:
    seen = list(decode_ahead(frames_from_path(images), threads=3))
    assert [source.file for source, _ in seen] == [
        source.file for source in frames_from_path(images)
    ]
    assert [isinstance(image, DataError) for _, image in seen] == [False, False, True, False, False]
