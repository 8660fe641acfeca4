"""The MuJoCo engine called at once from several devices, seeds and threads: the numbers of one caller."""

import concurrent.futures
import contextlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import engine_step

from admrl_jax.envs.half_cheetah import HalfCheetahDir, HalfCheetahDirConfig
from admrl_jax.envs.registry import make_env
from admrl_jax.runs.devices import SAME, Devices, tasks_at
from admrl_jax.simulators.models import load_model
from admrl_jax.simulators.mujoco import HostEngine

DEVICES, SEEDS, TASKS_PER_DEVICE, HORIZON = 4, 2, 2, 5


@pytest.fixture(scope="module")
def run():
    """Positions `[SEEDS, N, HORIZON, 8]` of random actions; an engine of two threads."""
    env = make_env(HalfCheetahDirConfig(horizon=HORIZON), simulator="mujoco", num_threads=2)

    def episode(seed: jax.Array, number: jax.Array) -> jax.Array:
        key_reset, key_action = jax.random.split(jax.random.fold_in(jax.random.key(seed), number))
        state, _ = env.reset(key_reset, 1.0)

        def step(state, action):
            state, new = env.step(state, action, 1.0)
            return state, new.obs[:8]

        return jax.lax.scan(step, state, 10 * jax.random.normal(key_action, (HORIZON, 6)))[1]

    return jax.vmap(jax.vmap(episode, in_axes=(None, 0)), in_axes=(0, None))


def test_devices_seeds_and_threads_at_once_give_the_numbers_of_one(run) -> None:
    seeds, numbers = jnp.arange(SEEDS), jnp.arange(DEVICES * TASKS_PER_DEVICE)
    alone = np.asarray(jax.jit(run)(seeds, numbers))
    assert np.all(np.isfinite(alone)) and len(np.unique(alone[:, :, -1, 0])) == alone[:, :, 0, 0].size

    devices = Devices(DEVICES)
    part = lambda seeds, numbers: run(seeds, devices.axis.share(numbers))  # noqa: E731
    spread = jax.jit(devices.spread(part, (SAME, SAME), tasks_at(1)))
    np.testing.assert_array_equal(spread(seeds, numbers), alone)
    # Several host threads, each with a program of its own size or spread over devices.
    one = jax.jit(run)
    jobs = [(lambda: spread(seeds, numbers), alone), (lambda: one(seeds, numbers), alone)]
    jobs += [(lambda i=i: one(seeds, numbers[i : i + 1]), alone[:, i : i + 1]) for i in range(4)]
    with concurrent.futures.ThreadPoolExecutor(6) as pool:
        for _ in range(5):
            futures = [(pool.submit(job), expected) for job, expected in jobs]
            for future, expected in futures:
                np.testing.assert_array_equal(future.result(timeout=300), expected)


def test_engines_of_their_own_need_no_lock() -> None:
    rng = np.random.default_rng(0)
    batches = [
        (
            rng.uniform(-0.1, 0.1, (n, 9)),
            rng.normal(size=(n, 9)),
            np.zeros((n, 9)),
            rng.uniform(-1, 1, (n, 6)),
        )
        for n in (3, 5, 8, 13)
    ]
    shared = HostEngine(load_model(HalfCheetahDir.model), frame_skip=5, num_threads=2)
    expected = [engine_step(shared, *batch) for batch in batches]

    def alone(batch) -> list:
        engine = HostEngine(load_model(HalfCheetahDir.model), frame_skip=5, num_threads=2)
        engine._lock = contextlib.nullcontext()  # pyright: ignore[reportAttributeAccessIssue]
        return [engine_step(engine, *batch) for _ in range(20)]

    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        for first, results in zip(expected, pool.map(alone, batches), strict=True):
            for result in results:
                for x, y in zip(first, result, strict=True):
                    np.testing.assert_array_equal(x, y)
