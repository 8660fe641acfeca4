"""Lanes: split into blocks, computed together or in turn, put together again."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import assert_trees_close, assert_trees_equal

from admrl_jax.protocol.lanes import (
    BATCH,
    STATE,
    LanePrograms,
    Piece,
    Trial,
    choose_lanes,
    merge,
    merge_arrays,
    split,
)
from admrl_jax.runs.devices import Devices, make_lanes
from admrl_jax.runs.programs import Program, Programs

LANES, TASKS = 6, 4


def lanes() -> dict[str, jax.Array]:
    """Six lanes of weights `[3]` and a key."""
    keys = jax.random.split(jax.random.key(0), LANES)
    return {"key": keys, "weights": jax.vmap(lambda key: jax.random.normal(key, (3,)))(keys)}


def to_numbers(tree: dict[str, jax.Array]) -> dict[str, jax.Array]:
    return {**tree, "key": jax.random.key_data(tree["key"])}


@pytest.mark.parametrize("at_once", [1, 2, 3, 6])
def test_merging_undoes_splitting(at_once: int) -> None:
    blocks = split(lanes(), at_once)
    assert len(blocks) == LANES // at_once
    assert all(block["weights"].shape == (at_once, 3) for block in blocks)
    assert_trees_equal(to_numbers(merge(blocks)), to_numbers(lanes()))
    arrays = [np.asarray(block["weights"]) for block in blocks]
    np.testing.assert_array_equal(merge_arrays(arrays), lanes()["weights"])


def step_of(devices: Devices):
    """Two programs that hand a batch to each other, as a step of training does."""

    def collect(state: dict[str, jax.Array]) -> tuple[jax.Array, jax.Array]:
        keys = devices.axis.split_key(state["key"], TASKS)
        noise = jax.vmap(lambda key: jax.random.normal(key, (3,)))(keys)
        return jnp.tanh(noise @ jnp.outer(state["weights"], state["weights"])), state["weights"]

    def learn(state: dict[str, jax.Array], batch: jax.Array) -> tuple[dict[str, jax.Array], jax.Array]:
        mean = devices.axis.total(jnp.sum(batch, axis=0)) / TASKS
        return {**state, "weights": state["weights"] - 0.1 * mean}, jnp.linalg.norm(mean)

    def step(programs: LanePrograms, state: dict[str, jax.Array]):
        batch, _ = programs.call(Piece("collect", collect, (STATE,), (BATCH, STATE)), state)
        return programs.call(Piece("learn", learn, (STATE, BATCH), (STATE, STATE)), state, batch)

    return step


@pytest.mark.parametrize("num_devices", [1, 2])
def test_lanes_together_are_close_to_lanes_in_turn(num_devices: int) -> None:
    devices = Devices(num_devices)
    step, found = step_of(devices), {}
    for at_once in (1, 2, 6):
        programs = LanePrograms(Programs(devices), at_once)
        blocks = [step(programs, block) for block in split(devices.place(lanes()), at_once)]
        state, norms = devices.local(merge(blocks))
        assert norms.shape == (LANES,) and len(np.unique(norms)) == LANES
        found[at_once] = to_numbers(state), norms
    for at_once in (2, 6):
        assert_trees_close(found[at_once], found[1], rtol=1e-5, atol=1e-6)
    # In turn, a lane has the bits that it has alone.
    alone = {name: x[4:5] for name, x in lanes().items()}
    state, norm = devices.local(step(LanePrograms(Programs(devices), 1), devices.place(alone)))
    assert_trees_equal((to_numbers(state), norm), jax.tree.map(lambda x: x[4:5], found[1]))


def test_a_number_of_lanes_is_kept() -> None:
    assert make_lanes(1).at_once == 1 and make_lanes(1, 3).at_once == 3


def test_a_trial_knows_the_largest_program_and_compiles_nothing_twice() -> None:
    devices = Devices()
    programs = Programs(devices)
    step, trial = step_of(devices), Trial(programs, 2)
    block = split(lanes(), 2)[0]
    tried = step(trial, block)
    sizes = [
        programs.needed_bytes(Program(name, unused), *arguments)
        for name, arguments in (("collect", [block]), ("learn", [block, tried_batch(block)]))
    ]
    assert trial.largest == max(sizes) > 0
    assert_trees_equal(jax.tree.map(jax.random.key_data, tried[0]["key"]), jax.random.key_data(block["key"]))


def unused(*arguments: jax.Array) -> None:
    """Not called: the program of that name and shape is there."""
    raise AssertionError


@pytest.mark.parametrize(("memory", "expected"), [(2**60, 6), (1, 1)])
def test_lanes_are_chosen_by_the_memory_of_their_programs(
    memory: int, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    devices = Devices()
    step, state = step_of(devices), lanes()
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr("admrl_jax.protocol.lanes.available_bytes", lambda: memory)
    programs = Programs(devices)
    chosen = choose_lanes(programs, LANES, lambda lanes: step(lanes, split(state, lanes.at_once)[0]))
    assert chosen.at_once == expected


def tried_batch(block: dict[str, jax.Array]) -> jax.Array:
    """What `collect` returns, by its shape alone."""
    return jnp.zeros((block["weights"].shape[0], TASKS, 3))
