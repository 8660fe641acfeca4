"""The training stages: shared clean pre-training, units of observations, warm-up, fine-tuning."""

import functools
import sys
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from admrl_jax import evaluation, training
from admrl_jax.attacks.threat import Units
from admrl_jax.config import Config
from admrl_jax.core.settings import ConfigError, flatten
from admrl_jax.core.task_axis import TaskAxis
from admrl_jax.core.types import MetaBatch, Metrics, Params
from admrl_jax.defences.base import Defence
from admrl_jax.defences.fixed import no_defence
from admrl_jax.envs.base import attackable_only
from admrl_jax.methods import METHODS
from admrl_jax.protocol.lanes import BATCH, STATE, LanePrograms, Piece, merge, split
from admrl_jax.protocol.session import Session
from admrl_jax.protocol.stage import Stage, Step, run_stage
from admrl_jax.runs.artefact import load_policy
from admrl_jax.training import Setup, TrainState

STATISTICS_KEY = 2**31 - 3
"""Folded into a run's key for the tasks that observations are measured on; steps fold in smaller numbers."""


class Pretrained(NamedTuple):
    """The clean policies that the methods of a learner share, leading axis the seeds.

    Attributes:
        state: after pre-training.
        snapshots: meta-parameters on the way, leading axis the snapshot; only the last where they were
            trained elsewhere.
        inputs: units of clean observations `[S, O]`.
    """

    state: TrainState
    snapshots: Params
    inputs: Units


class Arm(NamedTuple):
    """A fine-tuned method, leading axis the seeds.

    Attributes:
        state: at the end.
        snapshots: meta-parameters on the way, leading axis the snapshot.
        opponents: parameters of the attack that was trained along, from the first step on and at each
            snapshot, leading axis one more; `()` where none is.
    """

    state: TrainState
    snapshots: Params
    opponents: Params = ()


def pretrain(session: Session, method: str) -> Pretrained:
    """Clean steps shared by all methods of a seed that have the learner of `method`."""
    if session.config.pretrained:
        return _from_artefact(session, method)
    setup = session.parts.pretraining_setup(method)
    schedule = session.config.schedule
    stage = Stage(
        method=_pretrain_name(session, method),
        name="pretrain",
        num_steps=schedule.pretrain_steps,
        first_step=0,
        state=untrained(session, method),
        fixed=(),
        step=train_step(setup, no_defence(), session.devices.axis),
        lane_rows={"pretrain": list(range(len(session.config.seeds)))},
        snapshot=lambda state: state.learner.meta_params,
    )
    state, snapshots = run_stage(session, stage)
    inputs = measure_observations(session, setup, state)
    if session.config.units != "paper":
        state = state.replace(units=attackable_only(session.parts.env, inputs))
    return Pretrained(state, snapshots, inputs)


def _from_artefact(session: Session, method: str) -> Pretrained:
    """The pre-trained policies of another run, at the step at which they were saved.

    Raises:
        ArtefactError: there are none of these seeds, or they are damaged.
        ConfigError: they were trained with other settings.
    """
    config, source = session.config, session.config.pretrained
    trained = [load_policy(source, "pretrain", seed=seed) for seed in config.seeds]
    check_same_pretraining(trained[0].config, config, method)
    state = untrained(session, method)
    if jax.tree.leaves(state.learner.opt_state) and session.journal.writes:
        name = METHODS[method].learner
        print(f"pretrained: the optimiser of {name} starts anew; policies come without it", file=sys.stderr)
    params, inputs = jax.tree.map(lambda *x: jnp.stack(x), *((one.params, one.inputs) for one in trained))
    steps = jnp.full_like(state.step, config.schedule.pretrain_steps)
    state = state.replace(step=steps, learner=state.learner.replace(meta_params=params))
    if config.units != "paper":
        state = state.replace(units=attackable_only(session.parts.env, inputs))
    return Pretrained(state, jax.tree.map(lambda x: x[None], params), inputs)


def check_same_pretraining(saved: Config, wanted: Config, method: str) -> None:
    """Refuses to go on from policies of another kind; how they adapt may change.

    Args:
        saved: settings of their run.
        wanted: settings of this one.
        method: whose learner goes on.

    Raises:
        ConfigError: naming the settings that differ.
    """
    first, learner = METHODS[saved.methods[0]].learner, METHODS[method].learner
    if first != learner:
        raise ConfigError(f"pretrained: it was trained with {first}; accepted for {method}: {learner}")
    decides = ("env.", "policy.", "schedule.pretrain_steps")
    old, new = flatten(saved), flatten(wanted)
    if type(saved.env) is not type(wanted.env):
        raise ConfigError(f"pretrained: a policy of {saved.env.name} is not accepted for {wanted.env.name}")
    differ = [
        f"{name}: {old[name]} -> {new[name]}"
        for name in old
        if name.startswith(decides) and old[name] != new[name]
    ]
    if differ:
        raise ConfigError(f"pretrained: trained with other settings: {'; '.join(differ)}")


def untrained(session: Session, method: str) -> TrainState:
    """Fresh policies of every seed."""
    init = functools.partial(training.init_train_state, setup=session.parts.setup(method))
    return jax.jit(jax.vmap(init))(session.seed_keys)


def _pretrain_name(session: Session, method: str) -> str:
    """`pretrain` for the learner of the first method, with the learner's name for others."""
    learner = METHODS[method].learner
    is_first = learner == METHODS[session.config.methods[0]].learner
    return "pretrain" if is_first else f"pretrain-{learner}"


