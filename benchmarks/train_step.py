"""Where the time of an outer step goes: `python -m benchmarks.train_step`.

One step of the method admrl at the paper's sizes is timed whole, as training runs it, and in its parts,
each a program of its own on the data of the part before, over as many devices as training takes. The
parts may sum to more than the whole, where the compiler fuses across them. Two figures of the physics: the
time that the C engine was at work within the whole step, and the engine alone, open loop over the same
number of control steps, timed in the same turn.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import jax
import jax.numpy as jnp
import tyro

from admrl_jax import adgan as adgan_lib
from admrl_jax import envs, training
from admrl_jax.adgan import update_adversary
from admrl_jax.blocks import map_blocks
from admrl_jax.config import Config
from admrl_jax.envs import PhysicsEnv
from admrl_jax.maml import adapt_step
from admrl_jax.returns import estimate_advantages
from admrl_jax.rollout import collect
from admrl_jax.sharding import CPU_DEVICES, TASKS, choose_num_devices, make_cpu_devices, task_mesh
from admrl_jax.training import MetaBatch, TrainState
from admrl_jax.types import Experience, Params, Task
from benchmarks.common import EACH, SAME, compile_seconds, preset_of, report, spread, time_in_turn
from benchmarks.limits import draw_starts, engine_clock, open_loop
from experiments.context import make_policy


@dataclass(frozen=True)
class Arguments:
    """Seconds of one outer step of admrl and of its parts."""

    env: tuple[str, ...] = ("navigation_2d", "halfcheetah_dir")
    preset: str = "paper"
    """paper or quick."""
    simulator: str = "auto"
    num_tasks: int = 0
    """Other sizes than the preset's; 0 keeps them."""
    num_trajectories: int = 0
    horizon: int = 0
    task_block: int = -1
    """Tasks computed together in the trust-region step; -1 keeps the preset's."""
    num_devices: int = 0
    """Devices over which tasks are spread; 0 takes as many as training does."""
    repeats: int = 5
    json: Path | None = None
    """Also write the figures here (and a picture beside it)."""


def config_of(name: str, arguments: Arguments) -> Config:
    """The preset of an environment at the sizes asked for."""
    config = preset_of(name, arguments.preset)
    maml = config.train.maml
    maml = replace(
        maml,
        num_tasks=arguments.num_tasks or maml.num_tasks,
        num_trajectories=arguments.num_trajectories or maml.num_trajectories,
        task_block=maml.task_block if arguments.task_block < 0 else arguments.task_block,
    )
    return replace(
        config,
        env=replace(config.env, horizon=arguments.horizon or config.env.horizon),
        simulator=arguments.simulator,
        num_devices=arguments.num_devices or choose_num_devices([maml.num_tasks]),
        train=replace(config.train, maml=maml),
    )


class Parts:
    """The parts of an outer step as functions of arrays, and what they share."""

    def __init__(self, config: Config):
        self.config = config
        self.maml = config.train.maml
        self.env: Any = envs.make(config.env, simulator=config.simulator)
        self.policy = make_policy(config, self.env)
        self.adgan = adgan_lib.make_adgan(self.env.obs_size, config.train.adversary)
        self.mesh = task_mesh(config.num_devices) if config.num_devices > 1 else None
        self.axis_name = None if self.mesh is None else TASKS

    def init(self) -> tuple[TrainState, Task]:
        """A state with a fresh adGAN, and tasks `[N, ...]`."""
        state = training.init(jax.random.key(0), policy=self.policy, obs_size=self.env.obs_size)
        adversary = adgan_lib.init_adversary(jax.random.key(1), self.adgan, self.config.train.adversary)
        radius = jnp.float32(self.config.train.adversary.perturbation_bound)
        state = state.replace(adversary=adversary, budget=state.budget._replace(radius=radius))
        return state, jax.vmap(self.env.sample_task)(jax.random.split(jax.random.key(2), self.maml.num_tasks))

    def outer_step(self, state: TrainState) -> Any:
        """The whole, as training runs it."""
        return training.outer_step(
            state,
            env=self.env,
            policy=self.policy,
            attack=self.adgan.attack,
            config=self.config.train,
            adgan=self.adgan,
            axis_name=self.axis_name,
        )

    def rollouts(self, params: Params, state: TrainState, keys: jax.Array, tasks: Task) -> Experience:
        """Episodes `[N, K, H, ...]` of policies, keys and tasks with leading axis `N`, with advantages."""
        assert state.adversary is not None
        run = functools.partial(
            collect,
            num_trajectories=self.maml.num_trajectories,
            env=self.env,
            policy=self.policy,
            attack=self.adgan.attack,
            budget=state.budget,
        )
        attack_params = state.adversary.generator_params
        episodes = jax.vmap(run, in_axes=(0, None, 0, 0))(params, attack_params, keys, tasks)
        score = functools.partial(
            estimate_advantages, discount=self.maml.discount, gae_lambda=self.maml.gae_lambda
        )
        return jax.vmap(score)(episodes)

    def adaptation(self, params: Params, support: Experience) -> Params:
        """One gradient step per task, parameters with leading axis `N`."""
        one = functools.partial(adapt_step, policy=self.policy, inner_lr=self.maml.inner_lr)
        return map_blocks(lambda data: one(*data), (params, support), self.maml.task_block)

    def trust_region(self, params: Params, batch: MetaBatch) -> Any:
        """The step on the meta-parameters."""
        return training.update_policy(
            params, batch, policy=self.policy, config=self.config.train, axis_name=self.axis_name
        )

    def adversary(self, state: TrainState, key: jax.Array, batch: MetaBatch) -> Any:
        """All minibatches of discriminator and generator."""
        assert state.adversary is not None
        return update_adversary(
            state.adversary,
            key,
            batch.support,
            batch.query,
            batch.adapted_params,
            adgan=self.adgan,
            policy=self.policy,
            budget=state.budget,
            config=self.config.train.adversary,
            task_block=self.maml.task_block,
            axis_name=self.axis_name,
        )


