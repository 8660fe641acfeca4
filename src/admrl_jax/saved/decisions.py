"""What one attacked decision does to MAML, measured on finished runs, for the ledger of claims."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from admrl_jax.attacks.base import Attack
from admrl_jax.attacks.registry import make_attack
from admrl_jax.attacks.threat import Budget, Units
from admrl_jax.core.types import Params
from admrl_jax.envs.base import attackable_only, raw_units
from admrl_jax.evaluation import attacked_decisions, hold_out
from admrl_jax.report.measured import EQUAL_NOISE, FRESH, MAML, PAPER_STRENGTHS
from admrl_jax.runs.artefact import ATTACKERS, POLICIES, Trained, load_attacker, load_policy, read_attackers
from admrl_jax.saved.attack_victims import setup_of
from admrl_jax.victims import make_victim

LEARNED, NOISE = FRESH[0], EQUAL_NOISE[0]


def measure_decisions(run: Path) -> list[dict[str, Any]]:
    """One row for every seed, strength and attack: MAML's fresh adGAN, and noise of the same L2 size.

    Strengths are those of the paper whose attackers the run kept; there are none without MAML.

    Args:
        run: directory of a finished run.

    Returns:
        Rows with `seed`, `attack`, `strength`, and over the episodes of all held-out tasks: `worse` and
        `better`, the shares that return less and more than they do unattacked, and `change`, the mean
        difference.

    Raises:
        ArtefactError: the run's policies or attackers are damaged.
    """
    strengths = _kept_strengths(run)
    if not strengths:
        return []
    trained = load_policy(run, MAML)
    config = trained.config
    victim = make_victim(trained.env, trained.policy, trained.learner)
    rows = []
    for name in (LEARNED, NOISE):
        changes = _compiled(trained, make_attack(name, victim, getattr(config.attacks, name)))
        for strength in strengths:
            attackers = load_attacker(run, trained, name, f"{strength:g}") if name == LEARNED else ()
            for place, seed in enumerate(config.seeds):
                params, attacker, inputs = jax.tree.map(
                    lambda x, i=place: x[i], (trained.params, attackers, trained.inputs)
                )
                change = np.asarray(changes(params, attacker, inputs, strength), np.float64)
                found = {"worse": (change < 0).mean(), "better": (change > 0).mean(), "change": change.mean()}
                row = {key: float(value) for key, value in found.items()}
                rows.append({"seed": seed, "attack": name, "strength": strength} | row)
    return rows


def _kept_strengths(run: Path) -> list[float]:
    if not all((run / name).is_file() for name in (POLICIES, ATTACKERS)):
        return []
    names = read_attackers(run / ATTACKERS)
    return [
        s for s in PAPER_STRENGTHS if any(x.startswith(f"attacker/{MAML}/{LEARNED}/{s:g}/") for x in names)
    ]


def _compiled(trained: Trained, attack: Attack) -> Callable[..., jax.Array]:
    """`(meta_params, attack_params, inputs, radius) -> changes [N, K]` on the run's held-out tasks."""
    config, env = trained.config, trained.env
    setup, held_out = setup_of(trained), hold_out(env, config.eval.seed, config.eval.num_tasks)

    @jax.jit
    def changes(params: Params, attacker: Params, inputs: Units, radius: jax.Array) -> jax.Array:
        units = raw_units(env) if config.units == "paper" else attackable_only(env, inputs)
        return attacked_decisions(
            params, held_out.key, held_out.tasks, attack, attacker, Budget(radius, units), setup=setup
        )

    return changes
