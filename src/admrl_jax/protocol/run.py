"""The paper's protocol on one environment, stage by stage, from a config to a report.

pretrain (clean) -> for each method: warm up its opponents, fine-tune -> train attackers of each frozen policy
-> meta-test grid and convergence curves -> report.

Every stage leaves its result on disk and is not run again once it is there.
"""

import functools
import json
import platform
import resource
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np

from admrl_jax import evaluation
from admrl_jax.attacks.registry import ATTACKS, CLEAN
from admrl_jax.config import UNITS, to_dict
from admrl_jax.core.types import Params
from admrl_jax.methods import METHODS
from admrl_jax.protocol.attack_stages import Attackers, attack_method, strength_label
from admrl_jax.protocol.eval_stages import MetaTest, tests_of, trained_along
from admrl_jax.protocol.paths import save_paths
from admrl_jax.protocol.session import Session
from admrl_jax.protocol.train_stages import Arm, Pretrained, finetune, pretrain
from admrl_jax.report.attacked import ATTACK_FOLDER
from admrl_jax.report.attacks import write_attack_report
from admrl_jax.report.results import RESULTS
from admrl_jax.report.write import write_report
from admrl_jax.runs.artefact import ATTACKERS, POLICIES, TRAINED, save_attackers, save_policies
from admrl_jax.runs.devices import make_lanes
from admrl_jax.runs.files import write_rows, write_text
from admrl_jax.runs.versions import versions
from admrl_jax.saved.attack_film import film_section
from admrl_jax.saved.attack_plan import make_plan, set_aside
from admrl_jax.saved.attack_run import AttackRun

UNTIL = ("pretrain", "finetune", "report")
"""Stages after which a run can be told to stop; a later one goes on from there."""


def run_protocol(session: Session, preset: str, until: str = "report") -> Path:
    """Runs every stage that is not done yet.

    Args:
        session: the run.
        preset: `paper`, `quick` or `custom`, for the report.
        until: the last stage to run, one of `UNTIL`.

    Returns:
        Path of the report, or of the run directory where the run stops earlier.

    Raises:
        Interrupted: SIGINT or SIGTERM came; everything done so far is saved.
        Diverged: numbers were not finite for too long.
    """
    config = session.config
    with session.stop:
        bases = pretrain_learners(session)
        if until == "pretrain":
            _save_policies(session, bases, {})
            return session.directory
        arms = {
            method: finetune(session, bases[METHODS[method].learner], method) for method in config.methods
        }
        _save_policies(session, bases, arms)
        if until == "finetune":
            return session.directory
        attackers = {
            method: attack_method(session, method, arm, bases[METHODS[method].learner].inputs)
            for method, arm in arms.items()
        }
        _save_attackers(session, arms, attackers)
        test = MetaTest(session)
        rows = []
        for method, arm in arms.items():
            rows += test.run(method, arm, tests_of(method, session, arms, attackers[method]))
        first = bases[METHODS[config.methods[0]].learner]
        curves = [row for name in ("pretrain", *arms) for row in test.curves(name, first, arms)]
        opponents = [
            row
            for method, arm in arms.items()
            for row in test.opponents(method, bases[METHODS[method].learner], arm)
        ]
        save_paths(session, arms, attackers)
        if not session.journal.writes:
            return session.directory
        save_results(session, preset, {"rows": rows, "curves": curves, "opponents": opponents})
        if config.eval.suite != "none":
            _attack(session)
        return write_report(session.directory)


def _attack(session: Session) -> None:
    """Tries a suite of attackers on the run's policies, in a folder of its own.

    What another suite did there before is set aside.
    """
    if jax.process_count() > 1:
        print("suite: not with several processes; experiments.attack does it afterwards", file=sys.stderr)
        return
    config, folder = session.config, session.directory / ATTACK_FOLDER
    plan = make_plan(session.directory, suite=config.eval.suite, methods=config.methods)
    set_aside(folder, plan)
    run = AttackRun(plan, folder, make_lanes(config.num_devices, config.lanes), session.stop)
    write_attack_report(folder, run.run(), film_section(run))


def pretrain_learners(session: Session) -> dict[str, Pretrained]:
    """Pre-training once for every learner of the methods."""
    bases: dict[str, Pretrained] = {}
    for method in session.config.methods:
        if METHODS[method].learner not in bases:
            bases[METHODS[method].learner] = pretrain(session, method)
    return bases


def _save_policies(session: Session, bases: dict[str, Pretrained], arms: dict[str, Arm]) -> None:
    if not session.journal.writes:
        return
    first = next(iter(bases.values()))
    policies: dict[str, Params] = {"pretrain": first.state.learner.meta_params}
    policies |= {method: arm.state.learner.meta_params for method, arm in arms.items()}
    path = session.directory / POLICIES
    save_policies(path, session.config, policies, first.inputs, session.config.seeds)


def _save_attackers(session: Session, arms: dict[str, Arm], attackers: dict[str, Attackers]) -> None:
    if not session.journal.writes:
        return
    kept: dict[tuple[str, str, str], Params] = {}
    for method, by_attack in attackers.items():
        defence = session.parts.defence(method)
        if defence.trained_attack:
            along = trained_along(session, {method: arms[method]}, defence.trained_attack)
            kept[method, defence.trained_attack, TRAINED] = along
        for attack, by_strength in by_attack.items():
            for strength, params in zip(session.config.eval.strengths, by_strength, strict=True):
                kept[method, attack, strength_label(strength)] = params
    save_attackers(session.directory / ATTACKERS, kept)


def save_results(session: Session, preset: str, tables: dict[str, list[dict[str, Any]]]) -> None:
    """Writes `results.json` (the same bits for the same run) and `timing.json` (never the same)."""
    config = session.config
    stand_still = functools.partial(
        evaluation.do_nothing_returns,
        env=session.parts.env,
        num_trajectories=config.eval.num_trajectories,
    )
    floor = jax.jit(stand_still)(session.held_out.key, session.held_out.tasks)
    results = {
        "env": config.env.name,
        "preset": preset,
        "config": to_dict(config),
        "methods": {method: describe_method(method) for method in config.methods},
        "attacks": {
            name: describe_attack(name)
            for name in (
                *(CLEAN, *config.eval.all_attacks, *config.eval.curve_attacks),
                *(row["attack"] for row in tables["opponents"]),
            )
        },
        "units": UNITS[config.units],
        "versions": {"python": platform.python_version()} | versions(),
        "device": jax.devices()[0].device_kind,
        "simulator": getattr(getattr(session.parts.env, "simulator", None), "name", "none"),
        "assumption": getattr(session.parts.env, "assumption", ""),
        "floor": float(np.asarray(floor).mean(dtype=np.float64)),
    } | tables
    write_rows(session.directory / RESULTS, results)
    path = session.directory / "timing.json"
    before = json.loads(path.read_text()) if path.exists() else {"seconds": {}}
    timing = {
        "seconds": before["seconds"] | {k: round(v, 1) for k, v in session.journal.seconds.items()},
        "peak_memory_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
    }
    write_text(path, json.dumps(timing, indent=1) + "\n")


def describe_method(name: str) -> dict[str, Any]:
    """What a report says of a method."""
    return METHODS[name]._asdict()


def describe_attack(name: str) -> dict[str, Any]:
    """What a report says of an attack: its colour, whether it learns, and its threat model."""
    spec = ATTACKS[name]
    is_learned = spec.make_trainer is not None
    return {"colour": spec.colour, "is_learned": is_learned, **spec.threat._asdict()}
