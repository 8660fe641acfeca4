"""Paths in the plane, for a picture of environments whose observation is a position."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from admrl_jax.attacks.base import Attack
from admrl_jax.attacks.registry import ATTACKS
from admrl_jax.attacks.threat import Budget
from admrl_jax.core.types import MetaBatch, Params
from admrl_jax.envs.registry import ENVS
from admrl_jax.protocol.attack_stages import Attackers
from admrl_jax.protocol.session import Session
from admrl_jax.protocol.train_stages import Arm
from admrl_jax.runs.files import is_whole, write_arrays
from admrl_jax.sampling import collect_meta_batch, expose
from admrl_jax.training import Setup


def save_paths(session: Session, arms: dict[str, Arm], attackers: dict[str, Attackers]) -> None:
    """Paths in the plane to a few tasks, before and after adaptation, for a picture of the first seed.

    Only for environments that say which tasks to draw; attacked by the adaptive attacker whose strength
    is nearest to the curves'.
    """
    path = session.directory / "trajectories.npz"
    spec = ENVS[session.config.env.name]
    if not session.journal.writes or spec.picture_tasks is None or is_whole(path, "goals"):
        return
    goals = spec.picture_tasks(session.config.env)
    test, parts = session.config.eval, session.parts
    learned = [name for name in test.attacks if ATTACKS[name].make_trainer is not None]
    name = learned[0] if learned else test.attacks[0]
    index = int(np.argmin(np.abs(np.asarray(test.strengths) - test.curve_strength)))
    arrays: dict[str, Any] = {"goals": np.asarray(goals)}
    # Not the run's programs: of several processes only the one that writes comes here.
    compiled: dict[str, Callable[..., MetaBatch]] = {}
    for method, arm in arms.items():
        setup, attack = parts.setup(method, parts.test_sampling), parts.attack(name, method)

        def collect(
            meta_params: Params,
            params: Params,
            budget: Budget,
            setup: Setup = setup,
            attack: Attack = attack,
        ) -> MetaBatch:
            exposure = expose(attack, params, budget, num_tasks=len(goals))
            return collect_meta_batch(
                meta_params,
                session.held_out.key,
                goals,
                exposure,
                env=setup.env,
                policy=setup.policy,
                learner=setup.learner,
                config=setup.sampling,
            )

        params = attackers[method][name][index] if learned else ()
        first = jax.tree.map(lambda x: x[0], (arm.state.learner.meta_params, params, arm.state.units))
        for cell, strength in (("clean", 0.0), ("attacked", test.strengths[index])):
            arguments = (first[0], first[1], Budget(jnp.asarray(strength, float), first[2]))
            batch = compiled.setdefault(setup.learner.name, jax.jit(collect))(*arguments)
            before = jax.tree.map(lambda x: x[:, 0], batch.support.trajectory)
            for phase, taken in (("pre", before), ("post", batch.query.trajectory)):
                arrays[f"{method}/{cell}/{phase}"] = np.asarray(taken.obs)[:, :4, ..., :2]
                arrays[f"{method}/{cell}/{phase}/mask"] = np.asarray(taken.mask)[:, :4]
    write_arrays(path, **arrays)
