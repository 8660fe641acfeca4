"""Films of an evaluation: tasks before and after adaptation."""

import sys
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np

from admrl_jax.attacks.noise import no_attack
from admrl_jax.attacks.threat import Budget
from admrl_jax.envs.base import spread_tasks
from admrl_jax.runs.artefact import load_policy
from admrl_jax.runs.files import write_arrays
from admrl_jax.saved.evaluate_run import Adapter, EvaluationPlan, evaluation_key
from admrl_jax.saved.film import body_of, play, shoot

FILMED = 2
"""Tasks."""


def adaptation_section(plan: EvaluationPlan, folder: Path, *, video: bool, keep: bool) -> Iterator[str]:
    """Films of the first policy on two tasks, before and after adaptation; the blocks of their report.

    Args:
        plan: of the evaluation.
        folder: of its results.
        video: write films.
        keep: write `trajectories.npz`.
    """
    trained = load_policy(plan.source, plan.methods[0], seed=plan.seeds[0], simulator=plan.simulator)
    env = trained.env
    body = body_of(env)
    if body is None:
        print("video: only bodies of MuJoCo are filmed", file=sys.stderr)
        return
    key = jax.random.fold_in(evaluation_key(plan.seed), 2)
    tasks = plan.tasks if plan.tasks is not None else spread_tasks(env, key, FILMED)
    tasks = jax.tree.map(lambda x: x[:FILMED], tasks)
    stages = Adapter(trained).run(
        trained.params,
        key,
        tasks,
        shots=plan.shots[0],
        step_sizes=plan.step_sizes,
        query_episodes=1,
    )
    kept: dict[str, np.ndarray] = {}
    for number in range(jax.tree.leaves(tasks)[0].shape[0]):
        task = jax.tree.map(lambda x, i=number: x[i], tasks)
        pair = []
        for when, params in (("before", stages.params[0]), ("after", stages.params[-1])):
            params = jax.tree.map(lambda x, i=number: x[i], params)
            taken, qpos = play(env, trained.policy, params, key, task, no_attack(), (), Budget(0.0))
            pair.append((qpos, f"{when}: return {taken.reward.sum():.0f}"))
            for name in ("obs", "action", "reward", "mask"):
                kept[f"{number}/{when}/{name}"] = getattr(taken, name)
            kept[f"{number}/{when}/qpos"] = qpos
        if video:
            path = folder / "figures" / f"task_{number}.gif"
            path.parent.mkdir(exist_ok=True)
            shoot(path, body, pair)
            words = ", ".join(f"{np.asarray(x).tolist()}" for x in jax.tree.leaves(task))
            yield f"![task {number}](figures/{path.name})\n\n*Task {words}, before and after adaptation.*"
    if keep:
        write_arrays(folder / "trajectories.npz", **kept)
        yield (
            "`trajectories.npz` holds `<task>/<before or after>/<obs, action, reward, mask or qpos>`; "
            "`qpos` are the engine's positions after each step."
        )
