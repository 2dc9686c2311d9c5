"""What README and docs say is run and compared with the code."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from transpike.methods import available
from transpike.tasks.catalog import TASKS

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def test_the_readme_code_runs(tmp_path: Path) -> None:
    code = re.findall(r"```python\n(.*?)```", README, re.DOTALL)[0]
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "SOP90" in done.stdout
    assert (tmp_path / "digits.spike").exists()


def test_the_readme_shows_code_early_and_both_commands() -> None:
    lines = README.splitlines()
    assert "```python" in lines[:15]
    assert "make demo" in README
    assert "make test" in README


def test_the_readme_names_every_method() -> None:
    assert set(available()) == set(re.findall(r"^\| `(\w+)`", README, re.MULTILINE))


@pytest.mark.parametrize("decision", sorted((ROOT / "docs" / "decisions").glob("*.md")), ids=lambda path: path.stem)
def test_decisions_are_numbered_and_fit_one_page(decision: Path) -> None:
    text = decision.read_text()
    assert text.startswith(f"# {decision.stem[:4]}: ")
    assert len(text.splitlines()) < 60


def test_links_in_the_readme_lead_somewhere() -> None:
    for target in re.findall(r"\]\((?!http)([^)]+)\)", README):
        assert (ROOT / target).exists(), target


@pytest.mark.parametrize("task", [name for name in TASKS if name != "classification"])
def test_a_task_has_a_page_with_a_picture_and_what_made_it(task: str) -> None:
    page = ROOT / "docs" / "tasks" / f"{task}.md"
    links = re.findall(r"\]\((?!http)([^)]+)\)", page.read_text())
    assert f"{task}.png" in links
    assert any(link.startswith("../../examples/") for link in links)
    for link in links:
        assert (page.parent / link).exists(), link


def test_the_methods_page_is_what_the_code_says() -> None:
    sys.path.insert(0, str(ROOT))
    try:
        from benchmarks.pages import methods_page
    finally:
        sys.path.remove(str(ROOT))
    assert (ROOT / "docs" / "methods.md").read_text() == methods_page(), "run python -m benchmarks.pages"
