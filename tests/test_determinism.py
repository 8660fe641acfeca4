"""What changes no bit of a training run: `docs/reproducibility.md` has the whole table."""

import numpy as np
import pytest

from faults.determinism import compare, distance, toy_config


@pytest.mark.parametrize(
    ("env", "names"),
    [
        ("navigation_2d", ("several steps per chunk", "no logging, one checkpoint", "two seeds together")),
        ("halfcheetah_dir", ("1 host thread",)),
    ],
)
def test_these_change_no_bit(env: str, names: tuple[str, ...]) -> None:
    assert compare(toy_config(env, 2), names) == dict.fromkeys(names, 0.0)


def test_a_number_that_is_none_is_no_equal_bit() -> None:
    same, broken = [np.zeros(2), np.zeros(2)], [np.zeros(2), np.full(2, np.nan)]
    assert distance(same, same) == 0.0 and np.isnan(distance(broken, same))
    assert distance([np.array([1.0, 4.0]), np.zeros(1)], [np.array([0.0, 1.0]), np.ones(1)]) == 3.0
