"""How far the engines are from Gymnasium: `python -m benchmarks.parity` rewrites docs/environments.md.

The reference is Gymnasium's own environment on the same model file, from the same start, under the
same controls. Observations, rewards and endings are Gymnasium's own where it has them; what only the task
has is computed a second time in NumPy, by formulas that share no code with the environments.
"""

# MuJoCo's classes live in a C extension without type stubs.
# pyright: reportAttributeAccessIssue=false

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium
import jax
import jax.numpy as jnp
import mujoco
import numpy as np
import tyro

from admrl_jax.attacks.noise import no_attack
from admrl_jax.attacks.threat import Budget
from admrl_jax.core.networks import make_policy
from admrl_jax.envs import registry
from admrl_jax.envs.physics import PhysicsEnv
from admrl_jax.envs.registry import ENVS
from admrl_jax.sampling import collect, episode_returns
from admrl_jax.simulators.models import quiet_loading
from benchmarks.common import machine, markdown_table, replace_section

DOCUMENT = Path(__file__).parent.parent / "docs" / "environments.md"
ENVIRONMENTS = tuple(name for name, spec in ENVS.items() if spec.simulators)
STEPS = 20


class Run(NamedTuple):
    """20 control steps of one engine; fields `[H, ...]`."""

    qpos: Any
    qvel: Any
    obs: Any
    reward: Any
    ended: Any


class Case(NamedTuple):
    """A task, a start and a sequence of raw actions."""

    task: Any
    qpos: Any
    qvel: Any
    actions: Any


def make_case(env: PhysicsEnv, seed: int, steps: int = STEPS) -> Case:
    """A random task and start, and raw actions of which some are clipped."""
    key_task, key_start, key_action = jax.random.split(jax.random.key(seed), 3)
    task = env.sample_task(key_task)
    qpos, qvel = env.start(key_start, task)
    size = 0.7 * env.config.action_scale
    actions = size * jax.random.normal(key_action, (steps, env.action_size))
    return Case(jax.tree.map(np.asarray, task), np.asarray(qpos), np.asarray(qvel), np.asarray(actions))


@functools.cache
def engine_program(env: PhysicsEnv) -> Callable[[Case], Run]:
    """A compiled program that runs a case; one per environment and engine."""
    # Gymnasium's robots move on after a fall, ours stay where they are unless they cannot fall.
    never_ends = {"ended": lambda self, state: jnp.array(False)}
    moving: PhysicsEnv = type(type(env).__name__, (type(env),), never_ends)(env.simulator, env.config)

    @jax.jit
    def run(case: Case) -> Run:
        def step(state: Any, action: jax.Array) -> tuple[Any, Run]:
            state, new = moving.step(state, action, case.task)
            return state, Run(state.qpos, state.qvel, new.obs, new.reward, env.ended(state))

        return jax.lax.scan(step, env.simulator.init(case.qpos, case.qvel), case.actions)[1]

    return run


def run_engine(env: PhysicsEnv, case: Case) -> Run:
    """The case on one of our engines, inside jit."""
    return Run(*(np.asarray(x) for x in engine_program(env)(case)))


class Stepped(NamedTuple):
    """One control step of Gymnasium's: what it says of it, and what the task makes of it.

    Attributes:
        obs: Gymnasium's observation.
        reward: its reward.
        ended: whether it says that the episode ends.
        info: its parts of the reward.
        data: `MjData`, kinematics up to date.
        velocity: `[2]` change of the first two positions per second.
        action: `[A]` raw action, of which Gymnasium got the scaled, clipped control.
        ctrl: `[A]` that control.
        task: the task.
    """

    obs: np.ndarray
    reward: float
    ended: bool
    info: dict[str, Any]
    data: Any
    velocity: np.ndarray
    action: np.ndarray
    ctrl: np.ndarray
    task: Any


class Formulas(NamedTuple):
    """An environment once more: Gymnasium's own numbers where it has them, NumPy where it has not."""

    gymnasium_id: str
    obs: Callable[[Stepped], np.ndarray]
    reward: Callable[[Stepped], float]
    ended: Callable[[Stepped], bool]


def _cheetah(task_reward: Callable[[float, Any], float]) -> Formulas:
    return Formulas(
        "HalfCheetah-v5",
        lambda s: np.concatenate([s.obs, s.data.body("torso").xpos]),
        # Gymnasium charges 0.1 of the squared controls, the task half of that.
        lambda s: task_reward(s.info["x_velocity"], s.task) + s.info["reward_ctrl"] / 2,
        lambda s: s.ended,
    )


