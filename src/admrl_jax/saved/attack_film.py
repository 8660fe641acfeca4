"""The film of an attack: a task clean, and under the worst attacker."""

from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np

from admrl_jax.attacks.threat import SIDES, Budget
from admrl_jax.judging import Case
from admrl_jax.sampling import collect_meta_batch, expose
from admrl_jax.saved.attack_results import worst_entries
from admrl_jax.saved.attack_run import AttackRun
from admrl_jax.saved.film import body_of, play, shoot
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
