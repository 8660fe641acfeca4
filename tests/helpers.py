"""Small random data, parameters and derivatives that several test files share."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from admrl_jax.core.networks import Policy, PolicyConfig, make_policy
from admrl_jax.core.types import Experience, Trajectory


def tiny_policy(obs_size: int = 2, action_size: int = 2, hidden: tuple[int, ...] = (4,)) -> Policy:
    """A policy small enough for dense Hessians. Its floor is high, so that random parameters near 0 are a
    standard deviation near 1.
    """
    return make_policy(obs_size, action_size, PolicyConfig(hidden_sizes=hidden, min_std=0.5))


def random_like(init: Callable[[jax.Array], Any], seed: int, size: float = 0.5, dtype: Any = None) -> Any:
    """Parameters shaped like `init`'s with every entry random, biases too, so no gradient is zero by luck."""
    rng = np.random.default_rng(seed)
    shapes = jax.eval_shape(init, jax.random.key(0))
    return jax.tree.map(lambda s: jnp.asarray(size * rng.normal(size=s.shape), dtype or s.dtype), shapes)


def random_experience(
    seed: int,
    lead: tuple[int, ...],
    *,
    obs_size: int = 2,
    action_size: int = 2,
    dtype: Any = np.float32,
    attacked: float = 0.1,
) -> Experience:
    """Random episodes, fields `[*lead, ...]`; the last axis of `lead` is steps, half of them end early."""
    rng = np.random.default_rng(seed)
    obs = rng.normal(size=(*lead, obs_size))
    perturbed = obs + attacked * rng.normal(size=obs.shape)
    horizon = lead[-1]
    length = rng.integers(1, horizon + 1, size=lead[:-1])
    length = np.where(rng.random(lead[:-1]) < 0.5, horizon, length)
    mask = (np.arange(horizon) < length[..., None]).astype(dtype)
    action = rng.normal(size=(*lead, action_size))
    reward, advantage = rng.normal(size=lead) * mask, rng.normal(size=lead) * mask
    log_prob = rng.normal(size=lead)
    fields = (obs, perturbed, action, log_prob, reward, mask, advantage)
    *trajectory, advantage = (jnp.asarray(x, dtype) for x in fields)
    return Experience(Trajectory(*trajectory, diverged=jnp.zeros_like(advantage)), advantage)


def finite_differences(
    function: Callable[[jax.Array], jax.Array], x: jax.Array, step: float = 1e-5
) -> jax.Array:
    """Central differences of a scalar function of a vector, one entry at a time."""
    sides = jax.vmap(lambda e: (function(x + step * e) - function(x - step * e)) / (2 * step))
    return jax.jit(sides)(jnp.eye(x.size, dtype=x.dtype))


def engine_step(engine: Any, *inputs: np.ndarray, ended: np.ndarray | None = None) -> tuple[np.ndarray, ...]:
    """One control step of a host engine on state, control and body: positions, velocities, accelerations."""
    outputs = tuple(np.empty_like(x) for x in inputs[:3])
    ended = np.zeros(inputs[0].shape[:-1], bool) if ended is None else ended
    engine.step((*inputs[:4], ended, *inputs[4:]), outputs)
    return outputs


def assert_trees_equal(a: Any, b: Any) -> None:
    """Same structure, same bits."""
    assert jax.tree.structure(a) == jax.tree.structure(b)
    jax.tree.map(np.testing.assert_array_equal, a, b)


def assert_trees_close(a: Any, b: Any, rtol: float, atol: float = 0.0) -> None:
    """Same structure, close numbers."""
    assert jax.tree.structure(a) == jax.tree.structure(b)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=rtol, atol=atol), a, b)


def assert_no_leaf_is_zero(tree: Any) -> None:
    """Every leaf is finite and has an entry that is not zero."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        name = jax.tree_util.keystr(path)
        assert np.all(np.isfinite(leaf)), name
        assert np.any(np.asarray(leaf) != 0), name
