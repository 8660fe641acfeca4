"""Meta-test of saved policies: any tasks, episodes per step, steps of adaptation and step sizes."""

import dataclasses
import json
import platform
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from admrl_jax.attacks.noise import no_attack
from admrl_jax.attacks.threat import Budget
from admrl_jax.core.settings import ConfigError
from admrl_jax.core.types import Experience, Params, Task, Trajectory
from admrl_jax.envs.base import Env
from admrl_jax.evaluation import do_nothing_returns
from admrl_jax.learners.registry import LEARNERS
from admrl_jax.methods import METHODS
from admrl_jax.runs.artefact import Trained, load_policy, read_policies
from admrl_jax.runs.files import write_rows
from admrl_jax.runs.progress import Progress
from admrl_jax.runs.versions import versions
from admrl_jax.sampling import SamplingConfig, collect_tasks, episode_returns, score_tasks, unadapted

KEY = 2**31 - 2
"""Folded into the seed of an evaluation: no policy was trained with the keys that follow."""


class EvaluationPlan(NamedTuple):
    """What is evaluated.

    Attributes:
        source: run directory or its `policies.npz`.
        methods: names of policies.
        seeds: of the run.
        shots: episodes per step of adaptation; every number is a row of its own.
        step_sizes: of every step of adaptation, one after the other.
        query_episodes: by which each stage of adaptation is measured.
        num_tasks: drawn, where none are given.
        tasks: given; None draws them.
        seed: of tasks and episodes.
        simulator: engine; empty for the one that trained.
    """

    source: Path
    methods: tuple[str, ...]
    seeds: tuple[int, ...]
    shots: tuple[int, ...]
    step_sizes: tuple[float, ...]
    query_episodes: int
    num_tasks: int
    tasks: Task | None
    seed: int
    simulator: str = ""


class Stages(NamedTuple):
    """Every stage of adaptation to some tasks.

    Attributes:
        returns: `[S + 1, N, K]` of the query episodes at each stage; the first is before adaptation.
        params: policy parameters, leading axes `[S + 1, N]`.
    """

    returns: np.ndarray
    params: list[Params]


class Adapter:
    """Adapts saved policies of one kind step by step and measures each stage; programs are compiled once."""

    def __init__(self, trained: Trained):
        self._trained = trained
        self._programs: dict[Any, Callable] = {}

    def run(
        self,
        meta_params: Params,
        key: jax.Array,
        tasks: Task,
        *,
        shots: int,
        step_sizes: Sequence[float],
        query_episodes: int,
    ) -> Stages:
        """Adapts to each task on `shots` new episodes per step; query episodes are the same at every stage.

        Args:
            meta_params: of the learner.
            key: of the episodes.
            tasks: leading axis `N`.
            shots: episodes per step.
            step_sizes: of the steps, in turn.
            query_episodes: by which each stage is measured.
        """
        count = jax.tree.leaves(tasks)[0].shape[0]
        key_query, key_support = jax.random.split(key)
        params = unadapted(meta_params, count, self._trained.learner)
        stages, returns = [params], []
        for number in range(len(step_sizes) + 1):
            measured = self._collect(query_episodes, stages[-1], key_query, tasks, True)
            returns.append(np.asarray(jax.jit(episode_returns)(measured)))
            if number < len(step_sizes):
                episodes = self._collect(
                    shots, stages[-1], jax.random.fold_in(key_support, number), tasks, False
                )
                stages.append(self._adapt(step_sizes[number], meta_params, stages[-1], episodes))
        return Stages(np.stack(returns), stages)

    def _collect(self, count: int, params: Params, key: jax.Array, tasks: Task, is_query: bool) -> Trajectory:
        env, policy = self._trained.env, self._trained.policy
        name = ("collect", count)
        if name not in self._programs:

            def collect(params: Params, key: jax.Array, tasks: Task, is_query: jax.Array) -> Trajectory:
                return collect_tasks(
                    params,
                    (),
                    key,
                    tasks,
                    Budget(jnp.zeros(jax.tree.leaves(tasks)[0].shape[0])),
                    num_trajectories=count,
                    env=env,
                    policy=policy,
                    attack=no_attack(),
                    is_query=is_query,
                )

            self._programs[name] = jax.jit(collect)
        return self._programs[name](params, key, tasks, jnp.asarray(is_query))

    def _adapt(self, step_size: float, meta_params: Params, params: Params, episodes: Trajectory) -> Params:
        sampling: SamplingConfig = self._trained.config.sampling
        name = ("adapt", step_size)
        if name not in self._programs:
            learner = with_step_size(self._trained, step_size)

            def adapt(meta_params: Params, params: Params, episodes: Trajectory) -> Params:
                batch: Experience = score_tasks(episodes, sampling, self._trained.policy, False)
                step = jax.vmap(lambda params, batch: learner.adapt_step(meta_params, params, batch))
                return step(params, batch)

            self._programs[name] = jax.jit(adapt)
        return self._programs[name](meta_params, params, episodes)


