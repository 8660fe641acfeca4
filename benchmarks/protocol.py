"""The time of a whole run of the paper's protocol: `python -m benchmarks.protocol`.

Every stage's step is built and compiled as a run does it, with its seeds or attackers in as many lanes as
the device holds, and taken a few times. Hours are those of all its steps. Stages that run the same programs,
such as attackers of methods with one learner, are measured once. Checkpoints, metrics and the report, which
take seconds, are left out, and so is the suite of attackers at the end (`--eval.suite`), which takes longer.
"""

import functools
import itertools
import math
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import tyro

from admrl_jax.attacks.registry import ATTACKS, CLEAN
from admrl_jax.config import Config, validate
from admrl_jax.defences.base import Defence
from admrl_jax.defences.fixed import no_defence
from admrl_jax.methods import METHODS
from admrl_jax.protocol.attack_stages import attack_step, first_attackers, learned_attacks
from admrl_jax.protocol.eval_stages import CELLS
from admrl_jax.protocol.evaluator import Evaluator
from admrl_jax.protocol.lanes import LanePrograms, choose_lanes, split
from admrl_jax.protocol.parts import Parts, build_parts
from admrl_jax.protocol.session import Session, open_session
from admrl_jax.protocol.stage import Step
from admrl_jax.protocol.train_stages import (
    Arm,
    Pretrained,
    measure_observations,
    train_step,
    untrained,
)
from admrl_jax.training import TrainState, opponent_key
from benchmarks.common import preset_of, report, start, timing, write_rows

TITLE = "A whole run of the paper's protocol"


@dataclass(frozen=True)
class Arguments:
    """Hours of each stage of a run, from a few of its steps."""

    env: tuple[str, ...] = ("halfcheetah_dir",)
    preset: str = "paper"
    """paper or quick."""
    simulator: str = "auto"
    seeds: int = 5
    """Seeds of the run."""
    lanes: int = 0
    """Lanes computed at once; 0 chooses, as in a run."""
    repeats: int = 2
    """Steps timed per stage, after one that is not."""
    json: Path | None = None
    """Also write the figures here (and a picture beside it)."""


class Work(NamedTuple):
    """Something that a run does again and again.

    Attributes:
        stage: of the run.
        of: method or attack.
        runs: how many stages like it there are.
        steps: of each.
        lanes: that each step computes.
        lanes_at_once: computed together; `-` where that is the evaluator's business.
        take: one step.
    """

    stage: str
    of: str
    runs: int
    steps: int
    lanes: int
    lanes_at_once: int | str
    take: Callable[[], Any]


def config_of(name: str, arguments: Arguments) -> Config:
    """The preset of an environment with the seeds and the engine asked for."""
    config = preset_of(name, arguments.preset)
    seeds = tuple(range(arguments.seeds))
    return validate(replace(config, seeds=seeds, simulator=arguments.simulator, lanes=arguments.lanes))


def evaluations(parts: Parts) -> Counter[tuple[str, str]]:
    """Evaluations of the meta-test grid and of policies and opponents in training, by learner and attack.

    Each is of all seeds.
    """
    config, test, schedule = parts.config, parts.config.eval, parts.config.schedule
    trained_along = {parts.defence(method).trained_attack for method in config.methods}
    found: Counter[tuple[str, str]] = Counter()
    for method in config.methods:
        learner = METHODS[method].learner
        found[learner, CLEAN] += 1
        for attack in test.attacks_on(method):
            is_learned = ATTACKS[attack].make_trainer is not None
            protocols = 1 + (is_learned and attack in trained_along)
            found[learner, attack] += protocols * len(test.strengths) * len(CELLS)
    # Policies in the curves: the untrained one and those of pre-training, then those of every method.
    policies = Counter(
        dict.fromkeys(config.methods, math.ceil(schedule.finetune_steps / schedule.snapshot_every))
    )
    policies[config.methods[0]] += 1 + math.ceil(schedule.pretrain_steps / schedule.snapshot_every)
    for attack in (CLEAN, *test.curve_attacks):
        if ATTACKS[attack].make_trainer is None or attack in trained_along:
            for method, count in policies.items():
                found[METHODS[method].learner, attack] += count
    for method in config.methods:
        attack = parts.defence(method).trained_attack
        if attack:
            snapshots = math.ceil(schedule.finetune_steps / schedule.snapshot_every)
            found[METHODS[method].learner, attack] += 1 + snapshots
    return found


def count_cells(config: Config) -> int:
    """All evaluations of a run."""
    return sum(evaluations(build_parts(config)).values())


def stage_work(session: Session, stage: str, of: str, runs: int, steps: int, step: Step, *lanes: Any) -> Work:
    """A stage's step as the runner takes it.

    Args:
        session: the run.
        stage: its name.
        of: method or attack.
        runs: how many stages like it there are.
        steps: of each.
        step: of a block of lanes.
        lanes: what the step carries, then what it reads if it reads something, leading axis the lanes.
    """
    lanes = session.devices.place(lanes)
    count = jax.tree.leaves(lanes)[0].shape[0]

    def take(programs: LanePrograms, blocks: Iterable[tuple[Any, ...]]) -> list[Any]:
        return [step(programs, state, fixed[0] if fixed else ()) for state, *fixed in blocks]

    def split_lanes(at_once: int) -> list[tuple[Any, ...]]:
        return list(zip(*(split(x, at_once) for x in lanes), strict=True))

    def run_first(programs: LanePrograms) -> None:
        take(programs, split_lanes(programs.at_once))

    programs = choose_lanes(session.programs, count, run_first, session.config.lanes)
    # A run splits once, not at every step.
    blocks = split_lanes(programs.at_once)
    return Work(stage, of, runs, steps, count, programs.at_once, lambda: take(programs, blocks))


