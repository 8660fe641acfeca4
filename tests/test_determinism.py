"""What changes no bit of a training run: `docs/reproducibility.md` has the whole table."""

import pytest

from tests.faults.determinism import compare

pytestmark = pytest.mark.usefixtures("compilation_cache")


@pytest.mark.parametrize(
    ("env", "names"),
    [
        ("navigation_2d", ("several steps per chunk", "no logging, one checkpoint")),
        ("halfcheetah_dir", ("two host threads",)),
    ],
)
def test_these_change_no_bit(env: str, names: tuple[str, ...]) -> None:
    assert compare(env, 2, names) == dict.fromkeys(names, 0.0)
