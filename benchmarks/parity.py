"""How far the engines are from Gymnasium: `python -m benchmarks.parity` rewrites docs/environments.md.

The reference is Gymnasium's own environment on the same model file, from the same start, under the
same controls. Observations, rewards and endings are computed a second time in NumPy, from
Gymnasium's state, by formulas that share no code with the environments.
"""

# MuJoCo's classes live in a C extension without type stubs.
# pyright: reportAttributeAccessIssue=false

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium
import jax
import jax.numpy as jnp
import mujoco
import numpy as np
import tyro

from admrl_jax import envs
from admrl_jax.attacks import Budget, no_attack
from admrl_jax.env_config import ENV_CONFIGS
from admrl_jax.envs import PhysicsEnv
from admrl_jax.networks import make_policy
from admrl_jax.rollout import collect, episode_returns
from admrl_jax.simulators.models import quiet_loading
from benchmarks.common import machine, markdown_table, replace_section

DOCUMENT = Path(__file__).parent.parent / "docs" / "environments.md"
ENVIRONMENTS = tuple(name for name in ENV_CONFIGS if name != "navigation_2d")
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


class Formulas(NamedTuple):
    """An environment once more, in NumPy.

    Attributes:
        gymnasium_id: reference environment.
        observe: `(data, task, config) -> obs`; `data` has up-to-date kinematics.
        reward: `(velocity of the root (x, y), action, ctrl, data, task, config) -> reward`.
        ended: `(data, config) -> bool`.
    """

    gymnasium_id: str
    observe: Callable[..., np.ndarray]
    reward: Callable[..., float]
    ended: Callable[..., bool]


def _cheetah_obs(data: Any, task: Any, config: Any) -> np.ndarray:
    return np.concatenate([data.qpos[1:], data.qvel, data.body("torso").xpos])


def _ant_obs(data: Any, task: Any, config: Any) -> np.ndarray:
    torso = data.body("torso")
    return np.concatenate([data.qpos, data.qvel, torso.xmat, torso.xpos])


def _reacher_obs(data: Any, task: Any, config: Any) -> np.ndarray:
    angles = data.qpos[:2]
    return np.concatenate([np.cos(angles), np.sin(angles), data.qvel[:2], data.body("fingertip").xpos[:2]])


def _planar_obs(data: Any, task: Any, config: Any) -> np.ndarray:
    return np.concatenate([data.qpos[1:], np.clip(data.qvel, -10, 10)])


def _ant_ended(data: Any, config: Any) -> bool:
    return not 0.2 <= data.body("torso").xpos[2] <= 1.0


def _never(data: Any, config: Any) -> bool:
    return False


def _ant_reward(task_reward: Callable[..., float], bonus: float) -> Callable[..., float]:
    def reward(velocity: Any, action: Any, ctrl: Any, data: Any, task: Any, config: Any) -> float:
        return task_reward(velocity, data, task) + bonus + 0.05 - 0.005 * np.sum(ctrl**2)

    return reward


def _walking_reward(velocity: Any, action: Any, ctrl: Any, data: Any, task: Any, config: Any) -> float:
    return velocity[0] + 1 - 0.001 * np.sum(ctrl**2)


FORMULAS: dict[str, Formulas] = {
    "halfcheetah_dir": Formulas(
        "HalfCheetah-v5",
        _cheetah_obs,
        lambda v, action, ctrl, data, task, config: task * v[0] - 0.05 * np.sum(ctrl**2),
        _never,
    ),
    "halfcheetah_vel": Formulas(
        "HalfCheetah-v5",
        _cheetah_obs,
        lambda v, action, ctrl, data, task, config: -abs(v[0] - task) - 0.05 * np.sum(ctrl**2),
        _never,
    ),
    "ant_vel": Formulas(
        "Ant-v5", _ant_obs, _ant_reward(lambda v, data, task: -abs(v[0] - task), 1.0), _ant_ended
    ),
    "ant_dir": Formulas(
        "Ant-v5", _ant_obs, _ant_reward(lambda v, data, task: task[0] * v[0], 0.0), _ant_ended
    ),
    "ant_goal": Formulas(
        "Ant-v5",
        _ant_obs,
        _ant_reward(lambda v, data, task: -np.abs(data.body("torso").xpos[:2] - task).sum(), 4.0),
        _ant_ended,
    ),
    "reacher": Formulas(
        "Reacher-v5",
        _reacher_obs,
        lambda v, action, ctrl, data, task, config: (
            -np.linalg.norm(data.body("fingertip").xpos - data.body("target").xpos) - np.sum(action**2)
        ),
        _never,
    ),
    "walker2d_params": Formulas(
        "Walker2d-v5",
        _planar_obs,
        _walking_reward,
        lambda data, config: not (0.8 < data.qpos[1] < 2 and -1 < data.qpos[2] < 1),
    ),
    "hopper_params": Formulas(
        "Hopper-v5",
        _planar_obs,
        _walking_reward,
        lambda data, config: (
            not (
                data.qpos[1] > 0.7
                and abs(data.qpos[2]) < 0.2
                and np.all(np.abs(data.qpos[2:]) < 100)
                and np.all(np.abs(data.qvel) < 100)
            )
        ),
    ),
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
        reference.step(ctrl)
        # Gymnasium leaves body positions one physics step behind the state.
        mujoco.mj_kinematics(model, data)
        velocity = (data.qpos[:2] - before) / reference.dt
        records.append(
            (
                data.qpos.copy(),
                data.qvel.copy(),
                formulas.observe(data, case.task, env.config),
                formulas.reward(velocity, action, ctrl, data, case.task, env.config),
                formulas.ended(data, env.config),
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
    env = envs.make(name, simulator=simulator)
    assert isinstance(env, PhysicsEnv)
    return env


def parity_rows(
    names: Sequence[str], simulators: Sequence[str], seeds: Sequence[int]
) -> list[dict[str, Any]]:
    """Largest differences from Gymnasium over all seeds, one row per environment and engine."""
    rows = []
    for name in names:
        for simulator in simulators:
            env = make_env(name, simulator)
            worst: dict[str, float] = {}
            for seed in seeds:
                case = make_case(env, seed)
                run, reference = run_engine(env, case), run_gymnasium(env, case)
                found = differences(run, reference)
                found["first step"] = max(differences(run, reference, 1).values())
                worst = {key: max(found[key], worst.get(key, 0.0)) for key in found}
            rows.append({"environment": name, "engine": simulator, **worst})
    return rows


def untrained_rows(names: Sequence[str], num_episodes: int, horizon: int) -> list[dict[str, Any]]:
    """Return of untrained policies, one per episode and task, on `mujoco`."""
    rows = []
    for name in names:
        env = make_env(name, "mujoco")
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
    untrained = markdown_table(untrained_rows(arguments.env, arguments.episodes, 100), ".2f")
    versions = ", ".join(f"{k} {v}" for k, v in machine().items() if k in ("jax", "mujoco", "mujoco-mjx"))
    first = (
        f"Largest absolute difference from Gymnasium {gymnasium.__version__} over {STEPS} control steps and "
        f"{len(arguments.seeds)} starts ({versions});\n`first step` is the largest of all after one step."
    )
    second = (
        f"Untrained policies (tanh 64x64, standard deviation 1): {arguments.episodes} episodes, each with a "
        "task and a policy of its own,\nhorizon 100, `mujoco`."
    )
    text = "\n\n".join((first, parity, second, untrained))
    print(text)
    if arguments.write:
        replace_section(DOCUMENT, "parity", text)


if __name__ == "__main__":
    main()
