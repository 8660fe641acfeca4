"""The training stages: pre-training, warm-up, fine-tuning, adaptive attackers."""

import functools
import time
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from admrl_jax import adgan as adgan_lib
from admrl_jax import evaluation, hosts, training
from admrl_jax.attacks import Budget, no_attack
from admrl_jax.checkpoint import StageCheckpoints
from admrl_jax.config import TrainConfig
from admrl_jax.training import TrainState
from admrl_jax.types import Params
from experiments.context import Context, Diverged, Interrupted, check_budget

SHOWN = {"pre": "train/pre_return", "post": "train/post_return", "kl": "train/kl"}
STATISTICS_EPISODES = 4
"""Episodes per task from which the units of `normalised` attacks are measured."""


class TrainStages:
    """Each stage continues from its checkpoints and is not run again once it is done."""

    def __init__(self, context: Context):
        self.context = context
        self._programs: dict[Any, Any] = {}

    def pretrain(self) -> tuple[TrainState, Params]:
        """Clean steps shared by all methods of a seed."""
        make = functools.partial(
            training.init, policy=self.context.policy, obs_size=self.context.env.obs_size
        )
        keys = jnp.stack([jax.random.key(seed) for seed in self.context.config.seeds])
        state = self._with_fresh_adversary(jax.jit(jax.vmap(make))(keys), jnp.zeros((), jnp.int32))
        return self.train(
            method="pretrain",
            stage="pretrain",
            state=state,
            num_steps=self.context.config.schedule.pretrain_steps,
            attack="none",
        )

    def measure_units(self, state: TrainState) -> TrainState:
        """Sets the units of all attacks, from clean rollouts where they are `normalised`."""
        if self.context.config.units == "paper":
            return state
        maml = self.context.config.train.maml

        def measure(params: Params) -> tuple[jax.Array, jax.Array]:
            batch = training.collect_meta_batch(
                params,
                (),
                self.context.eval_key,
                self.context.tasks,
                env=self.context.env,
                policy=self.context.policy,
                attack=no_attack(),
                support_budget=Budget(0.0),
                query_budget=Budget(0.0),
                config=replace(maml, num_trajectories=STATISTICS_EPISODES),
            )
            return evaluation.observation_statistics(batch.support, batch.query)

        centre, scale = jax.jit(jax.vmap(measure))(state.policy_params)
        return state.replace(budget=Budget(state.budget.radius, centre, scale))

    def warm_up(self, base: TrainState) -> TrainState:
        """Trains adGAN on the frozen pre-trained policy, so that admrl starts with an opponent."""
        radius = self.context.config.train.adversary.perturbation_bound
        state, _ = self.train(
            method="admrl",
            stage="warmup",
            state=_with_radius(base, radius),
            num_steps=self.context.config.schedule.warmup_steps,
            attack="adgan",
            train_policy=False,
        )
        return state

    def finetune(self, method: str, base: TrainState, warmed_up: TrainState) -> tuple[TrainState, Params]:
        """Continues from the pre-trained policy under the method's own attack."""
        train = self.context.config.train
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
            num_steps=self.context.config.schedule.finetune_steps,
            attack=attack,
        )

    def attack_victim(self, method: str, victim: TrainState, *, gan_weight: float | None = None) -> Params:
        """Trains fresh generators, one per seed and strength, on a frozen victim; the strongest `[S, R]`."""
        evaluation_config, train = self.context.config.eval, self.context.config.train
        adversary = replace(train.adversary, num_epochs=evaluation_config.adaptive_epochs)
        maml = replace(
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
            # Tasks and episodes that no victim was trained on.
            state=state.replace(step=jnp.zeros_like(state.step), key=_other_key(state.key, 2)),
            num_steps=evaluation_config.adaptive_steps,
            attack="adgan",
            train_policy=False,
            train_config=replace(train, maml=maml, adversary=adversary),
        )
        assert state.adversary is not None
        return state.adversary.strongest_params

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
        schedule = self.context.config.schedule
        start = time.monotonic()
        first_step = int(np.ravel(state.step)[0])
        every = schedule.snapshot_every
        count = -(-num_steps // every)
        snapshots: Params = ()
        if train_policy:
            snapshots = jax.tree.map(lambda x: jnp.zeros((count, *x.shape), x.dtype), state.policy_params)
        name = f"{method}: {stage}"
        folder = self.context.directory / "checkpoints" / f"{stage}-{method}"
        streak = np.zeros(state.step.shape, int)
        with StageCheckpoints(folder, self.context.config) as checkpoints:
            done = hosts.from_first(checkpoints.latest_step or 0)
            state, snapshots = self.context.place((state, snapshots))
            if done:
                state, snapshots = checkpoints.load(done, (state, snapshots))
            if done >= num_steps:
                return self.context.local((state, snapshots))
            for label, _ in self._stage_labels(stage, state):
                self.context.log.rewind(method, label, first_step + done)
            progress = self.context.progress(name, num_steps, done)
            try:
                while done < num_steps:
                    size = min(schedule.chunk_steps, num_steps - done)
                    chunk_start = time.monotonic()
                    state, metrics = self._run_chunk(
                        state, attack, train_policy, train_config or self.context.config.train, size
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
                    stop_signal = self.context.stop_signal()
                    if done % schedule.checkpoint_every == 0 or done == num_steps or stop_signal:
                        checkpoints.save(done, jax.tree.map(jnp.asarray, (state, snapshots)))
                    shown = {k: float(metrics[v].mean()) for k, v in SHOWN.items() if v in metrics}
                    rate = metrics["train/env_steps"].sum() / seconds
                    progress.update(done, {**shown, "env steps/s": f"{rate:,.0f}"})
                    where = f"{name}: step {first_step + done}"
                    streak = self._count_bad(streak, metrics, where, checkpoints)
                    if stop_signal:
                        raise Interrupted(stop_signal)
            finally:
                progress.close()
        self.context.seconds[name] = time.monotonic() - start
        return self.context.local(jax.tree.map(jnp.asarray, (state, snapshots)))

    def _count_bad(
        self, streak: np.ndarray, metrics: Any, where: str, checkpoints: StageCheckpoints
    ) -> np.ndarray:
        """Adds a chunk to the number of bad steps in a row, `[S]` or `[S, R]`.

        Raises:
            Diverged: there were too many.
        """
        limit = self.context.config.schedule.max_bad_steps
        for bad in np.moveaxis(np.asarray(training.bad_steps(metrics)), -1, 0):
            streak = np.where(bad, streak + 1, 0)
            if np.any(streak >= limit):
                seed = self.context.config.seeds[int(np.argwhere(streak >= limit)[0][0])]
                last = checkpoints.latest_step
                raise Diverged(
                    f"{where}, seed {seed}: numbers were not finite for {limit} outer steps in a row "
                    "(schedule.max_bad_steps); train/diverged, train/skipped and adversary/skipped in "
                    "metrics.csv say where. No such update is ever taken; last good checkpoint: "
                    + ("none in this stage" if last is None else str(checkpoints.directory / str(last)))
                )
        return streak

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
                    env=self.context.env,
                    policy=self.context.policy,
                    attack=self.context.adgan.attack if is_victim_frozen else self.context.attack(index),
                    config=train_config,
                    adgan=self.context.adgan,
                    train_policy=False if is_victim_frozen else train_policy,
                    train_adversary=True if is_victim_frozen else train_adversary,
                    axis_name=self.context.axis_name,
                )
                return training.train_chunk(state, num_steps=size, step_fn=step)

            axes = (0, None, None, None)
            program = jax.vmap(chunk, in_axes=axes)
            if is_victim_frozen:
                program = jax.vmap(program, in_axes=axes)
            self._programs[key] = jax.jit(self.context.spread(program))
        inputs = (state, self.context.number(attack), jnp.array(train_policy), jnp.array(attack == "adgan"))
        state, metrics = self._programs[key](*self.context.place(inputs))
        metrics = jax.device_get(metrics)
        # What a stage does not train has no metrics.
        return state, {k: v for k, v in metrics.items() if not np.isnan(v).all()}

    def _with_fresh_adversary(self, state: TrainState, number: jax.Array) -> TrainState:
        def fresh(key: jax.Array) -> adgan_lib.AdversaryState:
            return adgan_lib.init_adversary(
                jax.random.fold_in(key, number), self.context.adgan, self.context.config.train.adversary
            )

        return state.replace(adversary=jax.vmap(fresh)(_other_key(state.key, 1)))

    def _stage_labels(self, stage: str, state: TrainState) -> list[tuple[str, int | None]]:
        """Names of a stage's rows: one, or one per strength."""
        if np.ndim(state.step) == 1:
            return [(stage, None)]
        return [(f"{stage}-{strength:g}", i) for i, strength in enumerate(self.context.config.eval.strengths)]

    def _record(self, method: str, stage: str, step: int, state: TrainState, metrics: Any) -> None:
        check_budget(metrics["attack/budget_excess"], f"{method}: {stage}")
        for label, index in self._stage_labels(stage, state):
            part = metrics if index is None else {k: v[:, index] for k, v in metrics.items()}
            self.context.log.append(method, label, step + 1, self.context.config.seeds, part)


def _other_key(key: jax.Array, number: int) -> jax.Array:
    """Keys beside those of the training steps, which fold in step numbers from 0 up."""
    fold = jax.random.fold_in
    for _ in range(key.ndim):
        fold = jax.vmap(fold, in_axes=(0, None))
    return fold(key, 2**31 - number)


def _with_radius(state: TrainState, radius: float | jax.Array) -> TrainState:
    full = jnp.broadcast_to(jnp.asarray(radius, jnp.float32), state.step.shape)
    return state.replace(budget=state.budget._replace(radius=full))
