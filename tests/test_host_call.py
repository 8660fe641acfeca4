"""Python called from compiled code: values, batches, precision, errors, the compilation cache."""

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from admrl_jax.simulators import host_call as module
from admrl_jax.simulators.host_call import host_call

ROOT = Path(__file__).parent.parent


def sum_and_scale(inputs: Sequence[np.ndarray], outputs: Sequence[np.ndarray]) -> None:
    """`(a [3], b [2]) -> (2 a [3], sum of b [1])`, batches in front."""
    a, b = inputs
    outputs[0][:] = 2 * a
    outputs[1][:] = b.sum(axis=-1, keepdims=True)


def call(a: jax.Array, b: jax.Array) -> list[jax.Array]:
    shapes = (jax.ShapeDtypeStruct((3,), a.dtype), jax.ShapeDtypeStruct((1,), a.dtype))
    return host_call(sum_and_scale, "test-sum-and-scale", shapes, a, b)


@pytest.fixture(params=["foreign function", "pure_callback"])
def route(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both ways to the host."""
    if request.param == "pure_callback":
        monkeypatch.setattr(module, "_is_registered", lambda: False)
    elif jax.default_backend() == "cpu":
        assert module._is_registered(), "this jaxlib refuses the handler"
    return request.param


def test_nested_batches_come_in_one_call(route: str) -> None:
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(4, 5, 3)).astype(np.float32), rng.normal(size=(4, 5, 2)).astype(np.float32)
    doubled, total = jax.jit(jax.vmap(jax.vmap(call)))(a, b)
    np.testing.assert_array_equal(doubled, 2 * a)
    np.testing.assert_array_equal(total, b.sum(-1, keepdims=True))
    # What is not batched is repeated.
    shared = jax.jit(jax.vmap(call, in_axes=(0, None)))(a[0], b[0, 0])[1]
    np.testing.assert_array_equal(shared, np.full((5, 1), b[0, 0].sum()))


def test_double_precision(route: str, x64: None) -> None:
    a, b = jnp.full(3, 1 / 3), jnp.array([1.0, 1e-12])
    doubled, total = jax.jit(call)(a, b)
    assert doubled.dtype == jnp.float64
    assert total[0] == 1 + 1e-12


def test_works_inside_scan_and_cond(route: str) -> None:
    def step(a: jax.Array, on: jax.Array):
        a = jax.lax.cond(on, lambda: call(a, jnp.ones(2))[0], lambda: a)
        return a, a

    last, _ = jax.jit(lambda: jax.lax.scan(step, jnp.ones(3), jnp.array([True, False, True, True])))()
    np.testing.assert_array_equal(last, 8)


def test_errors_reach_the_caller(route: str) -> None:
    def broken(inputs: Sequence[np.ndarray], outputs: Sequence[np.ndarray]) -> None:
        raise ValueError("the knee is not finite")

    run = jax.jit(lambda x: host_call(broken, "test-broken", (jax.ShapeDtypeStruct((1,), x.dtype),), x))
    with pytest.raises(jax.errors.JaxRuntimeError, match="the knee is not finite"):
        jax.block_until_ready(run(jnp.ones(1)))
    # The program, and the process, go on.
    np.testing.assert_array_equal(jax.jit(call)(jnp.ones(3), jnp.ones(2))[1], 2)


PROGRAM = """
import jax, jax.numpy as jnp
from admrl_jax import envs
hits = []
jax.monitoring.register_event_listener(lambda name, **_: name.endswith("cache_hits") and hits.append(name))
env = envs.make("halfcheetah_dir", simulator="mujoco", num_threads=1)
def run(key):
    state, _ = env.reset(key, jnp.float32(1))
    return env.step(state, jnp.ones(6), jnp.float32(1))[1].reward
key = jax.random.key(0)
before = len(hits)
print(jax.jit(run)(key), len(hits) - before)
"""


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="other devices use pure_callback")
def test_another_process_finds_the_compiled_program(tmp_path: Path) -> None:
    environment = os.environ | {
        "JAX_COMPILATION_CACHE_DIR": str(tmp_path),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }
    outputs = [
        subprocess.run(
            [sys.executable, "-c", PROGRAM],
            cwd=ROOT,
            env=environment,
            capture_output=True,
            text=True,
            check=True,
        ).stdout.split()
        for _ in range(2)
    ]
    assert outputs[0][1] == "0" and outputs[1][1] == "1", outputs
    assert outputs[0][0] == outputs[1][0], "the same bits"
