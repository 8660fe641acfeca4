"""The evaluation stages: meta-test grid, convergence curves, trajectories for a picture."""

import contextlib
import functools
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

from admrl_jax import envs, evaluation, hosts, mapped_axis, training
from admrl_jax.attacks import Budget
from admrl_jax.blocks import map_blocks
from admrl_jax.config import METHODS, MAMLConfig
from admrl_jax.files import DamagedFileError, read_arrays, write_arrays
from admrl_jax.memory import compile_largest
from admrl_jax.run_log import Progress
from admrl_jax.sharding import TASKS
from admrl_jax.training import TrainState
from admrl_jax.types import Params, Task
from experiments.context import Context, check_budget, generator_of

CELLS = (("clean", "attacked"), ("attacked", "clean"), ("attacked", "attacked"))
CLEAN_CELL = (("clean", "clean"),)


class EvalStages:
    """Raw returns are kept in `returns/*.npz`; what is there and whole is not measured again."""

    def __init__(self, context: Context):
        self.context = context
        self.lanes_at_once = 0
        """Seeds that the program of `evaluate` takes together; 0 before it is compiled."""
        self._program: Any = None

    def meta_test(
        self, trained: dict[str, TrainState], adaptive: dict[str, Params], no_gan: Params
    ) -> list[dict[str, Any]]:
        """Every method under every attack, strength, protocol and support x query cell.

        The process that writes makes the rows, these and those of `convergence_curves`; others have none.
        """
        rows = []
        strengths = self.context.config.eval.strengths
        # Every attack gets generators; those that have no parameters do not look at them.
        shared = [generator_of(trained["admrl"])] * len(strengths)
        for method in METHODS:
            tests: list[tuple[str, str, Any]] = [
                *((attack, "", shared) for attack in ("none", "gaussian", "l2_noise", "fgsm")),
                ("adgan", "paper", shared),
                ("adgan", "adaptive", _per_strength(adaptive[method], len(strengths))),
            ]
            if method == "maml":
                tests.append(("adgan", "adaptive_no_gan", _per_strength(no_gan, len(strengths))))
            for attack, protocol, params in tests:
                rows += self._test(method, trained[method], attack, protocol, params)
        return rows

    def _test(
        self, method: str, victim: TrainState, attack: str, protocol: str, params: Any
    ) -> list[dict[str, Any]]:
        """All strengths and cells of one attack on one method; cached in `returns/`."""
        strengths = (0.0,) if attack == "none" else self.context.config.eval.strengths
        cells = [
            (i, strength, support, query)
            for i, strength in enumerate(strengths)
            for support, query in (CLEAN_CELL if attack == "none" else CELLS)
        ]
        name = ".".join(part for part in (method, attack, protocol) if part)
        path = self.context.directory / "returns" / f"{name}.npz"
        names = ("returns", "attack_size")
        if not self._is_measured(path, *names):
            start = time.monotonic()
            results = []
            with self._progress(f"{name}: meta-test", len(cells)) as progress:
                for i, strength, support, query in cells:
                    results.append(
                        self.evaluate(
                            victim,
                            victim.policy_params,
                            attack,
                            params[i],
                            strength if support == "attacked" else 0.0,
                            strength if query == "attacked" else 0.0,
                        )
                    )
                    progress.update(len(results), {"post": float(results[-1].returns[:, :, -1].mean())})
                    self.context.check_stop()
            self.context.seconds[f"{name}: meta-test"] = time.monotonic() - start
            self._write(
                path,
                returns=np.stack([r.returns for r in results], axis=1),
                attack_size=np.stack([r.attack_size for r in results], axis=1),
            )
        if not self.context.writes:
            return []
        saved = read_arrays(path, *names)
        returns, sizes = saved["returns"], saved["attack_size"]
        return [
            {
                "method": method,
                "seed": seed,
                "attack": attack,
                "strength": strength,
                "protocol": protocol,
                "support": support,
                "query": query,
                "pre": float(returns[s, c, :, 0].mean(dtype=np.float64)),
                "post": float(returns[s, c, :, -1].mean(dtype=np.float64)),
                "attack_size": float(sizes[s, c]),
            }
            for s, seed in enumerate(self.context.config.seeds)
            for c, (_, strength, support, query) in enumerate(cells)
        ]

    def convergence_curves(
        self, snapshots: dict[str, Params], trained: dict[str, TrainState]
    ) -> list[dict[str, Any]]:
        """Returns of the saved policies, clean and under each attack, on the held-out tasks."""
        schedule = self.context.config.schedule
        curves = []
        for method, policies in snapshots.items():
            is_pretrain = method == "pretrain"
            first = 0 if is_pretrain else schedule.pretrain_steps
            last = first + (schedule.pretrain_steps if is_pretrain else schedule.finetune_steps)
            count = jax.tree.leaves(policies)[0].shape[0]
            steps = [min(first + (i + 1) * schedule.snapshot_every, last) for i in range(count)]
            state = trained["admrl" if is_pretrain else method]
            if is_pretrain:
                # The untrained policy, so that the curves start where training starts.
                untrained = jax.vmap(
                    lambda key: (
                        training.init(
                            key, policy=self.context.policy, obs_size=self.context.env.obs_size
                        ).policy_params
                    )
                )(jnp.stack([jax.random.key(seed) for seed in self.context.config.seeds]))
                policies = jax.tree.map(lambda a, b: jnp.concatenate([a[None], b]), untrained, policies)
                steps = [0, *steps]
            for attack in ("none", "gaussian", "fgsm", "adgan"):
                curves += self._curve(method, state, policies, steps, attack, generator_of(trained["admrl"]))
        return curves

    def _curve(
        self,
        method: str,
        state: TrainState,
        policies: Params,
        steps: list[int],
        attack: str,
        generator: Params,
    ) -> list[dict[str, Any]]:
        strength = 0.0 if attack == "none" else self.context.config.eval.curve_strength
        path = self.context.directory / "returns" / f"curve.{method}.{attack}.npz"
        if not self._is_measured(path, "returns"):
            results = []
            with self._progress(f"{method}: curve under {attack}", len(steps)) as progress:
                for i in range(len(steps)):
                    params = jax.tree.map(lambda x, i=i: x[i], policies)
                    result = self.evaluate(state, params, attack, generator, strength, strength)
                    results.append(result.returns)
                    progress.update(i + 1, {"post": float(result.returns[:, :, -1].mean())})
                    self.context.check_stop()
            self._write(path, returns=np.stack(results, axis=1))
        if not self.context.writes:
            return []
        returns = read_arrays(path, "returns")["returns"]
        return [
            {
                "method": method,
                "seed": seed,
                "step": step,
                "attack": attack,
                "strength": strength,
                "pre": float(returns[s, t, :, 0].mean(dtype=np.float64)),
                "post": float(returns[s, t, :, -1].mean(dtype=np.float64)),
            }
            for s, seed in enumerate(self.context.config.seeds)
            for t, step in enumerate(steps)
        ]

    def save_trajectories(self, trained: dict[str, TrainState], adaptive: dict[str, Params]) -> None:
        """2D navigation: paths to a few goals before and after adaptation, for a picture."""
        path = self.context.directory / "trajectories.npz"
        if not self.context.writes or not isinstance(self.context.env, envs.Navigation2D):
            return
        if _is_whole(path, "goals"):
            return
        size = 0.8 * self.context.env.config.goal_range
        goals = size * jnp.array([[1.0, 1.0], [-1.0, 0.6], [-0.6, -1.0], [1.0, -0.5]])
        arrays: dict[str, Any] = {"goals": np.asarray(goals)}
        radius = self.context.config.eval.curve_strength
        index = int(np.argmin(np.abs(np.asarray(self.context.config.eval.strengths) - radius)))
        collect = jax.jit(
            lambda params, generator, budget: training.collect_meta_batch(
                params,
                generator,
                self.context.eval_key,
                goals,
                env=self.context.env,
                policy=self.context.policy,
                attack=self.context.adgan.attack,
                support_budget=budget,
                query_budget=budget,
                config=self._eval_maml,
            )
        )
        for method in METHODS:
            params, budget, generator = jax.tree.map(
                lambda x: x[0], (trained[method].policy_params, trained[method].budget, adaptive[method])
            )
            generator = jax.tree.map(lambda x: x[index], generator)
            for cell, strength in (("clean", 0.0), ("attacked", self.context.config.eval.strengths[index])):
                batch = collect(params, generator, budget._replace(radius=jnp.asarray(strength)))
                for phase, data in (("pre", batch.support), ("post", batch.query)):
                    positions = np.asarray(data.trajectory.obs)
                    mask = np.asarray(data.trajectory.mask)
                    if phase == "pre":
                        positions, mask = positions[:, 0], mask[:, 0]
                    arrays[f"{method}/{cell}/{phase}"] = positions[:, :4]
                    arrays[f"{method}/{cell}/{phase}/mask"] = mask[:, :4]
        write_arrays(path, **arrays)

    def _write(self, path: Path, **arrays: np.ndarray) -> None:
        if self.context.writes:
            path.parent.mkdir(exist_ok=True)
            write_arrays(path, **arrays)

    def _is_measured(self, path: Path, *names: str) -> bool:
        """Whether arrays are there and whole, as the process sees it that writes them."""
        return bool(hosts.from_first(int(self.context.writes and _is_whole(path, *names))))

    def _progress(self, stage: str, total: int) -> contextlib.closing[Progress]:
        """Progress that lets go of the terminal however its stage ends."""
        return contextlib.closing(self.context.progress(stage, total))

    @property
    def _eval_maml(self) -> MAMLConfig:
        return replace(
            self.context.config.train.maml,
            num_tasks=self.context.config.eval.num_tasks,
            num_trajectories=self.context.config.eval.num_trajectories,
            num_adapt_steps=self.context.config.eval.num_adapt_steps,
        )

    def evaluate(
        self,
        state: TrainState,
        policy_params: Params,
        attack: str,
        attack_params: Params,
        support_radius: float,
        query_radius: float,
    ) -> evaluation.EvalResult:
        """One cell, all seeds; returns arrays on the host with leading axis `S`."""
        inputs = self.context.place(
            (
                self.context.number(attack),
                (policy_params, attack_params, state.budget),
                self.context.eval_key,
                self.context.tasks,
                jnp.float32(support_radius),
                jnp.float32(query_radius),
            )
        )
        if self._program is None:
            one, each_task = PartitionSpec(), PartitionSpec(None, TASKS)
            specs = evaluation.EvalResult._make((each_task, one, one))

            def compile_for(at_once: int) -> Any:
                cell = functools.partial(self._cell, at_once)
                return jax.jit(self.context.spread(cell, specs)).lower(*inputs).compile()

            seeds = len(self.context.config.seeds)
            self.lanes_at_once, self._program = compile_largest(compile_for, seeds, self.context.config.lanes)
        result = hosts.gather(self._program(*inputs))
        check_budget(result.budget_excess, f"meta-test under {attack}")
        return result

    def _cell(
        self,
        at_once: int,
        number: jax.Array,
        seeds: tuple[Params, Params, Budget],
        key: jax.Array,
        tasks: Task,
        support_radius: jax.Array,
        query_radius: jax.Array,
    ) -> evaluation.EvalResult:
        """The program of `evaluate`, so many seeds at a time."""

        def one_seed(seed: tuple[Params, Params, Budget]) -> evaluation.EvalResult:
            params, attack_params, budget = seed
            return evaluation.evaluate(
                params,
                attack_params,
                key,
                mapped_axis.share(tasks, self.context.axis_name),
                env=self.context.env,
                policy=self.context.policy,
                attack=self.context.attack(number),
                support_budget=budget._replace(radius=support_radius),
                query_budget=budget._replace(radius=query_radius),
                config=self._eval_maml,
                axis_name=self.context.axis_name,
            )

        return map_blocks(one_seed, seeds, at_once)


def _is_whole(path: Path, *names: str) -> bool:
    """Whether a file is there and holds these arrays; says so where it is damaged."""
    if not path.exists():
        return False
    try:
        read_arrays(path, *names)
    except DamagedFileError as error:
        print(f"{error}; it is measured again", file=sys.stderr)
        return False
    return True


def _per_strength(params: Params, count: int) -> list[Params]:
    """Splits generators `[S, R, ...]` into `R` pytrees `[S, ...]`."""
    return [jax.tree.map(lambda x, i=i: x[:, i], params) for i in range(count)]
