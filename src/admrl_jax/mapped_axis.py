"""Data spread over a mapped axis of devices: sums over it, and one device's share.

Every function takes `axis_name`, the axis of a `shard_map` over which tasks are spread, or None where
all of them are here; then it changes nothing.
"""

from typing import TypeVar

import jax

Tree = TypeVar("Tree")


def size(axis_name: str | None) -> int:
    """Number of devices on the axis."""
    return 1 if axis_name is None else jax.lax.axis_size(axis_name)


def total(tree: Tree, axis_name: str | None) -> Tree:
    """Sum over devices. Not for use inside what is differentiated: sum gradients instead."""
    return tree if axis_name is None else jax.lax.psum(tree, axis_name)


def mean(tree: Tree, axis_name: str | None) -> Tree:
    """Mean over devices."""
    return tree if axis_name is None else jax.lax.pmean(tree, axis_name)


def largest(x: jax.Array, axis_name: str | None) -> jax.Array:
    """Maximum over devices."""
    return x if axis_name is None else jax.lax.pmax(x, axis_name)


def share(tree: Tree, axis_name: str | None) -> Tree:
    """This device's part of the leading axes, which the number of devices divides."""
    if axis_name is None:
        return tree
    index, count = jax.lax.axis_index(axis_name), size(axis_name)

    def part(x: jax.Array) -> jax.Array:
        length = x.shape[0] // count
        return jax.lax.dynamic_slice_in_dim(x, index * length, length)

    return jax.tree.map(part, tree)
