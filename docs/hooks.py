"""Brings reports and figures, which lie beside `docs/` in the repository, into the site.

Pages link to them by their place in the repository (`../results/learning.png`), so links work there and
here. A file that is not one of `SHOWN` is left alone, and `mkdocs build --strict` then refuses the link.
"""

import os
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File

ROOT = Path(__file__).parent.parent
SHOWN = (
    "results/*.png",
    *(f"results/*/{folder}{what}" for folder in ("", "attack*/") for what in ("report.md", "figures/*.png")),
    "benchmarks/README.md",
)
LINK = re.compile(r"(\]\()([^)#\s]+)(#[^)\s]*)?(\))")


def shown() -> list[Path]:
    """Files of the repository that the site shows."""
    return [path for pattern in SHOWN for path in sorted(ROOT.glob(pattern))]


def on_files(files: Any, config: Any) -> Any:
    """Adds them to the site, at the place that they have in the repository."""
    for path in shown():
        place = path.relative_to(ROOT).as_posix()
        files.append(File.generated(config, place, abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Points links that leave `docs/` to where the files are in the site."""
    is_ours = (ROOT / "docs" / page.file.src_uri).is_file()
    folder = (ROOT / "docs" if is_ours else ROOT) / Path(page.file.src_uri).parent
    places = {path: path.relative_to(ROOT).as_posix() for path in shown()}

    def moved(match: re.Match[str]) -> str:
        start, target, anchor, end = match.groups(default="")
        path = Path(os.path.normpath(folder / target))
        if path in places:
            target = os.path.relpath(places[path], Path(page.file.src_uri).parent)
        elif not is_ours and path.is_relative_to(ROOT / "docs"):
            target = os.path.relpath(path.relative_to(ROOT / "docs"), Path(page.file.src_uri).parent)
        return f"{start}{target}{anchor}{end}"

    return LINK.sub(moved, markdown)
