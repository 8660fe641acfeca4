"""Functions over a leading axis in blocks: any block gives the same."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from admrl_jax import blocks


def test_zero_chooses_one_at_a_time_on_a_cpu_only(monkeypatch: pytest.MonkeyPatch) -> None:
    for backend, expected in (("cpu", 1), ("gpu", 40), ("tpu", 40)):
        monkeypatch.setattr(jax, "default_backend", lambda backend=backend: backend)
        assert blocks.at_once(0, 40) == expected
        assert blocks.at_once(8, 40) == 8


@pytest.mark.parametrize("block", [0, 1, 2, 4, 6, 7])
def test_map_blocks_golden(block: int) -> None:
    # Squares of six numbers; 4 does not divide 6 and 7 exceeds it.
    np.testing.assert_array_equal(blocks.map_blocks(jnp.square, jnp.arange(6), block), [0, 1, 4, 9, 16, 25])


@pytest.mark.parametrize("block", [0, 1, 2, 4, 6, 7])
def test_sum_blocks_golden(block: int) -> None:
    # Sum and count of squares, as a tree of sums over whatever entries are given.
    squares = lambda x: {"sum": jnp.sum(x**2), "count": len(x)}  # noqa: E731
    total = blocks.sum_blocks(squares, jnp.arange(6), block)
    np.testing.assert_array_equal(total["sum"], 0 + 1 + 4 + 9 + 16 + 25)
    np.testing.assert_array_equal(total["count"], 6)


@pytest.mark.parametrize("block", [0, 1, 2, 4, 6, 7])
def test_sum_entries_golden(block: int) -> None:
    squares = lambda x: {"sum": x**2, "count": jnp.ones(())}  # noqa: E731
    total = blocks.sum_entries(squares, jnp.arange(6), block)
    np.testing.assert_array_equal(total["sum"], 0 + 1 + 4 + 9 + 16 + 25)
    np.testing.assert_array_equal(total["count"], 6)
