"""Films of MuJoCo bodies: an episode once more for the engine's positions; a task clean and attacked."""

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from admrl_jax.attacks.base import Attack
from admrl_jax.attacks.threat import SIDES, Budget
from admrl_jax.core.networks import Policy
from admrl_jax.core.types import Params, Task, Trajectory
from admrl_jax.judging import Case
from admrl_jax.report.style import own_style
from admrl_jax.sampling import collect_meta_batch, expose, rollout
from admrl_jax.saved.attack_results import worst_entries
from admrl_jax.saved.attack_run import AttackRun
from admrl_jax.simulators import Model
from admrl_jax.suite import Found, SuiteRunner


def film_section(run: AttackRun) -> Iterator[str]:
    """Films the first victim at the largest radius under the worst attacker; the block of its report.

    Nothing where the environment has no MuJoCo body.
    """
    body = body_of(run.victims[run.plan.methods[0]].runner.setup.env)
    if body is None:
        return
    cell = [cell for cell in run.cells if cell[:2] == run.cells[0][:2]][-1]
    victims, file = run.victims[cell.method], run.file(cell)
    runner, case = victims.runner, victims.case(run.plan, cell)
    # Of this cell: the folder may get larger radii later.
    path = run.folder / "figures" / f"episode-{cell.stem}.gif"
    if not path.exists():
        best = file.results[worst_entries(file)["worst"]].best
        path.parent.mkdir(exist_ok=True)
        pair = [film_episode(runner, case._replace(radius=radius), best) for radius in (0.0, cell.radius)]
        shoot(
            path,
            body,
            [
                (qpos, f"{title}: return {total:.0f}")
                for title, (qpos, total) in zip(("clean", "attacked"), pair, strict=True)
            ],
        )
    yield (
        f"## One episode\n\n![episode](figures/{path.name})\n\n*{cell}: the same task, clean and under "
        "the worst attacker, each after adapting to data of the same kind.*"
    )


def film_episode(runner: SuiteRunner, case: Case, found: Found) -> tuple[np.ndarray, float]:
    """`(qpos [H, Q], return)` of the first test task, adapted and run as the judge would.

    Args:
        runner: of the suite.
        case: the victim, the radius and the data under attack.
        found: the attacker.
    """
    setup, attack, params = runner.setup, runner.attacks[found.member], found.params
    tasks = jax.tree.map(lambda x: x[:1], runner.judge.test_tasks(case))
    radius = runner.judge.radius(found.member, case)
    support, query = (Budget(jnp.asarray(radius * side, float), case.units) for side in SIDES[case.side])
    batch = jax.jit(
        lambda meta_params, tasks: (
            collect_meta_batch(
                meta_params,
                case.key,
                tasks,
                expose(attack, params, support, query, num_tasks=1),
                env=setup.env,
                policy=setup.policy,
                learner=setup.learner,
                config=setup.sampling,
            ).adapted_params
        )
    )(case.meta_params, tasks)
    adapted, task = jax.tree.map(lambda x: x[0], (batch, tasks))
    taken, qpos = play(setup.env, setup.policy, adapted, case.key, task, attack, params, query)
    return qpos, float(taken.reward.sum())


def play(
    env: Any,
    policy: Policy,
    policy_params: Params,
    key: jax.Array,
    task: Task,
    attack: Attack,
    attack_params: Params,
    budget: Budget,
) -> tuple[Trajectory, np.ndarray]:
    """One episode, arrays on the host, and the engine's positions `[H, Q]` after every step.

    The environment is one that `body_of` finds a body in.
    """

    @jax.jit
    def episode() -> tuple[Trajectory, jax.Array]:
        taken = rollout(
            policy_params, attack_params, key, task, env=env, policy=policy, attack=attack, budget=budget
        )
        # The same actions from the same start once more, for what observations do not hold.
        start, _ = env.reset(jax.random.split(key, 3)[0], task)

        def step(state: Any, taken: tuple) -> tuple[Any, jax.Array]:
            action, mask = taken
            moved, _ = env.step(state, action, task)
            state = jax.tree.map(lambda new, old: jnp.where(mask > 0, new, old), moved, state)
            return state, env.positions(state)

        return taken, jax.lax.scan(step, start, (taken.action, taken.mask))[1]

    return jax.tree.map(np.asarray, episode())


def body_of(env: Any) -> Model | None:
    """What to film of an environment; None where it has no body of MuJoCo."""
    source = getattr(getattr(env, "simulator", None), "source", None)
    return source.model if source is not None and hasattr(env, "positions") else None


def shoot(path: Path, body: Model, episodes: Sequence[tuple[np.ndarray, str]]) -> None:
    """Writes a GIF of `(qpos [H, Q], title)`: rendered where the machine can, else drawn with lines.

    Args:
        path: of the GIF.
        body: whose positions they are.
        episodes: side by side.
    """
    from admrl_jax.report.render import render
    from admrl_jax.simulators.models import load_model

    model = load_model(body)
    positions, titles = [qpos for qpos, _ in episodes], [title for _, title in episodes]
    if render(path, model, positions, titles):
        return
    print(
        "video: neither EGL nor OSMesa works here, so bodies are drawn with lines; libegl1 with a driver, or "
        "libosmesa6, brings rendered ones",
        file=sys.stderr,
    )
    with own_style():
        from admrl_jax.report.film import write_film

        write_film(path, model, positions, titles)
