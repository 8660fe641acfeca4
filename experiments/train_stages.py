"""The training stages: pre-training, warm-up, fine-tuning, adaptive attackers."""

import contextlib
import functools
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from admrl_jax import adgan as adgan_lib
from admrl_jax import evaluation, hosts, training
from admrl_jax.attacks import Budget, no_attack
from admrl_jax.checkpoint import StageCheckpoints
from admrl_jax.config import METHODS
from admrl_jax.training import TrainState
from admrl_jax.types import Params
from experiments.arms import Arm, Programs, Recipe
from experiments.context import Context, Diverged, Interrupted, check_budget

SHOWN = {"pre": "train/pre_return", "post": "train/post_return", "kl": "train/kl"}
STATISTICS_EPISODES = 4
"""Episodes per task from which the units of `normalised` attacks are measured."""


class TrainStages:
    """Each stage continues from its checkpoints and is not run again once it is done."""

    def __init__(self, context: Context):
        self.context = context
        self._schedule = context.config.schedule
        self.programs = Programs(context)

    def pretrain(self) -> tuple[TrainState, Params]:
        """Clean steps shared by all methods of a seed."""
        return self.train([self.first_arm()], self.recipe(self._schedule.pretrain_steps))[0]

    def first_arm(self) -> Arm:
        """Fresh policies, ready for pre-training."""
        make = functools.partial(
            training.init, policy=self.context.policy, obs_size=self.context.env.obs_size
        )
        keys = jnp.stack([jax.random.key(seed) for seed in self.context.config.seeds])
        state = self._with_fresh_adversary(jax.jit(jax.vmap(make))(keys), jnp.zeros((), jnp.int32))
        return Arm("pretrain", "pretrain", "none", state)

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
        recipe = self.recipe(self._schedule.warmup_steps, train_policy=False)
        return self.train([self.warmup_arm(base)], recipe)[0][0]

    def warmup_arm(self, base: TrainState) -> Arm:
        """The pre-trained policy under adGAN, ready for its warm-up."""
        radius = self.context.config.train.adversary.perturbation_bound
        return Arm("admrl", "warmup", "adgan", _with_radius(base, radius))

    def finetune(self, base: TrainState, warmed_up: TrainState) -> dict[str, tuple[TrainState, Params]]:
        """Continues from the pre-trained policy with every method, each under its own attack."""
        results = self.train(self.methods(base, warmed_up), self.recipe(self._schedule.finetune_steps))
        return dict(zip(METHODS, results, strict=True))

    def methods(self, base: TrainState, warmed_up: TrainState) -> list[Arm]:
        """The four methods, ready for fine-tuning."""
        train = self.context.config.train
        attacks = {
            "maml": ("none", 0.0),
            "random": ("gaussian", train.noise_std),
            "fgsm": ("fgsm", train.fgsm_radius),
            "admrl": ("adgan", train.adversary.perturbation_bound),
        }
        arms = []
        for method in METHODS:
            attack, radius = attacks[method]
            state = base.replace(adversary=warmed_up.adversary) if method == "admrl" else base
            arms.append(Arm(method, "finetune", attack, _with_radius(state, radius)))
        return arms

    def attack_victims(self, trained: dict[str, TrainState]) -> tuple[dict[str, Params], Params]:
        """Trains fresh generators, one per seed and strength, on every frozen victim.

        Returns:
            The strongest generators `[S, R]` of each method, and those trained against maml without the GAN
            term.
        """
        strongest = []
        for state, _ in self.train(self.attackers(trained), self.attack_recipe()):
            assert state.adversary is not None
            strongest.append(state.adversary.strongest_params)
        return dict(zip(trained, strongest[:-1], strict=True)), strongest[-1]

    def attackers(self, trained: dict[str, TrainState]) -> list[Arm]:
        """Fresh attackers of every method's policy, and of maml's without the GAN term."""
        arms = [self._attackers(method, victim, "adaptive") for method, victim in trained.items()]
        no_gan = self._attackers("maml", trained["maml"], "adaptive-gan0")
        assert no_gan.state.adversary is not None
        weights = no_gan.state.adversary.weights
        weights = weights._replace(gan=jnp.zeros_like(weights.gan))
        adversary = no_gan.state.adversary.replace(weights=weights)
        return [*arms, no_gan._replace(state=no_gan.state.replace(adversary=adversary))]

    def attack_recipe(self) -> Recipe:
        """How attackers of frozen victims are trained."""
        evaluation_config, train = self.context.config.eval, self.context.config.train
        maml = replace(
            train.maml,
            num_tasks=evaluation_config.adaptive_tasks,
            num_trajectories=evaluation_config.adaptive_trajectories,
        )
        adversary = replace(train.adversary, num_epochs=evaluation_config.adaptive_epochs)
        config = replace(train, maml=maml, adversary=adversary)
        return Recipe(evaluation_config.adaptive_steps, config, train_policy=False)

    def _attackers(self, method: str, victim: TrainState, stage: str) -> Arm:
        strengths = jnp.asarray(self.context.config.eval.strengths)
        number = jnp.arange(strengths.size)
        state = jax.vmap(
            lambda s, i: self._with_fresh_adversary(victim, 1 + i), in_axes=(None, 0), out_axes=1
        )(victim, number)
        # Tasks and episodes that no victim was trained on.
        state = state.replace(step=jnp.zeros_like(state.step), key=_other_key(state.key, 2))
        return Arm(method, stage, "adgan", _with_radius(state, strengths))

    def recipe(self, num_steps: int, *, train_policy: bool = True) -> Recipe:
        """The run's own settings."""
        return Recipe(num_steps, self.context.config.train, train_policy)

    def train(self, arms: Sequence[Arm], recipe: Recipe) -> list[tuple[TrainState, Params]]:
        """Trains arms to their end, as many together as `lanes` allows.

        Returns:
            `(state, snapshots)` of each: snapshots are policies every `snapshot_every` steps, leading axis
            the snapshot.
        """
        size = self.arms_at_once(arms, recipe)
        results = []
        for i in range(0, len(arms), size):
            results += self._train_together(arms[i : i + size], recipe)
        return results

    def arms_at_once(self, arms: Sequence[Arm], recipe: Recipe) -> int:
        """How many arms to train in one program."""
        per_arm, lanes = arms[0].lanes, self.context.config.lanes
        if lanes:
            return max(1, lanes // per_arm)
        # On a CPU one method fills all cores, and under an attack known beforehand no other is computed.
        is_done = [self.context.is_done(self._folder(arm) / str(recipe.num_steps)) for arm in arms]
        if jax.default_backend() == "cpu" or all(is_done):
            return 1
        return max(1, self.programs.lanes_at_once(arms, recipe, self._chunk_size(recipe, 0)) // per_arm)

    def _train_together(self, arms: Sequence[Arm], recipe: Recipe) -> list[tuple[TrainState, Params]]:
        """Runs arms side by side in chunks, with checkpoints, metrics and progress."""
        with contextlib.ExitStack() as stack:
            checkpoints = [
                stack.enter_context(StageCheckpoints(self._folder(arm), self.context.config)) for arm in arms
            ]
            common = set.intersection(*(kept.starts for kept in checkpoints))
            done = hosts.from_first(max(common, default=-1))
            if done >= 0:
                return self._continue(arms, recipe, checkpoints, done)
        # They were not trained side by side so far.
        return [result for arm in arms for result in self._train_together([arm], recipe)]

    def _continue(
        self, arms: Sequence[Arm], recipe: Recipe, checkpoints: Sequence[StageCheckpoints], done: int
    ) -> list[tuple[TrainState, Params]]:
        start = time.monotonic()
        # Arms of a stage start at the same step.
        first_step = int(np.ravel(arms[0].state.step)[0])
        pairs = []
        for arm, kept in zip(arms, checkpoints, strict=True):
            pair = self.context.place((arm.state, self._empty_snapshots(arm, recipe)))
            pairs.append(kept.load(done, pair) if done else pair)
        if done >= recipe.num_steps:
            return self.context.local(pairs)
        for arm in arms:
            for label, _ in self._stage_labels(arm):
                self.context.log.rewind(arm.method, label, first_step + done)
        name = arms[0].name if len(arms) == 1 else f"{len(arms)} arms: {arms[0].stage}"
        progress = self.context.progress(name, recipe.num_steps, done)
        streaks = [np.zeros(arm.state.step.shape, int) for arm in arms]
        try:
            while done < recipe.num_steps:
                size = self._chunk_size(recipe, done)
                chunk_start = time.monotonic()
                arms = [arm._replace(state=state) for arm, (state, _) in zip(arms, pairs, strict=True)]
                states, metrics = self.programs.run(arms, recipe, size)
                seconds = time.monotonic() - chunk_start
                for arm, part in zip(arms, metrics, strict=True):
                    self._record(arm, first_step + done, part)
                done += size
                pairs = [
                    (state, self._with_snapshot(snapshots, state, recipe, done))
                    for state, (_, snapshots) in zip(states, pairs, strict=True)
                ]
                stop_signal = self.context.stop_signal()
                if done % self._schedule.checkpoint_every == 0 or done == recipe.num_steps or stop_signal:
                    for kept, pair in zip(checkpoints, pairs, strict=True):
                        kept.save(done, jax.tree.map(jnp.asarray, pair))
                rate = sum(part["train/env_steps"].sum() for part in metrics) / seconds
                progress.update(done, {**_shown(arms, metrics), "env steps/s": f"{rate:,.0f}"})
                for i, (arm, part) in enumerate(zip(arms, metrics, strict=True)):
                    where = f"{arm.name}: step {first_step + done}"
                    streaks[i] = self._count_bad(streaks[i], part, where, checkpoints[i])
                if stop_signal:
                    raise Interrupted(stop_signal)
        finally:
            progress.close()
        self.context.seconds[name] = time.monotonic() - start
        return self.context.local(jax.tree.map(jnp.asarray, pairs))

    def _folder(self, arm: Arm) -> Path:
        return self.context.directory / "checkpoints" / f"{arm.stage}-{arm.method}"

    def _chunk_size(self, recipe: Recipe, done: int) -> int:
        return min(self._schedule.chunk_steps, recipe.num_steps - done)

    def _empty_snapshots(self, arm: Arm, recipe: Recipe) -> Params:
        if not recipe.train_policy:
            return ()
        count = -(-recipe.num_steps // self._schedule.snapshot_every)
        return jax.tree.map(lambda x: jnp.zeros((count, *x.shape), x.dtype), arm.state.policy_params)

    def _with_snapshot(self, snapshots: Params, state: TrainState, recipe: Recipe, done: int) -> Params:
        """Adds the policy as it is after `done` steps, where one is due."""
        every = self._schedule.snapshot_every
        if not recipe.train_policy or (done % every and done != recipe.num_steps):
            return snapshots
        index = -(-done // every) - 1
        return jax.tree.map(
            lambda buffer, x: jnp.asarray(buffer).at[index].set(x), snapshots, state.policy_params
        )

    def _count_bad(
        self, streak: np.ndarray, metrics: Any, where: str, checkpoints: StageCheckpoints
    ) -> np.ndarray:
        """Adds a chunk to the number of bad steps in a row, `[S]` or `[S, R]`.

        Raises:
            Diverged: there were too many.
        """
        limit = self._schedule.max_bad_steps
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

    def _with_fresh_adversary(self, state: TrainState, number: jax.Array) -> TrainState:
        def fresh(key: jax.Array, number: jax.Array) -> adgan_lib.AdversaryState:
            return adgan_lib.init_adversary(
                jax.random.fold_in(key, number), self.context.adgan, self.context.config.train.adversary
            )

        # One program, kept between starts, instead of dozens of small ones.
        start = jax.jit(jax.vmap(fresh, in_axes=(0, None)))
        return state.replace(adversary=start(_other_key(state.key, 1), number))

    def _stage_labels(self, arm: Arm) -> list[tuple[str, int | None]]:
        """Names of a stage's rows: one, or one per strength."""
        if np.ndim(arm.state.step) == 1:
            return [(arm.stage, None)]
        strengths = self.context.config.eval.strengths
        return [(f"{arm.stage}-{strength:g}", i) for i, strength in enumerate(strengths)]

    def _record(self, arm: Arm, step: int, metrics: dict[str, np.ndarray]) -> None:
        check_budget(metrics["attack/budget_excess"], arm.name)
        for label, index in self._stage_labels(arm):
            part = metrics if index is None else {k: v[:, index] for k, v in metrics.items()}
            self.context.log.append(arm.method, label, step + 1, self.context.config.seeds, part)


def _shown(arms: Sequence[Arm], metrics: Sequence[dict[str, np.ndarray]]) -> dict[str, Any]:
    """What the progress line says of a chunk: more of one arm, the return of each of several."""
    if len(arms) > 1:
        return {
            arm.method: float(part["train/post_return"].mean())
            for arm, part in zip(arms, metrics, strict=True)
        }
    return {k: float(metrics[0][v].mean()) for k, v in SHOWN.items() if v in metrics[0]}


def _other_key(key: jax.Array, number: int) -> jax.Array:
    """Keys beside those of the training steps, which fold in step numbers from 0 up."""
    fold = jax.random.fold_in
    for _ in range(key.ndim):
        fold = jax.vmap(fold, in_axes=(0, None))
    return fold(key, 2**31 - number)


def _with_radius(state: TrainState, radius: float | jax.Array) -> TrainState:
    full = jnp.broadcast_to(jnp.asarray(radius, jnp.float32), state.step.shape)
    return state.replace(budget=state.budget._replace(radius=full))
