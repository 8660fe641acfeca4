"""Functions over the entries of a leading axis (tasks, lanes), so many at a time.

One at a time keeps what is computed in a CPU's cache and memory small; all together fill an accelerator.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp


def map_blocks(function: Callable, data: Any, block: int) -> Any:
    """`vmap(function)` over the leading axis, `block` entries at a time, 0 choosing as in `at_once`."""
    count = jax.tree.leaves(data)[0].shape[0]
    block = at_once(block, count)
    if block == 1:
        return jax.lax.map(function, data)
    return jax.vmap(function)(data) if block == count else jax.lax.map(function, data, batch_size=block)


def sum_blocks(function: Callable, data: Any, block: int) -> Any:
    """Sum of `function` over blocks of the leading axis, `block` entries at a time as in `map_blocks`.

    Args:
        function: takes any number of entries, leading axis kept, and returns a tree that is a sum over them.
        data: leaves `[N, ...]`.
        block: entries at a time.
    """
    count = jax.tree.leaves(data)[0].shape[0]
    block = at_once(block, count)
    whole = count // block * block

    def part(start: int, stop: int):
        return jax.tree.map(lambda x: x[start:stop], data)

    if block == count:
        return function(data)
    # `jit` keeps what was traced for its shapes.
    function = jax.jit(function)
    blocks = jax.tree.map(lambda x: x.reshape(-1, block, *x.shape[1:]), part(0, whole))
    total = _sum_in_turn(function, blocks)
    return total if whole == count else _add(total, function(part(whole, count)))


def sum_entries(function: Callable, data: Any, block: int) -> Any:
    """Sum of `function` over single entries, `block` at a time; it takes one, without the leading axis."""
    if at_once(block, jax.tree.leaves(data)[0].shape[0]) > 1:
        return sum_blocks(lambda x: jax.tree.map(lambda y: jnp.sum(y, 0), jax.vmap(function)(x)), data, block)
    return _sum_in_turn(function, data)


_add = functools.partial(jax.tree.map, jnp.add)


def _sum_in_turn(function: Callable, data: Any) -> Any:
    """Sum of `function` over the leading axis, one after the other."""
    shapes = jax.eval_shape(function, jax.tree.map(lambda x: x[0], data))
    nothing = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    return jax.lax.scan(lambda total, entry: (_add(total, function(entry)), None), nothing, data)[0]


def at_once(block: int, count: int) -> int:
    """How many of `count` entries: `block`, where 0 chooses one on a CPU (its cache holds it), else all."""
    if block:
        return min(block, count)
    return 1 if jax.default_backend() == "cpu" else count
