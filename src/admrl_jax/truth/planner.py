"""Which environments have a computed truth, and how a victim is measured against it."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from admrl_jax.attacks.noise import no_attack
from admrl_jax.attacks.threat import Budget
from admrl_jax.core.types import Params, Task
from admrl_jax.envs.base import Env
from admrl_jax.envs.navigation import Navigation2D
from admrl_jax.sampling import collect_meta_batch, expose
from admrl_jax.training import Setup
from admrl_jax.truth.navigation import planned_returns

Planner = Callable[[Params, jax.Array, Task, Budget, Setup], jax.Array]
"""`(meta_params, key, tasks, budget, setup) -> returns [N, K]` under the planned attack."""


def planner_for(env: Env) -> Planner | None:
    """The planner of an environment; None where the truth is not known."""
    return _plan_navigation if isinstance(env, Navigation2D) else None


def _plan_navigation(
    meta_params: Params, key: jax.Array, tasks: Task, budget: Budget, setup: Setup
) -> jax.Array:
    """Adapts to every task on clean data, then plans against the adapted policy."""
    env = setup.env
    assert isinstance(env, Navigation2D)

    @jax.jit
    def run(meta_params: Params, key: jax.Array, tasks: Task, budget: Budget) -> jax.Array:
        count = jax.tree.leaves(tasks)[0].shape[0]
        batch = collect_meta_batch(
            meta_params,
            key,
            tasks,
            expose(no_attack(), (), Budget(jnp.zeros(())), num_tasks=count),
            env=env,
            policy=setup.policy,
            learner=setup.learner,
            config=setup.sampling,
        )
        truth = planned_returns(
            batch.adapted_params,
            jax.random.fold_in(key, 1),
            tasks,
            budget,
            env=env,
            policy=setup.policy,
            num_trajectories=setup.sampling.num_trajectories,
        )
        return truth.returns

    return run(meta_params, key, tasks, budget)