def _ant(task_reward: Callable[[Stepped], float]) -> Formulas:
    def obs(s: Stepped) -> np.ndarray:
        torso = s.data.body("torso")
        # Gymnasium's observation begins with the height and ends with contact forces.
        return np.concatenate([s.data.qpos[:2], s.obs[:27], torso.xmat, torso.xpos])

    # Its velocity is of positions that lag a physics step behind; controls cost 0.5 there, 0.005 here.
    return Formulas(
        "Ant-v5", obs, lambda s: task_reward(s) + 0.05 + s.info["reward_ctrl"] / 100, lambda s: s.ended
    )


def _reacher_reward(s: Stepped) -> float:
    # Gymnasium's distance is that of bodies a physics step behind.
    body = s.data.body
    return -np.linalg.norm(body("fingertip").xpos - body("target").xpos) - np.sum(s.action**2)


def _walking(gymnasium_id: str) -> Formulas:
    # Gymnasium pays the bonus of standing only while it stands; after the fall nothing counts here.
    return Formulas(gymnasium_id, lambda s: s.obs, lambda s: s.reward + s.ended, lambda s: s.ended)


FORMULAS: dict[str, Formulas] = {
    "halfcheetah_dir": _cheetah(lambda velocity, task: task * velocity),
    "halfcheetah_vel": _cheetah(lambda velocity, task: -abs(velocity - task)),
    "ant_vel": _ant(lambda s: 1 - abs(s.velocity[0] - s.task)),
    "ant_dir": _ant(lambda s: s.task[0] * s.velocity[0]),
    "ant_goal": _ant(lambda s: 4 - np.abs(s.data.body("torso").xpos[:2] - s.task).sum()),
    "reacher": Formulas(
        "Reacher-v5",
        # Gymnasium's: cos and sin of the angles, target, velocities, way from target to fingertip.
        lambda s: np.concatenate([s.obs[:4], s.obs[6:8], s.data.body("fingertip").xpos[:2]]),
        _reacher_reward,
        lambda s: s.ended,
    ),
    "walker2d_params": _walking("Walker2d-v5"),
    "hopper_params": _walking("Hopper-v5"),
}


def run_gymnasium(env: PhysicsEnv, case: Case) -> Run:
    """The case in Gymnasium, in double precision; bodies of random-dynamics tasks are overwritten."""
    formulas = FORMULAS[env.config.name]
    with quiet_loading():
        reference: Any = gymnasium.make(formulas.gymnasium_id, frame_skip=env.config.frame_skip).unwrapped
    model, data = reference.model, reference.data
    if hasattr(case.task, "_asdict"):
        for name, values in case.task._asdict().items():
            getattr(model, name)[:] = values
    reference.reset(seed=0)
    reference.set_state(case.qpos.astype(np.float64), case.qvel.astype(np.float64))
    records = []
    for action in case.actions.astype(np.float64):
        ctrl = np.clip(action / env.config.action_scale, -1, 1)
        before = data.qpos[:2].copy()
        obs, reward, ended, _, info = reference.step(ctrl)
        # Gymnasium leaves body positions one physics step behind the state.
        mujoco.mj_kinematics(model, data)
        velocity = (data.qpos[:2] - before) / reference.dt
        step = Stepped(obs, reward, ended, info, data, velocity, action, ctrl, case.task)
        records.append(
            (
                data.qpos.copy(),
                data.qvel.copy(),
                formulas.obs(step),
                formulas.reward(step),
                formulas.ended(step),
            )
        )
    reference.close()
    return Run(*(np.array(x) for x in zip(*records, strict=True)))


def differences(a: Run, b: Run, steps: int | None = None) -> dict[str, float]:
    """Largest absolute difference of each field over the first `steps` steps."""
    return {
        name: float(np.max(np.abs(x[:steps].astype(np.float64) - y[:steps].astype(np.float64))))
        for name, x, y in zip(Run._fields, a, b, strict=True)
    }


def make_env(name: str, simulator: str) -> PhysicsEnv:
    """An environment on one engine with its published numbers."""
    env = registry.make_env(name, simulator=simulator)
    assert isinstance(env, PhysicsEnv)
    return env


