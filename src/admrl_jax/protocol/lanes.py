"""Lanes: a stage computes one run per seed or attacker, a few of them at a time."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from admrl_jax.runs.devices import SAME, tasks_at
from admrl_jax.runs.programs import Program, Programs, available_bytes, choose_at_once

BATCH = "batch"
"""Marks an argument or result whose leading axis is this device's tasks."""
STATE = "state"
"""Marks an argument or result that is the same on every device."""


class Piece(NamedTuple):
    """A part of a step, written for one lane; a program of its own.

    Attributes:
        name: equal names, equal functions.
        function: of one lane; it sees this device's tasks.
        takes: `STATE` or `BATCH` for every argument.
        gives: the same for every result, in the structure of the results.
    """

    name: str
    function: Callable[..., Any]
    takes: tuple[str, ...]
    gives: Any


class LanePrograms:
    """Runs pieces on a block of lanes."""

    def __init__(self, programs: Programs, at_once: int):
        self._programs, self.at_once = programs, at_once

    def call(self, piece: Piece, *arguments: Any) -> Any:
        """Calls a piece on every lane of a block.

        Args:
            piece: what to call.
            arguments: as `split` gives them, leading axis the lanes.
        """
        return self._programs.run(self._program(piece), *arguments)

    def needed_bytes(self, piece: Piece, *arguments: Any) -> int:
        """Bytes per device that `call` needs."""
        return self._programs.needed_bytes(self._program(piece), *arguments)

    def _program(self, piece: Piece) -> Program:
        specs = {STATE: SAME, BATCH: tasks_at(1)}
        return Program(
            name=piece.name,
            function=_for_one(piece.function) if self.at_once == 1 else jax.vmap(piece.function),
            in_specs=tuple(specs[kind] for kind in piece.takes),
            out_specs=jax.tree.map(lambda kind: specs[kind], piece.gives),
        )


class Trial(LanePrograms):
    """Runs pieces and notes the memory of the largest of their programs."""

    def __init__(self, programs: Programs, at_once: int):
        super().__init__(programs, at_once)
        self.largest = 0

    def call(self, piece: Piece, *arguments: Any) -> Any:
        """Also measures."""
        self.largest = max(self.largest, self.needed_bytes(piece, *arguments))
        return super().call(piece, *arguments)


def choose_lanes(
    programs: Programs, count: int, run_first: Callable[[LanePrograms], Any], chosen: int = 0
) -> LanePrograms:
    """As many lanes at a time as fit into memory; on a CPU one.

    Args:
        programs: of the run.
        count: lanes in all.
        run_first: runs the first block; called, where the memory decides, to measure its programs.
        chosen: at most this many at a time, whether they fit or not; 0 leaves it to the device.
    """

    def fits(at_once: int) -> bool:
        trial = Trial(programs, at_once)
        run_first(trial)
        return trial.largest <= available_bytes()

    return LanePrograms(programs, choose_at_once(count, fits, chosen))


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
