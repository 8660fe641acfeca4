"""How a batch of tasks is computed: how many at a time, on how many devices, and how sums over it are taken.

One task at a time keeps what is computed in a CPU's cache and memory small; all together fill an
accelerator. Spread over devices, every device works on its share inside a `shard_map`, and sums are
taken over the mapped axis. Pure code takes one `TaskAxis`; only the host knows which device there is.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp

Tree = TypeVar("Tree")


class TaskAxis(NamedTuple):
    """The axis over tasks. The default computes all tasks at once, on one device.

    Attributes:
        block: tasks computed together; blocks follow one another. 0 takes all.
        name: axis of the `shard_map` over which tasks are spread; None where all of them are here.
            Functions then see this device's tasks only.
    """

    block: int = 0
    name: str | None = None

    @property
    def num_devices(self) -> int:
        """Devices over which tasks are spread."""
        return 1 if self.name is None else jax.lax.axis_size(self.name)

    def map(self, function: Callable, data: Any) -> Any:
        """`vmap(function)` over the leading axis, a block at a time."""
        return map_blocks(function, data, self.block)

    def sum_blocks(self, function: Callable, data: Any) -> Any:
        """Sum of `function` over blocks of this device's tasks.

        Args:
            function: takes any number of tasks, leading axis kept, and returns a tree that is a sum over
                them.
            data: leaves `[N, ...]`.
        """
        count = _length(data)
        block = self._at_once(count)
        if block == count:
            return function(data)
        whole = count // block * block
        # `jit` caches what was traced for these shapes.
        function = jax.jit(function)
        blocks = jax.tree.map(lambda x: x[:whole].reshape(-1, block, *x.shape[1:]), data)
        summed = _sum_in_turn(function, blocks)
        if whole == count:
            return summed
        return _add(summed, function(jax.tree.map(lambda x: x[whole:], data)))

    def sum_tasks(self, function: Callable, data: Any) -> Any:
        """Sum of `function` over this device's tasks; it takes one, without the leading axis."""
        if self._at_once(_length(data)) == 1:
            return _sum_in_turn(function, data)
        return self.sum_blocks(lambda x: jax.tree.map(lambda y: jnp.sum(y, 0), jax.vmap(function)(x)), data)

    def total(self, tree: Tree) -> Tree:
        """Sum over devices. Not for use inside what is differentiated: sum gradients instead."""
        return tree if self.name is None else jax.lax.psum(tree, self.name)

    def mean(self, tree: Tree) -> Tree:
        """Mean over devices."""
        return tree if self.name is None else jax.lax.pmean(tree, self.name)

    def largest(self, x: jax.Array) -> jax.Array:
        """Maximum over devices."""
        return x if self.name is None else jax.lax.pmax(x, self.name)

    def every(self, tree: Tree) -> Tree:
        """All devices' tasks, leading axes put together."""
        if self.name is None:
            return tree
        name = self.name
        return jax.tree.map(lambda x: jax.lax.all_gather(x, name, tiled=True), tree)

    def share(self, tree: Tree) -> Tree:
        """This device's part of the leading axes, which the number of devices divides."""
        if self.name is None:
            return tree
        index, count = jax.lax.axis_index(self.name), self.num_devices

        def part(x: jax.Array) -> jax.Array:
            length = x.shape[0] // count
            return jax.lax.dynamic_slice_in_dim(x, index * length, length)

        return jax.tree.map(part, tree)

    def split_key(self, key: jax.Array, num_tasks: int) -> jax.Array:
        """One key per task of this device; spreading the whole batch changes none of them.

        Args:
            key: to split.
            num_tasks: of all devices together.
        """
        return self.share(jax.random.split(key, num_tasks))

    def _at_once(self, count: int) -> int:
        return min(self.block or count, count)


def map_blocks(function: Callable, data: Any, block: int) -> Any:
    """`vmap(function)` over the leading axis, `block` entries at a time; 0 takes all."""
    count = _length(data)
    if block == 1:
        return jax.lax.map(function, data)
    if block in (0, count) or block > count:
        return jax.vmap(function)(data)
    return jax.lax.map(function, data, batch_size=block)


_add = functools.partial(jax.tree.map, jnp.add)


def _length(data: Any) -> int:
    return jax.tree.leaves(data)[0].shape[0]


def _sum_in_turn(function: Callable, data: Any) -> Any:
    """Sum of `function` over the leading axis, one after the other."""
    shapes = jax.eval_shape(function, jax.tree.map(lambda x: x[0], data))
    nothing = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    return jax.lax.scan(lambda total, entry: (_add(total, function(entry)), None), nothing, data)[0]
