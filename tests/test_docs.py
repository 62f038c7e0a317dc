"""The Python in the README and the documentation runs, and says what the text around it says."""

from __future__ import annotations

import re
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from fogline.doctor.finding import CAUSES
from fogline.explained import PAGE, names

ROOT = Path(__file__).resolve().parents[1]
FENCE = re.compile(r"^```python\n(.*?)^```", re.DOTALL | re.MULTILINE)
TOGETHER = "docs/troubleshooting.md"
"""The page whose blocks all begin with its first one."""
OTHERS = {
    "accelerate", "keras", "lightning", "mlflow", "tensorboard", "trackio", "transformers", "ultralytics", "wandb",
}  # fmt: skip
"""Packages of others that the plug-ins are for; what needs one of them is run by ``make test-plugins``."""


def pages() -> list[str]:
    """All pages but records of what was measured and tried."""
    found = [ROOT / "README.md", *sorted(ROOT.glob("docs/**/*.md"))]
    names = [str(path.relative_to(ROOT)) for path in found]
    return [name for name in names if not name.startswith(("docs/evidence/", "docs/LOG"))]


def blocks(page: str) -> list[tuple[int, str]]:
    """The Python of a page, each with the line its fence stands on."""
    text = (ROOT / page).read_text(encoding="utf-8")
    return [(text[: fence.start()].count("\n") + 1, fence[1]) for fence in FENCE.finditer(text)]


def programs(page: str) -> list[tuple[int, str]]:
    """The same, where a block that imports nothing goes on with the names of the one before."""
    found: list[tuple[int, str]] = []
    for line, code in blocks(page):
        if found and not re.search(r"^(import|from) ", code, re.MULTILINE):
            begun, before = found.pop()
            # Line numbers of a failure stay those of the page.
            line, code = begun, before + "\n" * (line - begun - before.count("\n")) + code
        found.append((line, code))
    return found


def execute(page: str, line: int, code: str, names: dict[str, Any]) -> None:
    # Line numbers of a failure are those of the page.
    exec(compile("\n" * line + code, str(ROOT / page), "exec"), names)


def others(code: str) -> set[str]:
    """The trainers and loggers that a program needs."""
    named = re.findall(r"^(?:import|from) (?:fogline\.plugins\.)?(\w+)|\bto_(\w+)", code, re.MULTILINE)
    return {name for pair in named for name in pair} & OTHERS


def translated(page: str) -> bool:
    return page.startswith("docs/ko/")


ALONE = [
    pytest.param(page, line, code, id=f"{page}:{line}")
    for page in pages()
    if page != TOGETHER and not translated(page)
    for line, code in programs(page)
]


@pytest.mark.parametrize(("page", "line", "code"), ALONE)
def test_the_code_runs(
    page: str, line: int, code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if page == "docs/edge.md" and find_spec("onnxruntime") is None:
        pytest.skip("the extra 'edge' is not installed: pip install 'fogline[edge]'")
    absent = [name for name in others(code) if find_spec(name) is None]
    if absent:
        pytest.skip(f"run by make test-plugins: it needs {', '.join(absent)}")
    monkeypatch.chdir(tmp_path)
    execute(page, line, code, {"__name__": "__main__"})
    assert capsys.readouterr().out


@pytest.mark.parametrize("page", [page for page in pages() if translated(page)])
def test_a_translation_has_the_code_of_the_page_it_translates(page: str) -> None:
    """Word for word, so that what runs there runs here."""
    original = blocks(page.replace("/ko/", "/"))
    assert original
    assert [code for _, code in blocks(page)] == [code for _, code in original]


@pytest.mark.parametrize("page", ["docs/glossary.md"])
def test_every_term_has_five_lines(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    entries = re.split(r"^## ", text, flags=re.MULTILINE)[1:]
    assert len(entries) >= 9
    for entry in entries:
        (code,) = FENCE.findall(entry)
        assert len([line for line in code.splitlines() if line.strip()]) == 5, entry.splitlines()[0]


def test_every_cause_has_its_entry() -> None:
    assert PAGE == TOGETHER
    assert list(names()) == [cause for group in CAUSES.values() for cause in group]


@pytest.fixture(scope="module")
def beginning() -> dict[str, Any]:
    names: dict[str, Any] = {"__name__": "__main__"}
    execute(TOGETHER, *blocks(TOGETHER)[0], names)
    return names


ENTRIES = [pytest.param(cause, *block, id=cause) for cause, block in zip(names(), blocks(TOGETHER)[1:], strict=True)]


@pytest.mark.parametrize(("cause", "line", "code"), ENTRIES)
def test_the_cause_is_found_in_the_faulty_program_and_gone_after_the_fix(
    cause: str,
    line: int,
    code: str,
    beginning: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    import torch

    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    execute(TOGETHER, line, code, dict(beginning))
    before, after = capsys.readouterr().out.splitlines()
    assert f"'{cause}'" in before
    assert f"'{cause}'" not in after


def test_the_index_leads_to_every_cause() -> None:
    text = (ROOT / TOGETHER).read_text(encoding="utf-8")
    index = text[text.index("## What do you see?") : text.index("## The beginning")]
    assert set(re.findall(r"\(#(\w+)\)", index)) == set(names())


def test_the_reference_has_every_public_name() -> None:
    import fogline

    text = "".join(path.read_text(encoding="utf-8") for path in ROOT.glob("docs/reference/*.md"))
    missing = [name for name in fogline.__all__ if f"::: fogline.{name}\n" not in text]
    assert not missing, "add '::: fogline.NAME' to a page of docs/reference"


def test_every_page_is_in_the_navigation() -> None:
    text = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    inside = [page.removeprefix("docs/") for page in pages() if page.startswith("docs/")]
    missing = [page for page in inside if page not in text]
    assert not missing, "add a line for each to nav in mkdocs.yml"


@pytest.mark.parametrize(
    "page", sorted(str(path.relative_to(ROOT)) for path in [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
)
def test_links_lead_somewhere(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", text):
        assert (ROOT / page).parent.joinpath(target).exists(), target
