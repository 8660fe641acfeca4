"""What changes no bit of a training run: `docs/reproducibility.md` has the whole table."""

import pytest

from faults.determinism import compare, toy_config


@pytest.mark.parametrize(
    ("env", "names"),
    [
        ("navigation_2d", ("several steps per chunk", "no logging, one checkpoint", "two seeds together")),
        ("halfcheetah_dir", ("1 host thread",)),
    ],
)
def test_these_change_no_bit(env: str, names: tuple[str, ...]) -> None:
    assert compare(toy_config(env, 2), names) == dict.fromkeys(names, 0.0)
