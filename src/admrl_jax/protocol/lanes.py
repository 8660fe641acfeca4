"""Lanes: a stage computes one run per seed or attacker, a few of them at a time."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from admrl_jax.runs.devices import SAME, tasks_at
from admrl_jax.runs.programs import Programs, available_bytes

BATCH = "batch"
"""Marks an argument or result whose leading axis is this device's tasks."""
STATE = "state"
"""Marks an argument or result that is the same on every device."""


class LanePrograms:
    """Runs functions written for one lane on a block of lanes."""

    def __init__(self, programs: Programs, at_once: int):
        self._programs, self.at_once = programs, at_once

    def call(
        self, name: str, function: Callable[..., Any], takes: Sequence[str], gives: Any, *arguments: Any
    ) -> Any:
        """Calls `function` on every lane of a block.

        Args:
            name: equal names, equal functions.
            function: of one lane.
            takes: `STATE` or `BATCH` for every argument.
            gives: the same for every result, in the structure of the results.
            arguments: as `split` gives them, leading axis the lanes.
        """
        return self._programs.run(name, *self._program(function, arguments), **self._specs(takes, gives))

    def needed_bytes(
        self, name: str, function: Callable[..., Any], takes: Sequence[str], gives: Any, *arguments: Any
    ) -> int:
        """Bytes per device that `call` would need."""
        return self._programs.needed_bytes(
            name, *self._program(function, arguments), **self._specs(takes, gives)
        )

    def _program(self, function: Callable[..., Any], arguments: Sequence[Any]) -> tuple[Any, Any]:
        return (_for_one(function) if self.at_once == 1 else jax.vmap(function)), arguments

    def _specs(self, takes: Sequence[str], gives: Any) -> dict[str, Any]:
        specs = {STATE: SAME, BATCH: tasks_at(1)}
        return {
            "in_specs": tuple(specs[kind] for kind in takes),
            "out_specs": jax.tree.map(lambda kind: specs[kind], gives),
        }

    def fits(self, needed: int) -> bool:
        """Whether programs that need this many bytes fit into memory."""
        return needed <= available_bytes()


class Trial(LanePrograms):
    """Runs a step and notes the memory of the largest of its programs."""

    def __init__(self, programs: Programs, at_once: int):
        super().__init__(programs, at_once)
        self.largest = 0

    def call(
        self, name: str, function: Callable[..., Any], takes: Sequence[str], gives: Any, *arguments: Any
    ) -> Any:
        """Also measures."""
        needed = self.needed_bytes(name, function, takes, gives, *arguments)
        self.largest = max(self.largest, needed)
        return super().call(name, function, takes, gives, *arguments)


def _for_one(function: Callable[..., Any]) -> Callable[..., Any]:
    """`vmap(function)` over an axis of length one, with the operations, and bits, of a single lane."""

    def run(*arguments: Any) -> Any:
        result = function(*jax.tree.map(lambda x: x[0], arguments))
        return jax.tree.map(lambda x: x[None], result)

    return run


def split(tree: Any, at_once: int) -> list[Any]:
    """Blocks of lanes of a tree with leaves `[L, ...]`."""
    count = jax.tree.leaves(tree)[0].shape[0]
    if at_once == count:
        return [tree]
    return [jax.tree.map(lambda x, i=i: x[i : i + at_once], tree) for i in range(0, count, at_once)]


def merge(blocks: Sequence[Any]) -> Any:
    """The inverse of `split`."""
    if len(blocks) == 1:
        return blocks[0]
    return jax.tree.map(lambda *x: jnp.concatenate(x), *blocks)


def merge_arrays(blocks: Sequence[Any]) -> Any:
    """`merge` for trees of arrays on the host."""
    return jax.tree.map(lambda *x: np.concatenate(x), *blocks)