def training_work(session: Session, method: str, bases: dict[str, Pretrained]) -> Iterator[Work]:
    """Pre-training where the method's learner has none in `bases` yet, warm-up, fine-tuning."""
    parts, schedule, axis = session.parts, session.config.schedule, session.devices.axis
    setup, learner = parts.setup(method), METHODS[method].learner
    if learner not in bases:
        state = untrained(session, method)
        step = train_step(parts.pretraining_setup(method), no_defence(), axis)
        yield stage_work(session, "pretrain", learner, 1, schedule.pretrain_steps, step, state)
        bases[learner] = Pretrained(state, (), measure_observations(session, setup, state))
    defence = parts.defence(method)
    state = with_opponents(bases[learner], defence)
    if defence.update is not None and defence.warmup_steps:
        step = train_step(setup, defence, axis, freeze_policy=True)
        yield stage_work(session, "warmup", method, 1, defence.warmup_steps, step, state)
    step = train_step(setup, defence, axis)
    yield stage_work(session, "finetune", method, 1, schedule.finetune_steps, step, state)


def with_opponents(base: Pretrained, defence: Defence) -> TrainState:
    """The pre-trained policies with fresh opponents, as `finetune` starts."""
    make = jax.jit(jax.vmap(lambda key, inputs: defence.init(opponent_key(key), inputs)))
    return base.state.replace(start=base.state.step, opponent=make(base.state.key, base.inputs))


def attack_work(session: Session, bases: dict[str, Pretrained]) -> Iterator[Work]:
    """Attackers, once for each learner and trainer."""
    parts, effort = session.parts, session.config.eval.attacker
    strengths = len(session.config.eval.strengths)
    stages: dict[tuple[str, str], list[tuple[str, str]]] = {}
    for method in session.config.methods:
        for attack in learned_attacks(session, method):
            same = METHODS[method].learner, parts.identity(attack, method)
            stages.setdefault(same, []).append((method, attack))
    for (learner, _), alike in stages.items():
        method, attack = alike[0]
        base = bases[learner]
        state = first_attackers(session, method, attack, Arm(base.state, ()), base.inputs)
        victims = jax.tree.map(lambda x: jnp.repeat(x, strengths, axis=0), base.state.learner.meta_params)
        setup = parts.setup(method, parts.attack_sampling)
        step = attack_step(setup, parts.attack_trainer(attack, method), session.devices.axis)
        yield stage_work(session, "attackers", attack, len(alike), effort.steps, step, state, victims)


def evaluation_work(session: Session, bases: dict[str, Pretrained]) -> Iterator[Work]:
    """Evaluations under every attack."""
    parts, config, evaluator = session.parts, session.config, Evaluator(session)
    for (learner, attack), count in evaluations(parts).items():
        base = bases[learner]
        method = next(method for method in config.methods if METHODS[method].learner == learner)
        params = jax.vmap(parts.attack(attack, method).init)(session.seed_keys)
        if ATTACKS[attack].make_trainer is not None:
            fresh = first_attackers(session, method, attack, Arm(base.state, ()), base.inputs)
            params = jax.tree.map(lambda x: x[:: len(config.eval.strengths)], fresh.strongest)
        evaluate = functools.partial(
            evaluator.evaluate,
            method,
            base.state.learner.meta_params,
            base.state.units,
            attack,
            params,
            *(0.0 if attack == CLEAN else config.eval.strengths[0],) * 2,
        )
        yield Work("evaluation", attack, 1, count, len(config.seeds), "-", evaluate)


def all_work(session: Session) -> Iterator[Work]:
    """What a run does, stage by stage."""
    bases: dict[str, Pretrained] = {}
    for method in session.config.methods:
        yield from training_work(session, method, bases)
    yield from attack_work(session, bases)
    yield from evaluation_work(session, bases)


def seconds_of(take: Callable[[], Any]) -> float:
    """Of one call, the device waited for."""
    start = time.perf_counter()
    jax.block_until_ready(take())
    return time.perf_counter() - start


def measure(config: Config, repeats: int) -> Iterator[dict[str, Any]]:
    """A row per stage and one for all of them."""
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        session = open_session(config, Path(folder))
        simulator = getattr(getattr(session.parts.env, "simulator", None), "name", "closed form")
        what = {"env": config.env.name, "simulator": simulator, "seeds": len(config.seeds)}
        works, began = all_work(session), time.perf_counter()
        # Choosing the lanes compiles too, and takes a step on an accelerator.
        while (work := next(works, None)) is not None:
            jax.block_until_ready(work.take())
            first = time.perf_counter() - began
            with timing():
                step = median(seconds_of(work.take) for _ in range(repeats))
            hours = work.runs * work.steps * step / 3600
            counts = {field: getattr(work, field) for field in Work._fields if field != "take"}
            rows.append({**what, **counts, "first_s": first, "step_s": step, "hours": hours})
            yield rows[-1]
            began = time.perf_counter()
    total = {**dict.fromkeys(rows[0], "-"), **what}
    yield {**total, "stage": "all without the suite", "hours": sum(row["hours"] for row in rows)}


def main() -> None:
    """Runs the benchmark from the command line."""
    arguments = tyro.cli(Arguments, prog="python -m benchmarks.protocol", description=__doc__)
    start()
    configs = [config_of(name, arguments) for name in arguments.env]
    rows = []
    for row in itertools.chain.from_iterable(measure(config, arguments.repeats) for config in configs):
        rows.append(row)
        write_rows(TITLE, rows, arguments.json)
    report(
        TITLE,
        rows,
        arguments.json,
        bars=("hours",),
        labels=("env", "simulator", "stage", "of"),
        unit="hours",
    )


if __name__ == "__main__":
    main()
