"""Arms, the runs that a stage trains beside each other, and the compiled programs that train them."""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from admrl_jax import training
from admrl_jax.blocks import map_blocks
from admrl_jax.config import TrainConfig
from admrl_jax.memory import compile_largest
from admrl_jax.training import TrainState
from admrl_jax.types import Metrics
from experiments.context import Context


class Arm(NamedTuple):
    """One method, or the attackers of one: a training run of its own beside others of the same shape.

    Attributes:
        method: what is trained or attacked.
        stage: name in `metrics.csv`.
        attack: its name; `adgan` is trained along.
        state: leading axis the seeds, then the strengths where attackers are trained.
    """

    method: str
    stage: str
    attack: str
    state: TrainState

    @property
    def name(self) -> str:
        """For messages."""
        return f"{self.method}: {self.stage}"

    @property
    def lanes(self) -> int:
        """Seeds, or attackers."""
        return int(np.size(self.state.step))


class Recipe(NamedTuple):
    """What arms that are trained together have in common.

    Attributes:
        num_steps: outer steps.
        config: settings of each.
        train_policy: False freezes the policy.
    """

    num_steps: int
    config: TrainConfig
    train_policy: bool = True


class Programs:
    """Compiled outer steps, one program per number of arms and steps, whatever the methods."""

    def __init__(self, context: Context):
        self.context = context
        self._programs: dict[Any, tuple[int, Any]] = {}

    def lanes_at_once(self, arms: Sequence[Arm], recipe: Recipe, size: int) -> int:
        """How many lanes of these arms the program holds at a time."""
        return self._program(arms, recipe, size)[0]

    def run(
        self, arms: Sequence[Arm], recipe: Recipe, size: int
    ) -> tuple[tuple[TrainState, ...], list[dict[str, np.ndarray]]]:
        """So many outer steps of all arms: their states, and metrics `[S, size]` or `[S, R, size]`."""
        _, program = self._program(arms, recipe, size)
        states, metrics = program(*self._inputs(arms, recipe))
        # What a stage does not train has no metrics.
        return states, [
            {k: v for k, v in part.items() if not np.isnan(v).all()} for part in jax.device_get(metrics)
        ]

    def _inputs(self, arms: Sequence[Arm], recipe: Recipe) -> Any:
        numbers = jnp.stack([self.context.number(arm.attack) for arm in arms])
        is_trained = jnp.array([arm.attack == "adgan" for arm in arms])
        states = tuple(arm.state for arm in arms)
        return self.context.place((states, numbers, is_trained, jnp.array(recipe.train_policy)))

    def _program(self, arms: Sequence[Arm], recipe: Recipe, size: int) -> tuple[int, Any]:
        """`(lanes at once, program)` for some outer steps; the same one for every method and attack.

        Attackers of frozen victims, whose state has an axis of strengths, have one of their own.
        """
        shape = (len(arms), *arms[0].state.step.shape)
        key = (recipe.config, size, shape)
        if key not in self._programs:
            inputs = self._inputs(arms, recipe)

            def compile_for(at_once: int) -> Any:
                chunk = functools.partial(self._chunk, shape, at_once, recipe.config, size)
                return jax.jit(self.context.spread(chunk)).lower(*inputs).compile()

            lanes = int(np.prod(shape))
            self._programs[key] = compile_largest(compile_for, lanes, self.context.config.lanes)
        return self._programs[key]

    def _chunk(
        self,
        shape: tuple[int, ...],
        at_once: int,
        config: TrainConfig,
        size: int,
        states: tuple[TrainState, ...],
        numbers: jax.Array,
        is_adversary_trained: jax.Array,
        train_policy: jax.Array,
    ) -> tuple[tuple[TrainState, ...], list[Metrics]]:
        """The program: outer steps of arms and seeds of that shape, so many lanes at a time."""
        is_victim_frozen = len(shape) > 2

        def one_lane(state: TrainState, number: jax.Array, train_adversary: jax.Array) -> Any:
            step = functools.partial(
                training.outer_step,
                env=self.context.env,
                policy=self.context.policy,
                attack=self.context.adgan.attack if is_victim_frozen else self.context.attack(number),
                config=config,
                adgan=self.context.adgan,
                train_policy=False if is_victim_frozen else train_policy,
                train_adversary=True if is_victim_frozen else train_adversary,
                axis_name=self.context.axis_name,
            )
            return training.train_chunk(state, num_steps=size, step_fn=step)

        count = int(np.prod(shape))
        lanes = jax.tree.map(lambda *x: jnp.stack(x).reshape(count, *x[0].shape[len(shape) - 1 :]), *states)
        if len(states) == 1:
            # A number that all lanes share stays a branch; of several, every attack is computed.
            run = lambda state: one_lane(state, numbers[0], is_adversary_trained[0])  # noqa: E731
            inputs = (lanes,)
        else:
            run, repeat = one_lane, functools.partial(jnp.repeat, repeats=count // len(states))
            inputs = (lanes, repeat(numbers), repeat(is_adversary_trained))
        outputs = map_blocks(lambda lane: run(*lane), inputs, at_once)
        state, metrics = jax.tree.map(lambda x: x.reshape(*shape, *x.shape[1:]), outputs)

        def of_arm(tree: Any, i: int) -> Any:
            return jax.tree.map(lambda x: x[i], tree)

        arms = range(len(states))
        return tuple(of_arm(state, i) for i in arms), [of_arm(metrics, i) for i in arms]
