"""The Python in the README and the documentation runs."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
NAMES = (
    "quickstart",
    "how-to-choose",
    "watch",
    "doctor",
    "figures",
    "landscape",
    "dashboard",
    "examples",
    "examples-ranking",
)
PAGES = ("README.md", *(f"docs/{name}.md" for name in NAMES))


def blocks() -> list[tuple[str, int, str]]:
    """The programs of each page; a block that imports nothing goes on with the names of the one before."""
    found: list[tuple[str, int, str]] = []
    for page in PAGES:
        text = (ROOT / page).read_text(encoding="utf-8")
        for fence in re.finditer(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE):
            line, code = text[: fence.start()].count("\n") + 1, fence[1]
            if found and found[-1][0] == page and not re.search(r"^(import|from) ", code, re.MULTILINE):
                _, begun, before = found.pop()
                # Line numbers of a failure stay those of the page.
                line, code = begun, before + "\n" * (line - begun - before.count("\n")) + code
            found.append((page, line, code))
    return found


@pytest.mark.parametrize(("page", "line", "code"), blocks(), ids=lambda value: str(value)[:20].replace("\n", " "))
def test_the_code_runs(
    page: str, line: int, code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    # Line numbers of a failure are those of the page.
    exec(compile("\n" * line + code, str(ROOT / page), "exec"), {"__name__": "__main__"})
    assert capsys.readouterr().out


@pytest.mark.parametrize(
    "page", sorted(str(path.relative_to(ROOT)) for path in [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])
)
def test_links_lead_somewhere(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#:]+)\)", text):
        assert (ROOT / page).parent.joinpath(target).exists(), target
