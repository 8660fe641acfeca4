"""Compiled programs: each compiled once, the memory it needs, and how many lanes are computed at once."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from admrl_jax.core.task_axis import map_blocks
from admrl_jax.runs import programs
from admrl_jax.runs.devices import SAME, Devices, tasks_at
from admrl_jax.runs.programs import Program, Programs, available_bytes, choose_at_once


@pytest.fixture
def accelerator(monkeypatch: pytest.MonkeyPatch) -> None:
    """A device that is no CPU."""
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")


@pytest.mark.usefixtures("accelerator")
@pytest.mark.parametrize(
    ("per_lane", "lanes", "chosen", "expected", "tried"),
    [
        (5, 20, 0, 20, [20]),  # all fit
        (10, 20, 0, 10, [20, 10]),
        (30, 12, 0, 3, [12, 6, 4, 3]),  # divisors only: no block is smaller than the others
        (500, 3, 0, 1, [3]),  # not even one fits, and one is taken; 1 need not be tried
        (500, 20, 4, 4, []),  # as asked
        (500, 20, 7, 5, []),  # a divisor below what was asked
        (5, 3, 8, 3, []),  # there are no more
        (5, 1, 0, 1, []),
    ],
)
def test_as_many_lanes_as_fit(
    per_lane: int, lanes: int, chosen: int, expected: int, tried: list[int]
) -> None:
    asked = []

    def fits(at_once: int) -> bool:
        asked.append(at_once)
        return at_once * per_lane <= 100

    assert choose_at_once(lanes, fits, chosen) == expected
    assert asked == tried


@pytest.mark.parametrize(("chosen", "expected"), [(0, 1), (2, 2), (8, 6)])
def test_a_cpu_takes_one_lane_after_the_other_unless_told(chosen: int, expected: int) -> None:
    assert choose_at_once(6, lambda at_once: True, chosen) == expected


def test_a_program_needs_the_memory_of_its_lanes() -> None:
    def grow(x: jax.Array) -> jax.Array:
        return jnp.sort(jnp.outer(x, x), axis=None)[::100]

    lanes, memory = jnp.ones((16, 256)), Programs(Devices())

    def need(at_once: int) -> int:
        return memory.needed_bytes(Program(f"{at_once}", lambda x: map_blocks(grow, x, at_once)), lanes)

    one, four, all_lanes = (need(at_once) for at_once in (1, 4, 16))
    size = 4 * 256**2
    assert one >= size
    assert four >= 4 * size and four > 2 * one
    assert all_lanes >= 16 * size and all_lanes > 2 * four
    assert 16 * size < available_bytes()


def test_a_program_is_compiled_once_for_its_name_and_shapes(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: list[None] = []
    # After every compilation memory is given back.
    monkeypatch.setattr(programs, "return_unused", lambda: compiled.append(None))

    def double(tree: dict[str, jax.Array]) -> jax.Array:
        return 2 * tree["x"]

    mine = Programs(Devices())
    for count in (3, 3, 4, 3):
        x = jnp.arange(float(count))
        np.testing.assert_array_equal(mine.run(Program("double", double), {"x": x}), 2 * x)
    mine.needed_bytes(Program("double", double), {"x": jnp.zeros(4)})
    assert len(compiled) == 2
    # Another type, another name, another structure: another program each.
    mine.run(Program("double", double), {"x": jnp.arange(3)})
    mine.run(Program("twice", double), {"x": jnp.arange(3.0)})
    mine.run(Program("double", double), {"x": jnp.arange(3.0), "y": jnp.zeros(1)})
    assert len(compiled) == 5


def test_programs_hand_spread_arrays_to_each_other() -> None:
    devices = Devices(2)
    mine, shapes = Programs(devices), []
    x = jnp.arange(8.0)

    def share(x: jax.Array) -> jax.Array:
        return devices.axis.share(x)

    def total(part: jax.Array, y: jax.Array) -> tuple[jax.Array, jax.Array]:
        shapes.append(part.shape)
        return devices.axis.total(jnp.sum(part)), part + y

    part = mine.run(Program("share", share, (SAME,), tasks_at(0)), devices.place(x))
    add_up = Program("total", total, (tasks_at(0), SAME), (SAME, tasks_at(0)))
    summed, moved = mine.run(add_up, part, devices.place(jnp.ones(())))
    assert shapes == [(4,)]
    assert devices.local(summed) == x.sum()
    np.testing.assert_array_equal(moved, x + 1)