def collect_piece(setup: Setup, defence: Defence, axis: TaskAxis) -> Piece:
    """Collects a step's meta-batch: `(state) -> (batch, metrics, number of the next step)`."""

    def collect(state: TrainState) -> tuple[MetaBatch, Metrics, jax.Array]:
        batch, metrics = training.collect_step(state, setup=setup, defence=defence, axis=axis)
        return batch, metrics, state.step + 1

    name = f"collect {setup.learner.name} {setup.sampling} {defence.name}"
    return Piece(name, collect, (STATE,), (BATCH, STATE, STATE))


def train_step(setup: Setup, defence: Defence, axis: TaskAxis, *, freeze_policy: bool = False) -> Step:
    """An outer step in pieces, so that methods share the programs of what they have in common.

    Args:
        setup: environment, policy, learner and size of a meta-batch.
        defence: what training faces.
        axis: how tasks are computed.
        freeze_policy: let the opponents learn alone.
    """
    collect = collect_piece(setup, defence, axis)
    learn = Piece(
        f"learn {setup.learner.name} {defence.loss_term.name if defence.loss_term else ''}",
        functools.partial(training.learn_step, learner=setup.learner, loss_term=defence.loss_term, axis=axis),
        (STATE, STATE, STATE, BATCH),
        (STATE, STATE),
    )
    face = Piece(
        f"opponent {defence.name}",
        functools.partial(training.opponent_step, defence=defence, axis=axis),
        (STATE, STATE, STATE, STATE, STATE, BATCH),
        (STATE, STATE),
    )

    def step(lanes: LanePrograms, state: TrainState, fixed: Any) -> tuple[TrainState, Metrics]:
        batch, metrics, next_step = lanes.call(collect, state)
        new_state = state.replace(step=next_step)
        if not freeze_policy:
            learner, learned = lanes.call(learn, state.learner, state.key, state.step, batch)
            new_state, metrics = new_state.replace(learner=learner), {**metrics, **learned}
        if defence.update is not None:
            meta_params = state.learner.meta_params
            opponent, faced = lanes.call(
                face, state.opponent, state.key, state.step, state.units, meta_params, batch
            )
            new_state, metrics = new_state.replace(opponent=opponent), {**metrics, **faced}
        return new_state, metrics

    return step


def measure_observations(session: Session, setup: Setup, state: TrainState) -> Units:
    """Mean and standard deviation of clean observations `[S, O]`, on tasks of their own.

    They are drawn like training tasks, never from the held-out ones, and by the program that pre-training
    collects with.
    """
    axis = session.devices.axis
    collect = collect_piece(setup, no_defence(), axis)
    measure = functools.partial(evaluation.observation_units, axis=axis)
    lanes = LanePrograms(session.programs, 1)
    key = jax.vmap(jax.random.fold_in, in_axes=(0, None))(state.key, STATISTICS_KEY)
    units = []
    for lane in split(session.devices.place(state.replace(key=key)), 1):
        batch, _, _ = lanes.call(collect, lane)
        units.append(lanes.call(Piece("observation units", measure, (BATCH,), STATE), batch))
    return session.devices.local(merge(units))


def finetune(session: Session, base: Pretrained, method: str) -> Arm:
    """Goes on from the pre-trained policy under a method's defence, its opponents warmed up first."""
    defence, setup = session.parts.defence(method), session.parts.setup(method)
    rows = list(range(len(session.config.seeds)))
    start = int(base.state.step[0])
    make = jax.jit(jax.vmap(lambda key, inputs: defence.init(training.opponent_key(key), inputs)))
    state = base.state.replace(start=base.state.step, opponent=make(base.state.key, base.inputs))

    def attack_params(state: TrainState) -> Params:
        return jax.vmap(defence.attack_params)(state.opponent) if defence.attack_params else ()

    stage = Stage(
        method=method,
        name="finetune",
        num_steps=session.config.schedule.finetune_steps,
        first_step=start,
        state=state,
        fixed=(),
        step=train_step(setup, defence, session.devices.axis),
        lane_rows={"finetune": rows},
        snapshot=lambda state: (state.learner.meta_params, attack_params(state)),
    )
    if defence.update is not None and defence.warmup_steps:
        warmup = stage._replace(
            name="warmup",
            num_steps=defence.warmup_steps,
            step=train_step(setup, defence, session.devices.axis, freeze_policy=True),
            lane_rows={"warmup": rows},
            snapshot=None,
        )
        opponent = run_stage(session, warmup)[0].opponent
        stage = stage._replace(state=state.replace(opponent=opponent))
    first = attack_params(stage.state)
    state, (snapshots, opponents) = run_stage(session, stage)
    return Arm(state, snapshots, jax.tree.map(lambda a, b: jnp.concatenate([a[None], b]), first, opponents))


def snapshot_steps(session: Session, first: int, num_steps: int) -> list[int]:
    """Outer steps after which the snapshots of a stage were taken."""
    every = session.config.schedule.snapshot_every
    return [min(first + (i + 1) * every, first + num_steps) for i in range(-(-num_steps // every))]


def with_untrained(session: Session, method: str, snapshots: Params) -> Params:
    """Snapshots of pre-training with the untrained policies before them."""
    first = untrained(session, method).learner.meta_params
    return jax.tree.map(lambda a, b: jnp.concatenate([a[None], b]), first, snapshots)
