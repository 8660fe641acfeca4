"""The policies under attack, as they are loaded: those that share a learner share what is compiled."""

from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import jax

from admrl_jax.core.lanes import Lanes
from admrl_jax.envs.base import attackable_only, raw_units
from admrl_jax.judging import Case
from admrl_jax.runs.artefact import Trained, load_policy, read_policies
from admrl_jax.saved.attack_plan import AttackPlan, Cell
from admrl_jax.suite import SuiteRunner
from admrl_jax.suites import Suite
from admrl_jax.training import Setup

KEY = 2**31 - 3
"""Folded into the attack's seed: no policy was trained with the keys that follow."""


class Victims(NamedTuple):
    """The policies under attack that share a learner.

    Attributes:
        runner: attacks them.
        trained: by method, leading axis the artefact's seeds.
        seeds: of the artefact.
    """

    runner: SuiteRunner
    trained: dict[str, Trained]
    seeds: tuple[int, ...]

    def case(self, plan: AttackPlan, cell: Cell) -> Case:
        """A cell for the runner."""
        trained, number = self.trained[cell.method], self.seeds.index(cell.seed)
        params, inputs = jax.tree.map(lambda x: x[number], (trained.params, trained.inputs))
        env = self.runner.setup.env
        units = attackable_only(env, inputs) if plan.units == "normalised" else raw_units(env)
        key = jax.random.fold_in(jax.random.key(plan.seed), KEY)
        return Case(params, key, cell.radius, units, inputs, plan.side)


def load_victims(plan: AttackPlan, suite: Suite, lanes: Lanes) -> dict[str, Victims]:
    """The victims of a plan, by method; those that share a learner share what is compiled."""
    source = Path(plan.source)
    seeds = tuple(int(x) for x in read_policies(source)["seeds"])
    by_learner: dict[str, Victims] = {}
    found: dict[str, Victims] = {}
    for method in plan.methods:
        trained = load_policy(source, method)
        if trained.learner.name not in by_learner:
            runner = SuiteRunner(suite, setup_of(trained), lanes)
            by_learner[trained.learner.name] = Victims(runner, {}, seeds)
        found[method] = by_learner[trained.learner.name]
        found[method].trained[method] = trained
    return found


def setup_of(trained: Trained) -> Setup:
    """A trained policy as its meta-test sees it."""
    test = trained.config.eval
    sampling = replace(
        trained.config.sampling,
        num_trajectories=test.num_trajectories,
        num_adapt_steps=test.num_adapt_steps,
    )
    return Setup(trained.env, trained.policy, trained.learner, sampling)
