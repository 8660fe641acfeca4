"""Films of MuJoCo bodies: an episode once more for the engine's positions, which are then drawn."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from admrl_jax.attacks.base import Attack
from admrl_jax.attacks.threat import Budget
from admrl_jax.core.networks import Policy
from admrl_jax.core.types import Params, Task, Trajectory
from admrl_jax.report.style import own_style
from admrl_jax.sampling import rollout
from admrl_jax.simulators import Model


def play(
    env: Any,
    policy: Policy,
    policy_params: Params,
    key: jax.Array,
    task: Task,
    attack: Attack,
    attack_params: Params,
    budget: Budget,
) -> tuple[Trajectory, np.ndarray]:
    """One episode, arrays on the host, and the engine's positions `[H, Q]` after every step.

    The environment is one that `body_of` finds a body in.
    """

    @jax.jit
    def episode() -> tuple[Trajectory, jax.Array]:
        taken = rollout(
            policy_params, attack_params, key, task, env=env, policy=policy, attack=attack, budget=budget
        )
        # The same actions from the same start once more, for what observations do not hold.
        start, _ = env.reset(jax.random.split(key, 3)[0], task)

        def step(state: Any, taken: tuple) -> tuple[Any, jax.Array]:
            action, mask = taken
            moved, _ = env.step(state, action, task)
            state = jax.tree.map(lambda new, old: jnp.where(mask > 0, new, old), moved, state)
            return state, env.positions(state)

        return taken, jax.lax.scan(step, start, (taken.action, taken.mask))[1]

    return jax.tree.map(np.asarray, episode())


def body_of(env: Any) -> Model | None:
    """What to film of an environment; None where it has no body of MuJoCo."""
    source = getattr(getattr(env, "simulator", None), "source", None)
    return source.model if source is not None and hasattr(env, "positions") else None


def shoot(path: Path, body: Model, episodes: Sequence[tuple[np.ndarray, str]]) -> None:
    """Writes a GIF of `(qpos [H, Q], title)`: rendered where the machine can, else drawn with lines.

    Args:
        path: of the GIF.
        body: whose positions they are.
        episodes: side by side.
    """
    from admrl_jax.report.render import render
    from admrl_jax.simulators.models import load_model

    model = load_model(body)
    positions, titles = [qpos for qpos, _ in episodes], [title for _, title in episodes]
    if render(path, model, positions, titles):
        return
    print(
        "video: neither EGL nor OSMesa works here, so bodies are drawn with lines; libegl1 with a driver, or "
        "libosmesa6, brings rendered ones",
        file=sys.stderr,
    )
    with own_style():
        from admrl_jax.report.film import write_film

        write_film(path, model, positions, titles)
