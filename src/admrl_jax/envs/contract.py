"""What an environment must be, checked by shapes before anything is computed with it."""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from admrl_jax.core.settings import ConfigError, is_whole
from admrl_jax.core.types import TimeStep

MEMBERS = ("obs_size", "action_size", "horizon", "sample_task", "reset", "step")
"""What an environment must have; see `Env`."""
SIZES = MEMBERS[:3]


def check_env(env: Any) -> None:
    """Refuses what is no environment; what was found right is not looked at again.

    `reward` may be of any number type, `terminated` too (0 is False): `rollout` turns them into what it
    needs.

    Args:
        env: what should be hashable and have the members of `Env`.

    Raises:
        ConfigError: naming the member, and shape and type as found and as wanted.
    """
    try:
        hash(env)
    except TypeError as error:
        raise ConfigError(
            f"env: {type(env).__name__} cannot be hashed ({error}); accepted: an object that can, such as a "
            "frozen dataclass of numbers and tuples"
        ) from None
    _check_once(env)


@functools.lru_cache(maxsize=64)
def _check_once(env: Any) -> None:
    name = type(env).__name__
    missing = [member for member in MEMBERS if not hasattr(env, member)]
    if missing:
        raise ConfigError(
            f"env: {name} has no {', '.join(missing)}; accepted: an object with {', '.join(MEMBERS)}"
        )
    for member in SIZES:
        size = getattr(env, member)
        if not is_whole(size) or size < 1:
            raise ConfigError(
                f"env: {name}.{member}: {size!r} is not accepted; accepted: a whole number from 1"
            )
    task = _shapes(f"{name}.sample_task", env.sample_task, jax.random.key(0))
    started = _shapes(f"{name}.reset", env.reset, jax.random.key(0), task)
    if not isinstance(started, tuple) or len(started) != 2:
        raise ConfigError(f"env: {name}.reset returns {describe(started)}; accepted: (state, observation)")
    state, obs = started
    _check(f"{name}.reset: observation", obs, (env.obs_size,), jnp.floating)
    action = jax.ShapeDtypeStruct((env.action_size,), jnp.result_type(float))
    taken = _shapes(f"{name}.step", env.step, state, action, task)
    if not isinstance(taken, tuple) or len(taken) != 2 or not isinstance(taken[1], TimeStep):
        raise ConfigError(f"env: {name}.step returns {describe(taken)}; accepted: (state, TimeStep)")
    new_state, new = taken
    _check(f"{name}.step: observation", new.obs, (env.obs_size,), jnp.floating)
    for member in ("reward", "terminated"):
        _check(f"{name}.step: {member}", getattr(new, member), (), jnp.number, jnp.bool_)
    before, after = (jax.tree.map(describe, tree) for tree in (state, new_state))
    if before != after:
        raise ConfigError(
            f"env: {name}.step returns the state {describe(new_state)}; accepted: that of reset, "
            f"{describe(state)}"
        )


def describe(tree: Any) -> str:
    """Shapes and types of a pytree in words, short enough for one line."""
    if hasattr(tree, "shape") and hasattr(tree, "dtype"):
        return f"{tree.dtype}{list(tree.shape)}"
    if isinstance(tree, dict):
        words = ", ".join(f"{key}: {describe(value)}" for key, value in tree.items())
        return f"{{{words[:200]}}}"
    if isinstance(tree, tuple | list):
        return f"{type(tree).__name__}({', '.join(map(describe, tree))[:200]})"
    return type(tree).__name__


def _shapes(where: str, function: Any, *args: Any) -> Any:
    try:
        return jax.eval_shape(function, *args)
    except ConfigError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split())[:300]
        raise ConfigError(f"env: {where} fails: {type(error).__name__}: {reason}") from error


def _check(where: str, found: Any, shape: tuple[int, ...], *kinds: Any) -> None:
    is_array = hasattr(found, "shape") and hasattr(found, "dtype")
    if is_array and found.shape == shape and any(jnp.issubdtype(found.dtype, kind) for kind in kinds):
        return
    wanted = {jnp.floating: "float", jnp.number: "a number", jnp.bool_: "bool"}
    words = " or ".join(wanted[kind] for kind in kinds)
    raise ConfigError(f"env: {where} is {describe(found)}; accepted: {words}{list(shape)}")
