"""The examples of README and docs run as printed."""

import re
from pathlib import Path

ROOT = Path(__file__).parent.parent


def run_examples(document: Path, count: int) -> dict:
    """Runs the Python blocks of a document one after the other and returns their names."""
    blocks = re.findall(r"```python\n(.*?)```", document.read_text(), re.S)
    assert len(blocks) == count
    namespace: dict = {}
    for block in blocks:
        exec(compile(block, str(document), "exec"), namespace)
    return namespace


def test_examples_of_the_readme() -> None:
    namespace = run_examples(ROOT / "README.md", 3)
    post = namespace["metrics"]["train/post_return"]
    assert post[-1] > post[0], "ten steps of MAML should improve the return after adaptation"
    attacked = namespace["result"].returns
    assert attacked.shape == (8, 2, 8)
    assert namespace["result"].budget_excess == 0
    moved = namespace["episode"].perturbed_obs - namespace["episode"].obs
    assert abs(moved - 0.3).max() < 1e-6


def test_examples_of_the_adapters() -> None:
    namespace = run_examples(ROOT / "docs" / "environments.md", 2)
    assert namespace["env"].obs_size == 10, "swimmer: 5 positions and 5 velocities"
    assert abs(namespace["metrics"]["train/post_return"]) < 100
    assert namespace["metrics"]["train/accepted"] in (0, 1)
