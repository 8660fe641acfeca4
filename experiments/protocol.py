"""The paper's protocol on one environment, stage by stage, from a config to a report.

pretrain (clean) -> warmup (adGAN on the frozen policy) -> finetune each method -> adaptive (a
fresh generator against each frozen victim) -> meta-test grid and convergence curves -> report.

Every stage leaves its result on disk and is not run again once it is there.
"""

import functools
import json
import platform
import resource
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from admrl_jax import adgan as adgan_lib
from admrl_jax import attacks, config, envs, evaluation, networks, training
from admrl_jax.attacks import Attack, Budget
from admrl_jax.checkpoint import StageCheckpoints
from admrl_jax.config import METHODS, AdversaryConfig, Config, TrainConfig
from admrl_jax.report import write_report
from admrl_jax.run_log import MetricsLog, Progress, StopRequest, write_arrays, write_text
from admrl_jax.training import TrainState
from admrl_jax.types import Params

SHOWN = {"pre": "train/pre_return", "post": "train/post_return", "kl": "train/kl"}
CELLS = (("clean", "attacked"), ("attacked", "clean"), ("attacked", "attacked"))
CLEAN_CELL = (("clean", "clean"),)
PACKAGES = ("jax", "jaxlib", "flax", "optax", "mujoco", "mujoco-mjx", "numpy", "gymnasium")
STATISTICS_EPISODES = 4
"""Episodes per task from which the units of `normalised` attacks are measured."""


class Interrupted(Exception):
    """The run was asked to stop and has saved its state."""

    def __init__(self, signal_number: int):
        super().__init__(f"stopped by signal {signal_number}")
        self.signal_number = signal_number


