"""Attacks the policies of a finished run: `python -m benchmarks.saved_attack`.

Fresh attackers are trained against every saved policy, from several starts. The strongest start is chosen
on validation tasks and reported on test tasks that nothing was trained or chosen on. So a return here is an
upper bound on the policy's robustness, and nothing more: other attackers may do more harm.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from admrl_jax.attacking import train_attacker
from admrl_jax.attacks.base import Victim
from admrl_jax.attacks.registry import ATTACKS, make_attack_trainer
from admrl_jax.attacks.threat import Budget
from admrl_jax.core.task_axis import TaskAxis
from admrl_jax.core.types import Params, Task
from admrl_jax.evaluation import evaluate
from admrl_jax.methods import PAPER_METHODS
from admrl_jax.runs.artefact import load_policy
from admrl_jax.sampling import expose
from admrl_jax.training import Setup
from benchmarks.common import report

VALIDATION_KEY, TEST_KEY = 101, 202
"""Of tasks and episodes; training takes others."""


@dataclass(frozen=True)
class Arguments:
    """Return of saved policies, clean and under attack; support and query data are attacked."""

    run: Path = Path("results/halfcheetah_dir")
    """Run directory, or its `policies.npz`."""
    method: tuple[str, ...] = PAPER_METHODS
    attack: str = "counter_action"
    """One that learns."""
    radius: float = 0.8
    seed: int = 0
    """Of the run."""
    restarts: int = 5
    """Starts of the attacker."""
    updates: int = 8
    """Of each start; its strongest parameters on the way are kept."""
    num_tasks: int = 8
    """Per update."""
    num_trajectories: int = 10
    """Episodes per task in an update."""
    test_tasks: int = 40
    """For validation, and as many others for the test."""
    json: Path | None = None
    """Also write the figures here (and a picture beside it)."""


def measure(method: str, arguments: Arguments) -> dict[str, Any]:
    """One policy: its clean return, and the lowest that a start of the attacker leaves."""
    trained = load_policy(arguments.run, method, seed=arguments.seed)
    env = trained.env
    victim = Victim(trained.policy, env.obs_size, env.action_size)
    sampling = replace(
        trained.config.sampling,
        num_tasks=arguments.num_tasks,
        num_trajectories=arguments.num_trajectories,
    )
    setup = Setup(env, trained.policy, trained.learner, sampling)
    trainer, axis = make_attack_trainer(arguments.attack, victim), TaskAxis(block=1)
    found, history = train_attacker(
        trainer,
        trained.params,
        jax.random.key(0),
        setup=setup,
        radii=[arguments.radius],
        steps=arguments.updates,
        restarts=arguments.restarts,
        inputs=trained.inputs,
        axis=axis,
    )
    test = setup._replace(sampling=replace(sampling, num_trajectories=trained.config.eval.num_trajectories))

    def draw(key: int) -> tuple[Task, jax.Array]:
        key_tasks, key_episodes = jax.random.split(jax.random.key(key))
        keys = jax.random.split(key_tasks, arguments.test_tasks)
        return jax.vmap(env.sample_task)(keys), key_episodes

    @jax.jit
    def returns(attack_params: Params, radius: jax.Array, tasks: Task, key: jax.Array) -> jax.Array:
        """Mean return of every task, `[N]`."""
        exposure = expose(trainer.attack, attack_params, Budget(radius), num_tasks=arguments.test_tasks)
        result = evaluate(trained.params, key, tasks, exposure, setup=test, axis=axis)
        return result.returns[:, -1].mean(axis=-1)

    starts = [jax.tree.map(lambda x, i=i: x[0, i], found) for i in range(arguments.restarts)]
    radius = jnp.asarray(arguments.radius)
    validation = [float(returns(params, radius, *draw(VALIDATION_KEY)).mean()) for params in starts]
    strongest = starts[int(np.argmin(validation))]
    attacked, clean = (np.asarray(returns(strongest, r, *draw(TEST_KEY))) for r in (radius, 0 * radius))
    return {
        "method": method,
        "attack": ATTACKS[arguments.attack].threat.label,
        "radius": arguments.radius,
        "starts": arguments.restarts,
        "clean": float(clean.mean()),
        "attacked": float(attacked.mean()),
        "standard_error": float(attacked.std(ddof=1) / np.sqrt(attacked.size)),
        "validation_of_each_start": ", ".join(f"{value:.1f}" for value in validation),
        "strongest_batch_of_each_start": ", ".join(f"{x:.1f}" for x in history.returns[0].min(axis=-1)),
    }


def main() -> None:
    """Runs the attacks from the command line."""
    arguments = tyro.cli(Arguments, prog="python -m benchmarks.saved_attack", description=__doc__)
    rows = [measure(method, arguments) for method in arguments.method]
    report(
        "Saved policies under attackers trained against them",
        rows,
        arguments.json,
        bars=("clean", "attacked"),
        labels=("method",),
        unit="return",
    )


if __name__ == "__main__":
    main()
