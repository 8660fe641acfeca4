"""Evaluates policies on the held-out tasks."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from admrl_jax.attacks.threat import Budget, Units
from admrl_jax.core.types import Params, Task, Trajectory
from admrl_jax.evaluation import EvalResult
from admrl_jax.protocol.lanes import BATCH, STATE, LanePrograms, Piece, choose_lanes, merge_arrays, split
from admrl_jax.protocol.session import Session, check_budget
from admrl_jax.runs import hosts
from admrl_jax.sampling import (
    AttackSizes,
    adapt_tasks,
    collect_tasks,
    episode_returns,
    measure_attack,
    score_tasks,
    unadapted,
)
from admrl_jax.training import Setup


class Evaluator:
    """Evaluates policies on the held-out tasks, as `evaluation.evaluate` does, in two programs.

    One collects episodes, support and query alike, and there is one for every attack; the other adapts, and
    all attacks share it.
    """

    def __init__(self, session: Session):
        self._session = session
        self._lanes: dict[tuple[str, str], LanePrograms] = {}

    def evaluate(
        self,
        method: str,
        meta_params: Params,
        units: Units,
        attack: str,
        attack_params: Params,
        support_radius: float,
        query_radius: float,
    ) -> EvalResult:
        """One cell, all seeds; returns arrays on the host with leading axis `S`.

        Args:
            method: whose learner adapts.
            meta_params: leading axis `S`.
            units: of the budgets, leading axis `S`.
            attack: its name.
            attack_params: leading axis `S`.
            support_radius: radius before and during adaptation.
            query_radius: radius after it.
        """
        session = self._session
        setup = session.parts.setup(method, session.parts.test_sampling)
        seeds = len(session.config.seeds)
        # Every seed meets the same tasks and episodes.
        shared = (session.held_out.key, session.held_out.tasks, jnp.zeros((), int))
        shared = jax.tree.map(lambda x: jnp.broadcast_to(x, (seeds, *x.shape)), shared)
        lanes = session.devices.place((meta_params, attack_params, units, *shared))
        pieces = _Pieces(session, setup, method, attack)

        def run(programs: LanePrograms, block: Any) -> EvalResult:
            return pieces.run(programs, block, support_radius, query_radius)

        def run_first(programs: LanePrograms) -> None:
            run(programs, split(lanes, programs.at_once)[0])

        # Asked once: to find out, the evaluation is run.
        key = (method, attack)
        if key not in self._lanes:
            self._lanes[key] = choose_lanes(session.programs, seeds, run_first, session.config.lanes)
        blocks = [run(self._lanes[key], block) for block in split(lanes, self._lanes[key].at_once)]
        result = merge_arrays(blocks)
        check_budget(result.budget_excess, f"meta-test under {attack}")
        return result


class _Pieces:
    """The programs of an evaluation."""

    def __init__(self, session: Session, setup: Setup, method: str, attack: str):
        self._session, self._setup = session, setup
        self._attack = session.parts.attack(attack, method)
        self._axis = session.devices.axis
        name = f"{setup.learner.name} {setup.sampling}"
        self._start = Piece(f"unadapted {name}", self._unadapted, (STATE, STATE), BATCH)
        self._adapting = Piece(f"adapt {name}", self._adapt, (STATE, BATCH, BATCH), BATCH)
        self._collecting = Piece(
            f"episodes {session.parts.identity(attack, method)} {setup.sampling}",
            self._collect,
            (BATCH, *(STATE,) * 6),
            (BATCH, (BATCH, STATE, STATE)),
        )

    def run(self, lanes: LanePrograms, block: Any, support_radius: float, query_radius: float) -> EvalResult:
        """Support episodes and adaptation, step by step, then query episodes; arrays on the host."""
        meta_params, attack_params, units, key, tasks, step = block
        num_steps = self._setup.sampling.num_adapt_steps
        params = lanes.call(self._start, meta_params, tasks)
        returns, excess, size, diverged = [], 0.0, None, None
        for number in range(num_steps + 1):
            radius = query_radius if number == num_steps else support_radius
            radius = self._session.devices.place(jnp.full(step.shape, radius, float))
            episodes, measured = lanes.call(
                self._collecting, params, attack_params, units, radius, key, tasks, step + number
            )
            found, sizes, diverged = hosts.gather(measured)
            returns.append(found)
            excess, size = np.maximum(excess, sizes.excess), sizes.size
            if number < num_steps:
                params = lanes.call(self._adapting, meta_params, params, episodes)
        assert size is not None
        return EvalResult._make((np.stack(returns, axis=2), size, excess, diverged))

    def _unadapted(self, meta_params: Params, tasks: Task) -> Params:
        num_tasks = jax.tree.leaves(self._axis.share(tasks))[0].shape[0]
        return unadapted(meta_params, num_tasks, self._setup.learner)

    def _collect(
        self,
        params: Params,
        attack_params: Params,
        units: Units,
        radius: jax.Array,
        key: jax.Array,
        tasks: Task,
        step: jax.Array,
    ) -> tuple[Trajectory, tuple[jax.Array, AttackSizes, jax.Array]]:
        tasks = self._axis.share(tasks)
        num_tasks = jax.tree.leaves(tasks)[0].shape[0]
        budget = Budget(jnp.broadcast_to(radius, (num_tasks,)), units)
        episodes = collect_tasks(
            params,
            attack_params,
            jax.random.fold_in(key, step),
            tasks,
            budget,
            num_trajectories=self._setup.sampling.num_trajectories,
            env=self._setup.env,
            policy=self._setup.policy,
            attack=self._attack,
            is_query=step == self._setup.sampling.num_adapt_steps,
            axis=self._axis,
        )
        sizes = measure_attack(episodes, budget, threat=self._attack.threat, axis=self._axis)
        diverged = self._axis.total(jnp.sum(episodes.diverged))
        return episodes, (episode_returns(episodes), sizes, diverged)

    def _adapt(self, meta_params: Params, params: Params, episodes: Trajectory) -> Params:
        batch = score_tasks(episodes, self._setup.sampling, self._setup.policy, False)
        return adapt_tasks(meta_params, params, batch, learner=self._setup.learner, axis=self._axis)