def parity_rows(
    names: Sequence[str], simulators: Sequence[str], seeds: Sequence[int]
) -> list[dict[str, Any]]:
    """Largest differences over all seeds: of each engine from Gymnasium, and of engines from each other."""
    rows = []
    for name in names:
        runs: dict[str, list[Run]] = {simulator: [] for simulator in simulators}
        reference = []
        for simulator in simulators:
            env = make_env(name, simulator)
            cases = [make_case(env, seed) for seed in seeds]
            runs[simulator] = [run_engine(env, case) for case in cases]
            reference = reference or [run_gymnasium(env, case) for case in cases]
        pairs = {simulator: (runs[simulator], reference) for simulator in simulators}
        pairs |= {f"{b} against {a}": (runs[b], runs[a]) for a, b in pairwise(simulators)}
        rows += [{"environment": name, "engine": label, **_worst(*pair)} for label, pair in pairs.items()]
    return rows


def _worst(runs: Sequence[Run], others: Sequence[Run]) -> dict[str, float]:
    """Largest difference of each field over all runs, and of any after the first step."""
    pairs = list(zip(runs, others, strict=True))
    found = [differences(*pair) for pair in pairs]
    worst = {field: max(each[field] for each in found) for field in Run._fields}
    return worst | {"first step": max(max(differences(*pair, 1).values()) for pair in pairs)}


EARLIER = {
    "halfcheetah_dir": "-0.6",
    "halfcheetah_vel": "-102",
    "ant_vel": "-42 (100 episodes)",
    "ant_dir": "4.8",
    "ant_goal": "54",
    "reacher": "-310",
}
"""Returns of untrained policies at horizon 100 in Gymnasium's own loop, before this project was there."""


def untrained_rows(names: Sequence[str], num_episodes: int, horizon: int) -> list[dict[str, Any]]:
    """Return of untrained policies, one per episode and task, on `mujoco`; an earlier figure beside it."""
    rows = []
    for name in names:
        env: Any = registry.make_env(name, simulator="mujoco" if name in FORMULAS else "auto")
        policy = make_policy(env.obs_size, env.action_size)

        def episode(key: jax.Array, env: Any = env, policy: Any = policy) -> tuple[jax.Array, jax.Array]:
            key_policy, key_task, key = jax.random.split(key, 3)
            trajectory = collect(
                policy.init(key_policy),
                (),
                key,
                env.sample_task(key_task),
                num_trajectories=1,
                env=env,
                policy=policy,
                attack=no_attack(),
                budget=Budget(0.0),
                is_query=True,
                horizon=horizon,
            )
            return episode_returns(trajectory)[0], jnp.sum(trajectory.mask)

        returns, lengths = jax.jit(jax.vmap(episode))(jax.random.split(jax.random.key(0), num_episodes))
        rows.append(
            {
                "environment": name,
                "mean return": float(returns.mean()),
                "standard error": float(returns.std(ddof=1) / num_episodes**0.5),
                "mean length": float(lengths.mean()),
                "earlier measurement": EARLIER.get(name, "-"),
            }
        )
    return rows


@dataclass(frozen=True)
class Arguments:
    """Differences from Gymnasium over 20 control steps, and returns of untrained policies."""

    env: tuple[str, ...] = ENVIRONMENTS
    simulator: tuple[str, ...] = ("mujoco", "mjx")
    seeds: tuple[int, ...] = (0, 1, 2)
    episodes: int = 100
    write: bool = True
    """Replace the tables in docs/environments.md."""


def main() -> None:
    """Runs the comparison from the command line."""
    arguments = tyro.cli(Arguments, prog="python -m benchmarks.parity", description=__doc__)
    parity = markdown_table(parity_rows(arguments.env, arguments.simulator, arguments.seeds), ".1e")
    everything = ("navigation_2d", *arguments.env)
    untrained = markdown_table(untrained_rows(everything, arguments.episodes, 100), ".2f")
    versions = ", ".join(f"{k} {v}" for k, v in machine().items() if k in ("jax", "mujoco", "mujoco-mjx"))
    first = (
        f"Largest absolute difference from Gymnasium {gymnasium.__version__} over {STEPS} control steps and "
        f"{len(arguments.seeds)} starts ({versions});\n`first step` is the largest of all after one step."
    )
    second = (
        f"Untrained policies (tanh 64x64, standard deviation 1): {arguments.episodes} episodes, each with a "
        "task and a policy of its own,\nhorizon 100, `mujoco`. Beside it means of 20 episodes in Gymnasium's "
        "own loop, measured before this project was there.\nTasks differ; on `ant_goal`, where goals "
        "decide, one episode's return has a standard deviation of about 120, so the two are\n1.6 standard "
        "errors apart. Standing still returns about 105 there: 4.05 per step minus a mean distance of 3."
    )
    text = "\n\n".join((first, parity, second, untrained))
    print(text)
    if arguments.write:
        replace_section(DOCUMENT, "parity", text)


if __name__ == "__main__":
    main()
