"""The README's examples run as printed."""

import re
from pathlib import Path

README = Path(__file__).parent.parent / "README.md"


def test_examples_run_as_printed() -> None:
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(), re.S)
    assert len(blocks) == 3
    namespace: dict = {}
    for block in blocks:
        exec(compile(block, str(README), "exec"), namespace)
    post = namespace["metrics"]["train/post_return"]
    assert post[-1] > post[0], "ten steps of MAML should improve the return after adaptation"
    attacked = namespace["result"].returns
    assert attacked.shape == (8, 2, 8)
    assert namespace["result"].budget_excess == 0
    moved = namespace["episode"].perturbed_obs - namespace["episode"].obs
    assert abs(moved - 0.3).max() < 1e-6
