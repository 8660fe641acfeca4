"""What a checkout holds: small enough to clone and to carry to another machine."""

import subprocess
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
MEGABYTE = 1_000_000


def tracked() -> list[Path]:
    """The files that git tracks and that are there."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("not a checkout")
    return [ROOT / name for name in listed.stdout.split("\0") if name and (ROOT / name).is_file()]


def test_the_tracked_tree_is_small() -> None:
    sizes = {path: path.stat().st_size for path in tracked()}
    by_folder: Counter[str] = Counter()
    for path, size in sizes.items():
        by_folder[path.relative_to(ROOT).parts[0]] += size
    assert len(sizes) > 100 and by_folder["src"] > 0
    assert sum(sizes.values()) < 12 * MEGABYTE, by_folder.most_common(5)
    large = {str(path): size for path, size in sizes.items() if size > 2 * MEGABYTE}
    assert not large


def test_runs_are_kept_without_what_they_can_do_without() -> None:
    names = [path.relative_to(ROOT).as_posix() for path in tracked() if ROOT / "results" in path.parents]
    assert any(name.endswith("policies.npz") for name in names)
    for name in names:
        parts = name.split("/")
        assert not {"checkpoints", "tensorboard", "returns"} & set(parts), name
        assert parts[-1] not in (".lock", "metrics.csv"), name
