"""What stands beside the documentation in the repository, brought into the site: changes and example programs."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[2]


def on_files(files: Files, config: Any) -> Files:
    """Add the changes as a page and the examples as files."""
    files.append(File.generated(config, "changes.md", content=(ROOT / "CHANGELOG.md").read_text(encoding="utf-8")))
    for program in sorted((ROOT / "examples").glob("*.py")):
        files.append(File.generated(config, f"examples/{program.name}", abs_src_path=str(program)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Links that lead out of ``docs/`` on disk lead to those in the site."""
    up = "../" * page.file.src_uri.count("/")
    markdown = markdown.replace(f"]({up}../CHANGELOG.md)", f"]({up}changes.md)")
    return re.sub(rf"\]\({re.escape(up)}\.\./examples/", f"]({up}examples/", markdown)
