"""The test that promotion writes beside a step."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.pipeline.conftest import CONTRACT, write_notebook
from tests.pipeline.promotion.conftest import promoted
from workbench.core.workspace import Workspace
from workbench.pipeline import contract, promote

ROOT = Path(__file__).resolve().parents[3]


def test_the_generated_test_passes_and_catches_a_change(
    repository: Path, workspace: Workspace
) -> None:
    (repository / "tests").mkdir()
    made = promoted(workspace, repository, "n + 1")
    assert made.test == repository / "tests/promoted/test_a.py"
    source = made.test.read_text()
    config = (f"--config={ROOT / 'pyproject.toml'}", f"--config=src=['{ROOT}']")
    for arguments in (("check", "--ignore=S101"), ("format", "--check")):
        ruff = [sys.executable, "-m", "ruff", *arguments, *config, str(made.test)]
        subprocess.run(ruff, check=True)
    assert "runs_on_its_fixture" in source
    assert _pytest(repository).returncode == 0
    made.promoted.path.chmod(0o644)
    made.promoted.path.write_text(made.promoted.path.read_text().replace("n + 1", "n + 2"))
    told = _pytest(repository)
    assert told.returncode == 1
    assert "never changes" in told.stdout


def _pytest(project: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/promoted"],
        check=False,
        cwd=project,
        capture_output=True,
        text=True,
    )


def test_the_generated_text_fits_every_contract(tmp_path: Path) -> None:
    many = {f"a_rather_long_output_name_{n}": {"kind": "selection"} for n in range(6)}
    needy = {**CONTRACT, "inputs": {"upstream": {"kind": "selection"}}, "outputs": many}
    notebook = write_notebook(tmp_path / "needs-input.ipynb", "x = 1", contract=needy)
    text = promote._render_test("needs-input", contract.read_contract(notebook))
    assert "fixture" not in text and "def test_needs_input_is_unchanged" in text
    assert max(map(len, text.splitlines())) <= 100
    compile(text, "generated", "exec")
    write_notebook(notebook, "x = 1", parameters="word: str = ''", contract={"outputs": {}})
    assert 'step.validate({"word": -1})' in promote._render_test(
        "x", contract.read_contract(notebook)
    )