def measure(name: str, arguments: Arguments) -> list[dict[str, Any]]:
    """A row for the whole, one for each part, and one for the engine alone."""
    parts = Parts(config_of(name, arguments))
    state, tasks = parts.init()
    key = jax.random.key(3)
    compiling: dict[str, float] = {}
    functions: dict[str, Callable[[], Any]] = {}

    def add(part: str, function: Callable, in_specs: Any, out_specs: Any, *inputs: Any) -> Any:
        function, placed = spread(function, parts.mesh, in_specs, out_specs, inputs)
        compiling[part], compiled = compile_seconds(function, *placed)
        functions[part] = functools.partial(compiled, *placed)
        return functions[part]()

    add("whole step", parts.outer_step, (SAME,), SAME, state)
    keys = jax.random.split(key, parts.maml.num_tasks)
    params = jax.tree.map(
        lambda x: jnp.broadcast_to(x, (parts.maml.num_tasks, *x.shape)), state.policy_params
    )
    acting = (EACH, SAME, EACH, EACH)
    support = add("support rollout", parts.rollouts, acting, EACH, params, state, keys, tasks)
    adapted = add("adaptation", parts.adaptation, (EACH, EACH), EACH, params, support)
    query = add("query rollout", parts.rollouts, acting, EACH, adapted, state, keys, tasks)
    batch = MetaBatch(jax.tree.map(lambda x: x[:, None], support), query, adapted)
    add("TRPO step", parts.trust_region, (SAME, EACH), SAME, state.policy_params, batch)
    add("adGAN update", parts.adversary, (SAME, SAME, EACH), SAME, state, key, batch)
    if isinstance(parts.env, PhysicsEnv):
        starts = draw_starts(parts.env, key, tasks, parts.maml.num_trajectories)
        alone = [
            open_loop(parts.env, tasks, *starts, data.trajectory.action, mesh=parts.mesh)
            for data in (support, query)
        ]
        functions["engine alone"] = lambda: [run() for run in alone]
    within: list[float] = []
    whole_step = functions["whole step"]

    def watched_step() -> None:
        with engine_clock() as calls:
            jax.block_until_ready(whole_step())
        within.append(sum(calls))

    functions["whole step"] = watched_step
    timed = time_in_turn(functions, arguments.repeats)
    if any(within):
        timed["engine within the step"] = within[1:]
    whole = timed["whole step"]
    simulator = getattr(parts.env, "simulator", None)
    return [
        {
            "env": name,
            "simulator": "closed form" if simulator is None else simulator.name,
            "tasks": parts.maml.num_tasks,
            "trajectories": parts.maml.num_trajectories,
            "horizon": parts.env.horizon,
            "devices": parts.config.num_devices,
            "part": part,
            "compile_s": compiling.get(part, "-"),
            "seconds": median(seconds),
            "share": median(s / w for s, w in zip(seconds, whole, strict=True)),
        }
        for part, seconds in timed.items()
    ]


def main() -> None:
    """Runs the benchmark from the command line."""
    arguments = tyro.cli(Arguments, prog="python -m benchmarks.train_step", description=__doc__)
    make_cpu_devices(arguments.num_devices or CPU_DEVICES)
    rows = [row for name in arguments.env for row in measure(name, arguments)]
    report(
        "One outer step of admrl and its parts",
        rows,
        arguments.json,
        bars=("seconds",),
        labels=("env", "simulator", "part"),
        unit="seconds",
    )


if __name__ == "__main__":
    main()