def with_step_size(trained: Trained, step_size: float) -> Any:
    """The learner of a saved policy, adapting with another step size.

    Raises:
        ConfigError: it has none.
    """
    kind = trained.learner_name
    config = getattr(trained.config.learners, kind)
    if not hasattr(config, "inner_lr"):
        raise ConfigError(f"step_sizes: {kind} has no step size of adaptation")
    return LEARNERS[kind].make(dataclasses.replace(config, inner_lr=step_size), trained.policy)


def read_tasks(path: Path, env: Env) -> Task:
    """Tasks from a JSON file: a list with one entry per task, in the form that `sample_task` returns.

    Args:
        path: of the file.
        env: whose tasks they are.

    Raises:
        ConfigError: it cannot be read, or an entry is no task of the environment.
    """
    try:
        entries = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ConfigError(f"tasks: {path} cannot be read: {error}") from error
    like = jax.eval_shape(env.sample_task, jax.random.key(0))
    leaves, structure = jax.tree.flatten(like)
    wanted = ", ".join(f"{leaf.dtype}{list(leaf.shape)}" for leaf in leaves)
    if not isinstance(entries, list) or not entries:
        raise ConfigError(f"tasks: {path} holds no list; accepted: a list of tasks, each {wanted}")
    tasks = []
    for number, entry in enumerate(entries):
        try:
            parts = [entry] if len(leaves) == 1 else list(entry)
            arrays = [np.asarray(part, leaf.dtype) for part, leaf in zip(parts, leaves, strict=True)]
        except (TypeError, ValueError) as error:
            raise ConfigError(f"tasks: entry {number} of {path} is no task; accepted: {wanted}") from error
        if [array.shape for array in arrays] != [leaf.shape for leaf in leaves]:
            found = ", ".join(str(list(array.shape)) for array in arrays)
            raise ConfigError(f"tasks: entry {number} of {path} has the shape {found}; accepted: {wanted}")
        tasks.append(jax.tree.unflatten(structure, arrays))
    return jax.tree.map(lambda *x: jnp.stack(x), *tasks)


def draw_tasks(plan: EvaluationPlan, env: Env) -> Task:
    """The tasks of an evaluation, leading axis `N`."""
    if plan.tasks is not None:
        return plan.tasks
    key = jax.random.fold_in(evaluation_key(plan.seed), 0)
    return jax.vmap(env.sample_task)(jax.random.split(key, plan.num_tasks))


def evaluation_key(seed: int) -> jax.Array:
    """Base key of an evaluation."""
    return jax.random.fold_in(jax.random.key(seed), KEY)


def evaluate_policies(plan: EvaluationPlan, folder: Path) -> dict[str, Any]:
    """Evaluates every policy of a plan.

    Args:
        plan: what is evaluated.
        folder: gets `evaluation.json`.

    Returns:
        What `evaluation.json` holds.
    """
    all_seeds = [int(x) for x in read_policies(plan.source)["seeds"]]
    key = jax.random.fold_in(evaluation_key(plan.seed), 1)
    rows, adapters = [], {}
    total = len(plan.methods) * len(plan.seeds) * len(plan.shots)
    progress = Progress("evaluate", total, 0, shown=True)
    trained = load_policy(plan.source, plan.methods[0], simulator=plan.simulator)
    tasks = draw_tasks(plan, trained.env)
    for method in plan.methods:
        trained = load_policy(plan.source, method, simulator=plan.simulator)
        adapter = adapters.setdefault(trained.learner.name, Adapter(trained))
        for seed in plan.seeds:
            params = jax.tree.map(lambda x, s=seed: x[all_seeds.index(s)], trained.params)
            for shots in plan.shots:
                stages = adapter.run(
                    params,
                    key,
                    tasks,
                    shots=shots,
                    step_sizes=plan.step_sizes,
                    query_episodes=plan.query_episodes,
                )
                by_task = stages.returns.mean(axis=-1, dtype=np.float64)
                rows.append(
                    {"method": method, "seed": seed, "shots": shots, "returns": by_task.round(4).tolist()}
                )
                last = {"return": float(by_task[-1].mean())}
                progress.update(len(rows), last)
    progress.close()
    still = jax.jit(
        lambda key, tasks: do_nothing_returns(
            key, tasks, env=trained.env, num_trajectories=plan.query_episodes
        )
    )
    results = {
        "env": trained.config.env.name,
        "source": str(plan.source),
        "step_sizes": list(plan.step_sizes),
        "query_episodes": plan.query_episodes,
        "seed": plan.seed,
        "tasks": jax.tree.map(lambda x: np.asarray(x).tolist(), jax.tree.leaves(tasks)),
        "floor": float(np.asarray(still(key, tasks)).mean(dtype=np.float64)),
        "simulator": getattr(getattr(trained.env, "simulator", None), "name", "none"),
        "methods": {
            name: {"label": METHODS[name].label, "colour": METHODS[name].colour}
            if name in METHODS
            else {"label": name, "colour": "#777777"}
            for name in plan.methods
        },
        "versions": {"python": platform.python_version()} | versions(),
        "device": jax.devices()[0].device_kind,
        "rows": rows,
    }
    folder.mkdir(parents=True, exist_ok=True)
    write_rows(folder / "evaluation.json", results)
    return results
