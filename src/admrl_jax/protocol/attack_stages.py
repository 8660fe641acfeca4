"""The stage that trains attackers: a fresh one for every frozen policy, attack and strength."""

import jax
import jax.numpy as jnp
import numpy as np

from admrl_jax import attacking
from admrl_jax.attacking import AttackerState
from admrl_jax.attacks.learned.trainer import AttackTrainer
from admrl_jax.attacks.registry import ATTACKS
from admrl_jax.attacks.threat import Budget, Units
from admrl_jax.core.task_axis import TaskAxis
from admrl_jax.core.types import MetaBatch, Metrics, Params
from admrl_jax.protocol.lanes import BATCH, STATE, LanePrograms, Piece
from admrl_jax.protocol.session import Session
from admrl_jax.protocol.stage import Stage, Step, run_stage
from admrl_jax.protocol.train_stages import Arm
from admrl_jax.runs.artefact import read_kept_attackers
from admrl_jax.runs.programs import Program
from admrl_jax.training import Setup, opponent_key

RUN_KEY = 2**31 - 2
"""Folded into a run's key for an attacker's tasks and episodes; no victim was trained on them."""

Attackers = dict[str, list[Params]]
"""By attack: strongest parameters `[S, ...]` for every strength."""


def learned_attacks(session: Session, method: str) -> list[str]:
    """The attacks of a method's meta-test that learn."""
    names = session.config.eval.attacks_on(method)
    return [name for name in names if ATTACKS[name].make_trainer is not None]


def attack_method(session: Session, method: str, arm: Arm, inputs: Units) -> Attackers:
    """Trains fresh attackers, one per seed and strength, on a frozen method.

    Returns:
        The strongest of each, by attack and strength.
    """
    return {name: _train(session, method, name, arm, inputs) for name in learned_attacks(session, method)}


def strength_label(strength: float) -> str:
    """A strength in names of stages and of saved attackers."""
    return f"{strength:g}"


def _train(session: Session, method: str, attack: str, arm: Arm, inputs: Units) -> list[Params]:
    trainer = session.parts.attack_trainer(attack, method)
    setup = session.parts.setup(method, session.parts.attack_sampling)
    labels, num_seeds = [strength_label(s) for s in session.config.eval.strengths], len(session.config.seeds)
    state = first_attackers(session, method, attack, arm, inputs)
    one = jax.tree.map(lambda x: x[0], state.strongest)
    found = read_kept_attackers(session.directory, method, attack, one)
    new = [r for r, label in enumerate(labels) if label not in found]
    if new:
        lanes = np.array([s * len(labels) + r for s in range(num_seeds) for r in new])
        victims = jnp.repeat(jnp.arange(num_seeds), len(new))
        stage = Stage(
            method=method,
            name=f"attack-{attack}",
            num_steps=session.config.eval.attacker.steps,
            first_step=0,
            state=jax.tree.map(lambda x: x[lanes], state),
            fixed=jax.tree.map(lambda x: x[victims], arm.state.learner.meta_params),
            step=attack_step(setup, trainer, session.devices.axis),
            lane_rows={
                f"attack-{attack}-{labels[r]}": [s * len(new) + i for s in range(num_seeds)]
                for i, r in enumerate(new)
            },
        )
        strongest = run_stage(session, stage)[0].strongest
        for i, r in enumerate(new):
            found[labels[r]] = jax.tree.map(lambda x, i=i: x[i :: len(new)], strongest)
    return [found[label] for label in labels]


def first_attackers(session: Session, method: str, attack: str, arm: Arm, inputs: Units) -> AttackerState:
    """Fresh attackers of every seed's policy and every strength, leading axis `[S R]`, seeds first."""
    trainer = session.parts.attack_trainer(attack, method)

    def fresh(
        key: jax.Array, units: Units, inputs: Units, radius: jax.Array, number: jax.Array
    ) -> AttackerState:
        return attacking.init_attacker(
            jax.random.fold_in(key, RUN_KEY),
            trainer.init(opponent_key(key, number), inputs),
            trainer=trainer,
            budget=Budget(radius, units),
        )

    per_strength = jax.vmap(fresh, in_axes=(None, None, None, 0, 0))
    per_seed = jax.vmap(per_strength, in_axes=(0, 0, 0, None, None))
    radii = jnp.asarray(session.config.eval.strengths, float)
    # Number 0 is the opponent that a method is trained with.
    numbers = 1 + jnp.arange(radii.size)
    arguments = session.devices.place((arm.state.key, arm.state.units, inputs, radii, numbers))
    states = session.programs.run(Program(f"first attackers {attack}", per_seed), *arguments)
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), session.devices.local(states))


def attack_step(setup: Setup, trainer: AttackTrainer, axis: TaskAxis) -> Step:
    """An update of an attacker in two programs: collect, and learn."""

    def collect(state: AttackerState, meta_params: Params) -> tuple[MetaBatch, Metrics]:
        return attacking.attack_collect_step(state, meta_params, setup=setup, trainer=trainer, axis=axis)

    def learn(state: AttackerState, meta_params: Params, batch: MetaBatch) -> tuple[AttackerState, Metrics]:
        return attacking.attack_update_step(state, meta_params, batch, trainer=trainer, axis=axis)

    name = f"attack {trainer.name} {setup.learner.name} {setup.sampling}"
    collecting = Piece(name, collect, (STATE, STATE), (BATCH, STATE))
    learning = Piece(f"attack update {trainer.name}", learn, (STATE, STATE, BATCH), (STATE, STATE))

    def step(lanes: LanePrograms, state: AttackerState, victim: Params) -> tuple[AttackerState, Metrics]:
        batch, measured = lanes.call(collecting, state, victim)
        state, learned = lanes.call(learning, state, victim, batch)
        return state, {**measured, **learned}

    return step
