"""How many lanes a program holds at once: as many as fit, and no more than asked for."""

import jax
import jax.numpy as jnp
import pytest

from admrl_jax import memory
from admrl_jax.blocks import map_blocks


class Program:
    """Stands for a compiled program that needs so many bytes."""

    def __init__(self, needed: int):
        self.needed = needed


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> None:
    """An accelerator of 100 bytes."""
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(memory, "available_bytes", lambda: 100)
    monkeypatch.setattr(memory, "needed_bytes", lambda program: program.needed)


@pytest.mark.usefixtures("device")
@pytest.mark.parametrize(
    ("per_lane", "lanes", "chosen", "expected"),
    [
        (5, 20, 0, [20]),  # all fit
        (10, 20, 0, [20, 10]),
        (30, 20, 0, [20, 10, 5, 3]),
        (500, 3, 0, [3, 2, 1]),  # not even one fits, and one is taken
        (500, 20, 4, [4]),  # as asked
        (5, 3, 8, [3]),  # there are no more
    ],
)
def test_lanes_are_halved_until_they_fit(per_lane: int, lanes: int, chosen: int, expected: list[int]) -> None:
    tried = []

    def compile_for(at_once: int) -> Program:
        tried.append(at_once)
        return Program(at_once * per_lane)

    at_once, program = memory.compile_largest(compile_for, lanes, chosen)
    assert tried == expected
    assert (at_once, program.needed) == (expected[-1], expected[-1] * per_lane)


@pytest.mark.parametrize(("chosen", "expected"), [(0, 1), (2, 2), (8, 3)])
def test_a_cpu_takes_one_lane_after_the_other_unless_told(chosen: int, expected: int) -> None:
    assert memory.compile_largest(Program, 3, chosen)[0] == expected


def test_a_program_needs_the_memory_of_its_lanes() -> None:
    def compile_for(at_once: int):
        def grow(x: jax.Array) -> jax.Array:
            return jnp.sort(jnp.outer(x, x), axis=None)[::100]

        lanes = jnp.ones((16, 256))
        return jax.jit(lambda x: map_blocks(grow, x, at_once)).lower(lanes).compile()

    one, four, all_lanes = (memory.needed_bytes(compile_for(at_once)) for at_once in (1, 4, 16))
    size = 4 * 256**2
    assert one >= size
    assert four >= 4 * size and four > 2 * one
    assert all_lanes >= 16 * size and all_lanes > 2 * four
    assert 16 * size < memory.available_bytes()