class Protocol:
    """One run: what is fixed throughout, and the stages as methods."""

    def __init__(self, run_config: Config, preset: str, directory: Path):
        self.config, self.preset, self.directory = run_config, preset, directory
        self.env = envs.make(
            run_config.env, simulator=run_config.simulator, num_threads=run_config.num_threads
        )
        policy = run_config.policy
        self.policy = networks.make_policy(
            self.env.obs_size,
            self.env.action_size,
            hidden_sizes=policy.hidden_sizes,
            activation=policy.activation,
            init_std=policy.init_std,
            min_std=policy.min_std,
        )
        self.adgan = adgan_lib.make_adgan(self.env.obs_size, run_config.train.adversary)
        self.attacks: dict[str, Attack] = {  # the order is the number in `select`
            "none": attacks.no_attack(),
            "gaussian": attacks.gaussian_noise(),
            "l2_noise": attacks.l2_noise(),
            "fgsm": attacks.fgsm(self.policy),
            "adgan": self.adgan.attack,
        }
        self.log = MetricsLog(directory)
        self.stop = StopRequest()
        self.seconds: dict[str, float] = {}
        self._programs: dict[Any, Any] = {}
        key = jax.random.key(run_config.eval.seed)
        key_tasks, self.eval_key = jax.random.split(key)
        self.tasks = jax.vmap(self.env.sample_task)(
            jax.random.split(key_tasks, run_config.eval.num_tasks)
        )

    def run(self) -> Path:
        """Runs every stage that is not done yet; returns the path of the report.

        Raises:
            Interrupted: SIGINT or SIGTERM came; everything done so far is saved.
        """
        with self.stop:
            pretrained, pretrain_snapshots = self.pretrain()
            base = self.measure_units(pretrained)
            adversary = self.warm_up(base)
            trained: dict[str, TrainState] = {}
            snapshots = {"pretrain": pretrain_snapshots}
            for method in METHODS:
                trained[method], snapshots[method] = self.finetune(method, base, adversary)
            adaptive = {m: self.attack_victim(m, trained[m]) for m in METHODS}
            no_gan = self.attack_victim("maml", trained["maml"], gan_weight=0.0)
            rows = self.meta_test(trained, adaptive, no_gan)
            curves = self.convergence_curves(snapshots, trained)
            self.save_trajectories(trained, adaptive)
            self.save_results(rows, curves)
        self.log.close()
        return write_report(self.directory)

    # Training stages

    def pretrain(self) -> tuple[TrainState, Params]:
        """Clean steps shared by all methods of a seed."""
        make = functools.partial(
            training.init, policy=self.policy, obs_size=self.env.obs_size
        )
        keys = jnp.stack([jax.random.key(seed) for seed in self.config.seeds])
        state = self._with_fresh_adversary(jax.jit(jax.vmap(make))(keys), jnp.zeros((), jnp.int32))
        return self.train(
            method="pretrain",
            stage="pretrain",
            state=state,
            num_steps=self.config.schedule.pretrain_steps,
            attack="none",
        )

    def measure_units(self, state: TrainState) -> TrainState:
        """Sets the units of all attacks, from clean rollouts where they are `normalised`."""
        if self.config.units == "paper":
            return state
        maml = self.config.train.maml

        def measure(params: Params) -> tuple[jax.Array, jax.Array]:
            batch = training.collect_meta_batch(
                params,
                (),
                self.eval_key,
                self.tasks,
                env=self.env,
                policy=self.policy,
                attack=self.attacks["none"],
                support_budget=Budget(0.0),
                query_budget=Budget(0.0),
                config=config.replace(maml, num_trajectories=STATISTICS_EPISODES),
            )
            return evaluation.observation_statistics(batch.support, batch.query)

        centre, scale = jax.jit(jax.vmap(measure))(state.policy_params)
        return state.replace(budget=Budget(state.budget.radius, centre, scale))

    def warm_up(self, base: TrainState) -> TrainState:
        """Trains adGAN on the frozen pre-trained policy, so that admrl starts with an opponent."""
        radius = self.config.train.adversary.perturbation_bound
        state, _ = self.train(
            method="admrl",
            stage="warmup",
            state=_with_radius(base, radius),
            num_steps=self.config.schedule.warmup_steps,
            attack="adgan",
            train_policy=False,
        )
        return state

    def finetune(
        self, method: str, base: TrainState, warmed_up: TrainState
    ) -> tuple[TrainState, Params]:
        """Continues from the pre-trained policy under the method's own attack."""
        train = self.config.train
        attack, radius = {
            "maml": ("none", 0.0),
            "random": ("gaussian", train.noise_std),
            "fgsm": ("fgsm", train.fgsm_radius),
            "admrl": ("adgan", train.adversary.perturbation_bound),
        }[method]
        state = base.replace(adversary=warmed_up.adversary) if method == "admrl" else base
        return self.train(
            method=method,
            stage="finetune",
            state=_with_radius(state, radius),
            num_steps=self.config.schedule.finetune_steps,
            attack=attack,
        )

    def attack_victim(
        self, method: str, victim: TrainState, *, gan_weight: float | None = None
    ) -> Params:
        """Trains fresh generators `[S, R]`, one per seed and strength, against a frozen victim."""
        evaluation_config, train = self.config.eval, self.config.train
        adversary = config.replace(train.adversary, num_epochs=evaluation_config.adaptive_epochs)
        maml = config.replace(
            train.maml,
            num_tasks=evaluation_config.adaptive_tasks,
            num_trajectories=evaluation_config.adaptive_trajectories,
        )
        strengths = jnp.asarray(evaluation_config.strengths)
        number = jnp.arange(strengths.size)
        state = jax.vmap(
            lambda s, i: self._with_fresh_adversary(victim, 1 + i), in_axes=(None, 0), out_axes=1
        )(victim, number)
        state = _with_radius(state, strengths)
        stage = "adaptive"
        if gan_weight is not None:
            stage = f"adaptive-gan{gan_weight:g}"
            assert state.adversary is not None
            weights = state.adversary.weights
            weights = weights._replace(gan=jnp.full_like(weights.gan, gan_weight))
            state = state.replace(adversary=state.adversary.replace(weights=weights))
        state, _ = self.train(
            method=method,
            stage=stage,
            state=state.replace(step=jnp.zeros_like(state.step)),
            num_steps=evaluation_config.adaptive_steps,
            attack="adgan",
            train_policy=False,
            train_config=config.replace(train, maml=maml, adversary=adversary),
        )
        assert state.adversary is not None
        return state.adversary.generator_params

    def train(
        self,
        *,
        method: str,
        stage: str,
        state: TrainState,
        num_steps: int,
        attack: str,
        train_policy: bool = True,
        train_config: TrainConfig | None = None,
    ) -> tuple[TrainState, Params]:
        """Runs one training stage in chunks, with checkpoints, metrics and progress.

        Args:
            method: method that is trained or attacked.
            stage: name in `metrics.csv`.
            state: leading axis the seeds, then the strengths where attackers are trained.
            num_steps: outer steps.
            attack: name of the attack; `adgan` is trained along.
            train_policy: False freezes the policy.
            train_config: other settings than the run's.

        Returns:
            `(state, snapshots)`: policies every `snapshot_every` steps, leading axis the snapshot.
        """
        schedule = self.config.schedule
        start = time.monotonic()
        first_step = int(np.ravel(state.step)[0])
        every = schedule.snapshot_every
        count = -(-num_steps // every)
        snapshots: Params = ()
        if train_policy:
            snapshots = jax.tree.map(
                lambda x: jnp.zeros((count, *x.shape), x.dtype), state.policy_params
            )
        name = f"{method}: {stage}"
        folder = self.directory / "checkpoints" / f"{stage}-{method}"
        with StageCheckpoints(folder) as checkpoints:
            done = checkpoints.latest_step or 0
            if done:
                state, snapshots = checkpoints.load(done, (state, snapshots))
            if done >= num_steps:
                return state, snapshots
            for label, _ in self._stage_labels(stage, state):
                self.log.rewind(method, label, first_step + done)
            progress = Progress(name, num_steps, done)
            try:
                while done < num_steps:
                    size = min(schedule.chunk_steps, num_steps - done)
                    chunk_start = time.monotonic()
                    state, metrics = self._run_chunk(
                        state, attack, train_policy, train_config or self.config.train, size
                    )
                    seconds = time.monotonic() - chunk_start
                    self._record(method, stage, first_step + done, state, metrics)
                    done += size
                    if train_policy and (done % every == 0 or done == num_steps):
                        index = -(-done // every) - 1
                        snapshots = jax.tree.map(
                            lambda buffer, x, i=index: jnp.asarray(buffer).at[i].set(x),
                            snapshots,
                            state.policy_params,
                        )
                    if (
                        done % schedule.checkpoint_every == 0
                        or done == num_steps
                        or self.stop.signal is not None
                    ):
                        checkpoints.save(done, jax.tree.map(jnp.asarray, (state, snapshots)))
                    shown = {k: metrics[v].mean() for k, v in SHOWN.items() if v in metrics}
                    rate = metrics["train/env_steps"].sum() / seconds
                    progress.update(done, {**shown, "env steps/s": f"{rate:,.0f}"})
                    self._check_stop()
            finally:
                progress.close()
        self.seconds[name] = time.monotonic() - start
        return jax.tree.map(jnp.asarray, (state, snapshots))

    # Evaluation stages

    def meta_test(
        self, trained: dict[str, TrainState], adaptive: dict[str, Params], no_gan: Params
    ) -> list[dict[str, Any]]:
        """Every method under every attack, strength, protocol and support x query cell."""
        rows = []
        strengths = self.config.eval.strengths
        # Every attack gets generators; those that have no parameters do not look at them.
        shared = [_generator(trained["admrl"])] * len(strengths)
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
        strengths = (0.0,) if attack == "none" else self.config.eval.strengths
        cells = [
            (i, strength, support, query)
            for i, strength in enumerate(strengths)
            for support, query in (CLEAN_CELL if attack == "none" else CELLS)
        ]
        name = ".".join(part for part in (method, attack, protocol) if part)
        path = self.directory / "returns" / f"{name}.npz"
        if not path.exists():
            progress = Progress(f"{name}: meta-test", len(cells))
            start = time.monotonic()
            results = []
            for i, strength, support, query in cells:
                results.append(
                    self._evaluate(
                        victim,
                        victim.policy_params,
                        attack,
                        params[i],
                        strength if support == "attacked" else 0.0,
                        strength if query == "attacked" else 0.0,
                    )
                )
                progress.update(len(results), {"post": results[-1].returns[:, :, -1].mean()})
                self._check_stop()
            progress.close()
            self.seconds[f"{name}: meta-test"] = time.monotonic() - start
            path.parent.mkdir(exist_ok=True)
            write_arrays(
                path,
                returns=np.stack([r.returns for r in results], axis=1),
                attack_size=np.stack([r.attack_size for r in results], axis=1),
            )
        with np.load(path) as saved:
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
            for s, seed in enumerate(self.config.seeds)
            for c, (_, strength, support, query) in enumerate(cells)
        ]

    def convergence_curves(
        self, snapshots: dict[str, Params], trained: dict[str, TrainState]
    ) -> list[dict[str, Any]]:
        """Returns of the saved policies, clean and under each attack, on the held-out tasks."""
        schedule = self.config.schedule
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
                    lambda key: training.init(
                        key, policy=self.policy, obs_size=self.env.obs_size
                    ).policy_params
                )(jnp.stack([jax.random.key(seed) for seed in self.config.seeds]))
                policies = jax.tree.map(lambda a, b: jnp.concatenate([a[None], b]), untrained, policies)
                steps = [0, *steps]
            for attack in ("none", "gaussian", "fgsm", "adgan"):
                curves += self._curve(method, state, policies, steps, attack, _generator(trained["admrl"]))
        return curves

    def _curve(
        self, method: str, state: TrainState, policies: Params, steps: list[int], attack: str, generator: Params
    ) -> list[dict[str, Any]]:
        strength = 0.0 if attack == "none" else self.config.eval.curve_strength
        path = self.directory / "returns" / f"curve.{method}.{attack}.npz"
        if not path.exists():
            progress = Progress(f"{method}: curve under {attack}", len(steps))
            results = []
            for i in range(len(steps)):
                params = jax.tree.map(lambda x, i=i: x[i], policies)
                result = self._evaluate(
                    state, params, attack, generator, strength, strength
                )
                results.append(result.returns)
                progress.update(i + 1, {"post": result.returns[:, :, -1].mean()})
                self._check_stop()
            progress.close()
            path.parent.mkdir(exist_ok=True)
            write_arrays(path, returns=np.stack(results, axis=1))
        with np.load(path) as saved:
            returns = saved["returns"]
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
            for s, seed in enumerate(self.config.seeds)
            for t, step in enumerate(steps)
        ]

    def save_trajectories(
        self, trained: dict[str, TrainState], adaptive: dict[str, Params]
    ) -> None:
        """2D navigation: paths to a few goals before and after adaptation, for a picture."""
        path = self.directory / "trajectories.npz"
        if path.exists() or not isinstance(self.env, envs.Navigation2D):
            return
        size = 0.8 * self.env.config.goal_range
        goals = size * jnp.array([[1.0, 1.0], [-1.0, 0.6], [-0.6, -1.0], [1.0, -0.5]])
        arrays: dict[str, Any] = {"goals": np.asarray(goals)}
        radius = self.config.eval.curve_strength
        index = int(np.argmin(np.abs(np.asarray(self.config.eval.strengths) - radius)))
        collect = jax.jit(
            lambda params, generator, budget: training.collect_meta_batch(
                params,
                generator,
                self.eval_key,
                goals,
                env=self.env,
                policy=self.policy,
                attack=self.adgan.attack,
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
            for cell, strength in (("clean", 0.0), ("attacked", self.config.eval.strengths[index])):
                batch = collect(params, generator, budget._replace(radius=jnp.asarray(strength)))
                for phase, data in (("pre", batch.support), ("post", batch.query)):
                    positions = np.asarray(data.trajectory.obs)
                    mask = np.asarray(data.trajectory.mask)
                    if phase == "pre":
                        positions, mask = positions[:, 0], mask[:, 0]
                    arrays[f"{method}/{cell}/{phase}"] = positions[:, :4]
                    arrays[f"{method}/{cell}/{phase}/mask"] = mask[:, :4]
        write_arrays(path, **arrays)

    def save_results(self, rows: list[dict[str, Any]], curves: list[dict[str, Any]]) -> None:
        """Writes `results.json` (the same bits for the same run) and `timing.json` (never the same)."""
        floor = evaluation.do_nothing_returns(
            self.eval_key,
            self.tasks,
            env=self.env,
            num_trajectories=self.config.eval.num_trajectories,
        )
        results = {
            "env": self.config.env.name,
            "preset": self.preset,
            "config": config.to_dict(self.config),
            "versions": {"python": platform.python_version()} | {p: version(p) for p in PACKAGES},
            "device": jax.devices()[0].device_kind,
            "simulator": getattr(getattr(self.env, "simulator", None), "name", "none"),
            "floor": float(np.asarray(floor).mean(dtype=np.float64)),
            "rows": rows,
            "curves": curves,
        }
        write_text(self.directory / "results.json", json.dumps(results, indent=1) + "\n")
        path = self.directory / "timing.json"
        before = json.loads(path.read_text()) if path.exists() else {"seconds": {}}
        timing = {
            "seconds": before["seconds"] | {k: round(v, 1) for k, v in self.seconds.items()},
            "peak_memory_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
        }
        write_text(path, json.dumps(timing, indent=1) + "\n")

    # Shared machinery

    @property
    def _eval_maml(self) -> config.MAMLConfig:
        return config.replace(
            self.config.train.maml,
            num_tasks=self.config.eval.num_tasks,
            num_trajectories=self.config.eval.num_trajectories,
            num_adapt_steps=self.config.eval.num_adapt_steps,
        )

    def _evaluate(
        self,
        state: TrainState,
        policy_params: Params,
        attack: str,
        attack_params: Params,
        support_radius: float,
        query_radius: float,
    ) -> evaluation.EvalResult:
        """One cell, all seeds; returns arrays on the host with leading axis `S`."""
        if "evaluate" not in self._programs:

            def one_seed(
                index, params, attack_params, key, tasks, budget, support_radius, query_radius
            ):
                return evaluation.evaluate(
                    params,
                    attack_params,
                    key,
                    tasks,
                    env=self.env,
                    policy=self.policy,
                    attack=attacks.select(list(self.attacks.values()), index),
                    support_budget=budget._replace(radius=support_radius),
                    query_budget=budget._replace(radius=query_radius),
                    config=self._eval_maml,
                )

            axes = (None, 0, 0, None, None, 0, None, None)
            self._programs["evaluate"] = jax.jit(jax.vmap(one_seed, in_axes=axes))
        result = jax.device_get(
            self._programs["evaluate"](
                self._number(attack),
                policy_params,
                attack_params,
                self.eval_key,
                self.tasks,
                state.budget,
                jnp.float32(support_radius),
                jnp.float32(query_radius),
            )
        )
        _check_budget(result.budget_excess, f"meta-test under {attack}")
        return result

    def _run_chunk(
        self, state: TrainState, attack: str, train_policy: bool, train_config: TrainConfig, size: int
    ) -> tuple[TrainState, Any]:
        """Some outer steps for all seeds; the same program for every method and attack.

        Attackers of frozen victims, whose state has an axis of strengths, have one of their own.
        """
        is_victim_frozen = np.ndim(state.step) > 1
        key = (train_config, size, is_victim_frozen)
        if key not in self._programs:

            def chunk(state, index, train_policy, train_adversary):
                step = functools.partial(
                    training.outer_step,
                    env=self.env,
                    policy=self.policy,
                    attack=self.adgan.attack
                    if is_victim_frozen
                    else attacks.select(list(self.attacks.values()), index),
                    config=train_config,
                    adgan=self.adgan,
                    train_policy=False if is_victim_frozen else train_policy,
                    train_adversary=True if is_victim_frozen else train_adversary,
                )
                return training.train_chunk(state, num_steps=size, step_fn=step)

            axes = (0, None, None, None)
            program = jax.vmap(chunk, in_axes=axes)
            if is_victim_frozen:
                program = jax.vmap(program, in_axes=axes)
            self._programs[key] = jax.jit(program)
        state, metrics = self._programs[key](
            state, self._number(attack), jnp.array(train_policy), jnp.array(attack == "adgan")
        )
        metrics = jax.device_get(metrics)
        # What a stage does not train has no metrics.
        return state, {k: v for k, v in metrics.items() if not np.isnan(v).all()}

    def _number(self, attack: str) -> jax.Array:
        return jnp.array(list(self.attacks).index(attack), jnp.int32)

    def _with_fresh_adversary(self, state: TrainState, number: jax.Array) -> TrainState:
        def fresh(key: jax.Array) -> adgan_lib.AdversaryState:
            return adgan_lib.init_adversary(
                jax.random.fold_in(key, number), self.adgan, self.config.train.adversary
            )

        # A base key no training step uses: steps fold in step numbers from 0 up.
        keys = jax.vmap(lambda key: jax.random.fold_in(key, 2**31 - 1))(state.key)
        return state.replace(adversary=jax.vmap(fresh)(keys))

    def _stage_labels(self, stage: str, state: TrainState) -> list[tuple[str, int | None]]:
        """Names of a stage's rows: one, or one per strength."""
        if np.ndim(state.step) == 1:
            return [(stage, None)]
        return [(f"{stage}-{strength:g}", i) for i, strength in enumerate(self.config.eval.strengths)]

    def _record(self, method: str, stage: str, step: int, state: TrainState, metrics: Any) -> None:
        _check_budget(metrics["attack/budget_excess"], f"{method}: {stage}")
        for label, index in self._stage_labels(stage, state):
            part = metrics if index is None else {k: v[:, index] for k, v in metrics.items()}
            self.log.append(method, label, step + 1, self.config.seeds, part)

    def _check_stop(self) -> None:
        if self.stop.signal is not None:
            raise Interrupted(self.stop.signal)


def _with_radius(state: TrainState, radius: float | jax.Array) -> TrainState:
    full = jnp.broadcast_to(jnp.asarray(radius, jnp.float32), state.step.shape)
    return state.replace(budget=state.budget._replace(radius=full))


def _generator(state: TrainState) -> Params:
    assert state.adversary is not None
    return state.adversary.generator_params


def _per_strength(params: Params, count: int) -> list[Params]:
    """Splits generators `[S, R, ...]` into `R` pytrees `[S, ...]`."""
    return [jax.tree.map(lambda x, i=i: x[:, i], params) for i in range(count)]


def _check_budget(excess: Any, where: str) -> None:
    if np.any(np.asarray(excess) > 0):
        raise RuntimeError(
            f"{where}: an attack broke its budget by {float(np.max(excess)):.3g}; this is a bug in the attack"
        )
