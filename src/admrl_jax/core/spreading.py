"""One function on several devices, each with its part of the arrays."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr, jaxpr_as_fun
from jax.sharding import Mesh, PartitionSpec


def spread_over(
    mesh: Mesh, function: Callable[..., Any], in_specs: Any, out_specs: Any
) -> Callable[..., Any]:
    """Runs `function` on every device of a mesh.

    Empty arrays, arguments and what `function` closes over, are made anew on each device: as inputs they
    crash the compiler of jax 0.11 (a pass of Shardy over unused inputs). MuJoCo's models have many.

    Args:
        mesh: the devices.
        function: of arrays; it sees its own device's part of them.
        in_specs: which axes of each argument are spread, as `jax.shard_map` takes them.
        out_specs: the same for results.
    """

    @functools.wraps(function)
    def call(*arguments: Any) -> Any:
        leaves, structure = jax.tree.flatten(arguments)
        specs = _each_spec(in_specs, arguments)
        filled = [index for index, leaf in enumerate(leaves) if leaf.size]

        def on_device(*present: Any) -> Any:
            parts = {index: part for index, part in zip(filled, present, strict=True)}
            own = [
                parts[index] if index in parts else jnp.zeros(_part(mesh, leaf.shape, spec), leaf.dtype)
                for index, (leaf, spec) in enumerate(zip(leaves, specs, strict=True))
            ]
            return _with_own_empty_arrays(function)(*jax.tree.unflatten(structure, own))

        # Sums over the axis are written out; the automatic ones would count them twice.
        spread = jax.shard_map(
            on_device,
            mesh=mesh,
            in_specs=tuple(specs[index] for index in filled),
            out_specs=out_specs,
            check_vma=False,
        )
        return spread(*(leaves[index] for index in filled))

    return call


def _with_own_empty_arrays(function: Callable[..., Any]) -> Callable[..., Any]:
    def call(*arguments: Any) -> Any:
        traced, shapes = jax.make_jaxpr(function, return_shape=True)(*arguments)
        constants = [x if x.size else jnp.zeros(x.shape, x.dtype) for x in traced.consts]
        results = jaxpr_as_fun(ClosedJaxpr(traced.jaxpr, constants))(*jax.tree.leaves(arguments))
        return jax.tree.unflatten(jax.tree.structure(shapes), results)

    return call


def _part(mesh: Mesh, shape: tuple[int, ...], spec: PartitionSpec) -> tuple[int, ...]:
    axes = [*spec, *(None,) * (len(shape) - len(spec))]
    return tuple(
        size if axis is None else size // mesh.shape[axis] for size, axis in zip(shape, axes, strict=True)
    )


def _each_spec(specs: Any, arguments: Any) -> list[PartitionSpec]:
    def is_spec(x: Any) -> bool:
        return isinstance(x, PartitionSpec)

    return jax.tree.leaves(jax.tree.broadcast(specs, arguments, is_leaf=is_spec), is_leaf=is_spec)
