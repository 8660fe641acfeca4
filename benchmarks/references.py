"""How robust a policy of 2D navigation can be expected to be: `python -m benchmarks.references`.

Policies by hand that know the goal, or its direction only (what one gradient step sees). Feedback is attacked
with the planned attack (`admrl_jax.truth.navigation`); nothing can attack a policy that ignores observations.
Goals are a lattice over their square. All returns are achieved in the environment: they are neither the best
that a policy can do nor, strictly, the worst that an attack can.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from admrl_jax.attacks.threat import Budget
from admrl_jax.core.gaussian import Gaussian
from admrl_jax.core.networks import Policy
from admrl_jax.core.types import Params, Task, TimeStep
from admrl_jax.envs.base import Env
from admrl_jax.envs.navigation import Navigation2D
from admrl_jax.sampling import collect, episode_returns
from admrl_jax.truth.choices import tried_choices
from admrl_jax.truth.grid import PlanConfig
from admrl_jax.truth.navigation import Plan, plan_value, planned_attack, solve
from benchmarks.common import report

DESIGN = {
    "feedback, goal known": (-2.4, -10.2, -20.7, -50.2, -67.6),
    "feedback, direction known": (-11.5, -21.5, -31.1, -53.8, -68.5),
    "dead reckoning, direction known": (-11.6, -11.6, -11.6, -11.6, -11.6),
    "zero action": (-55.0, -55.0, -55.0, -55.0, -55.0),
    "zero action, no noise": (-38.4, -38.4, -38.4, -38.4, -38.4),
}
"""Returns that the design expects at `RADII`; how they were computed is not said."""
RADII = (0.0, 0.1, 0.2, 0.5, 0.8)


@dataclass(frozen=True)
class Arguments:
    """Return of reference policies of 2D navigation under the strongest attack that is known."""

    radii: tuple[float, ...] = RADII
    """L2 radii of the attack."""
    noise: float = 0.05
    """Standard deviation of a move's noise."""
    gains: tuple[float, ...] = (1.0, 0.5, 0.2, 0.1, 0.05, 0.02)
    """Of feedback, as a share of the distance per step. The best is chosen for each radius, goal known."""
    lattice: int = 16
    """Goals per axis."""
    episodes: int = 10
    """Per goal."""
    spacing: float = 0.05
    """Between nodes of the plans."""
    json: Path | None = None
    """Also write the figures here (and a picture beside it)."""


class Seen(NamedTuple):
    """2D navigation seen from the goal: a task is the start `[2]`, the goal is the origin.

    Feedback to a goal is the same policy for all goals in these coordinates, and one plan attacks it.
    """

    env: Navigation2D

    @property
    def obs_size(self) -> int:
        """Position."""
        return 2

    @property
    def action_size(self) -> int:
        """Displacement."""
        return 2

    @property
    def horizon(self) -> int:
        """Steps per episode."""
        return self.env.horizon

    def sample_task(self, key: jax.Array) -> jax.Array:
        """Draws a start."""
        return -self.env.sample_task(key)

    def reset(self, key: jax.Array, task: Task) -> tuple[jax.Array, jax.Array]:
        """Starts there."""
        return task, task

    def step(self, state: jax.Array, action: jax.Array, task: Task) -> tuple[jax.Array, TimeStep]:
        """Moves, and is judged by the distance to the origin."""
        return self.env.step(state, action, jnp.zeros_like(task))


class Feedback(NamedTuple):
    """Parameters of feedback: a move is a share `gain` `[]` of the way to a target `[2]`, with noise `[]`."""

    target: jax.Array
    gain: jax.Array | float
    noise: jax.Array | float


def feedback(env: Navigation2D) -> Policy:
    """The policy of `Feedback`, without memory."""
    scale = env.config.action_scale

    def apply(params: Params, obs: jax.Array) -> Gaussian:
        mean = scale * params.gain * (params.target - obs)
        return Gaussian(mean, jnp.log(jnp.broadcast_to(scale * params.noise, (2,))))

    return Policy(lambda key: Feedback(jnp.zeros(2), 1.0, 1.0), apply)


def lattice_goals(env: Navigation2D, per_axis: int) -> tuple[jax.Array, np.ndarray]:
    """Goals `[N, 2]` at the middles of a lattice's cells, and their weights `[N]`, which sum to 1.

    The task looks the same in a mirror and after a quarter turn, and so do its attacks: goals that only
    differ by that stand for one another, which leaves an eighth of an even number of cells per axis.
    """
    half = np.arange(per_axis - per_axis // 2) + (0.5 if per_axis % 2 == 0 else 0.0)
    x, y = (axis.ravel() for axis in np.meshgrid(half, half, indexing="ij"))
    keep = y <= x
    times = np.where(x == y, 1, 2) * np.where(x == 0, 1, 2) * np.where(y == 0, 1, 2)
    goals = 2 * env.config.goal_range / per_axis * np.stack([x, y], axis=-1)
    return jnp.asarray(goals[keep], jnp.float32), times[keep] / times[keep].sum()


def open_loop_returns(
    moves: jax.Array,
    noise: jax.Array | float,
    key: jax.Array,
    goal: jax.Array,
    *,
    env: Navigation2D,
    episodes: int,
) -> jax.Array:
    """Returns `[episodes]` of a sequence of moves `[H, 2]` that observes nothing."""

    def episode(key: jax.Array) -> jax.Array:
        noisy = moves + noise * jax.random.normal(key, moves.shape)

        def step(carry: tuple, move: jax.Array) -> tuple[tuple, jax.Array]:
            state, alive = carry
            state, new = env.step(state, env.config.action_scale * move, goal)
            return (state, alive & ~new.terminated), jnp.where(alive, new.reward, 0.0)

        start = (jnp.zeros(2), jnp.array(True))
        return jnp.sum(jax.lax.scan(step, start, noisy)[1])

    return jax.vmap(episode)(jax.random.split(key, episodes))


def walk_to(target: jax.Array, env: Navigation2D) -> jax.Array:
    """Moves `[H, 2]` that go to a target `[2]` as fast as the bound on a move allows, and stay."""
    steps = jnp.max(jnp.abs(target)) / env.config.max_move
    share = jnp.minimum((1 + jnp.arange(env.horizon)) / jnp.maximum(steps, 1e-6), 1.0)
    return target * jnp.diff(share, prepend=0.0)[:, None]


class References:
    """The references on one lattice of goals; returns come as `[N, episodes]`, plans' values as `[N]`."""

    def __init__(self, arguments: Arguments, env: Navigation2D) -> None:
        """Draws the goals."""
        self.arguments, self.env, self.policy = arguments, env, feedback(env)
        self.config = PlanConfig(spacing=arguments.spacing)
        self.goals, self.weights = lattice_goals(env, arguments.lattice)
        self.keys = jax.random.split(jax.random.key(0), self.goals.shape[0])
        # The distance that a policy bets on which knows the direction only: the median of all goals.
        drawn = jax.vmap(env.sample_task)(jax.random.split(jax.random.key(1), 100_000))
        bet = jnp.median(jnp.linalg.norm(drawn, axis=-1))
        towards = bet * self.goals / jnp.linalg.norm(self.goals, axis=-1, keepdims=True)
        self.targets = {"goal": self.goals, "direction": towards}
        self.known = {"goal": jax.jit(self.goal_known), "direction": jax.jit(self.direction_known)}
        self.expected, self.blind = jax.jit(self.goal_expected), jax.jit(self.open_loop)

    def plan(self, params: Feedback, goal: jax.Array, radius: jax.Array) -> Plan:
        """The planned attack on one policy."""
        choose = tried_choices(params, Budget(radius), policy=self.policy, config=self.config)
        return solve(choose, goal, env=self.env, config=self.config)

    def run(
        self, params: Feedback, plan: Plan, key: jax.Array, task: jax.Array, radius: jax.Array, env: Env
    ) -> jax.Array:
        """Returns `[episodes]` under it."""
        episodes = collect(
            params,
            plan,
            key,
            task,
            num_trajectories=self.arguments.episodes,
            env=env,
            policy=self.policy,
            attack=planned_attack(self.policy, self.env, self.config),
            budget=Budget(radius),
            is_query=True,
        )
        return episode_returns(episodes)

    def goal_expected(self, gain: jax.Array, noise: jax.Array, radius: jax.Array) -> jax.Array:
        """Value of the plan against feedback to the goal."""
        origin = jnp.zeros(2)
        return plan_value(self.plan(Feedback(origin, gain, noise), origin, radius), -self.goals)

    def goal_known(self, gain: jax.Array, noise: jax.Array, radius: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Feedback to the goal: `(returns, value of the plan)`."""
        origin = jnp.zeros(2)
        params, seen = Feedback(origin, gain, noise), Seen(self.env)
        plan = self.plan(params, origin, radius)
        returns = jax.lax.map(
            lambda task: self.run(params, plan, task[0], -task[1], radius, seen), (self.keys, self.goals)
        )
        return returns, plan_value(plan, -self.goals)

    def direction_known(
        self, gain: jax.Array, noise: jax.Array, radius: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """Feedback to the point at the median distance in the goal's direction: the same."""

        def one(task: tuple[jax.Array, jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
            key, goal, target = task
            params = Feedback(target, gain, noise)
            plan = self.plan(params, goal, radius)
            return self.run(params, plan, key, goal, radius, self.env), plan_value(plan, jnp.zeros(2))

        return jax.lax.map(one, (self.keys, self.goals, self.targets["direction"]))

    def open_loop(self, targets: jax.Array, noise: jax.Array) -> jax.Array:
        """Returns of who walks to targets `[N, 2]` and stays, and observes nothing."""

        def one(task: tuple[jax.Array, jax.Array, jax.Array]) -> jax.Array:
            key, goal, target = task
            moves, episodes = walk_to(target, self.env), self.arguments.episodes
            return open_loop_returns(moves, noise, key, goal, env=self.env, episodes=episodes)

        return jax.lax.map(one, (self.keys, self.goals, targets))

    def row(
        self, name: str, radius: float, gain: float | str, returns: jax.Array, expected: Any = None
    ) -> dict[str, Any]:
        """Means over the lattice; the standard error is that of the episodes."""
        episodes = np.asarray(returns)
        variance = episodes.var(axis=-1, ddof=1) / episodes.shape[-1]
        design = dict(zip(RADII, DESIGN.get(name, ()), strict=False)).get(radius, "-")
        return {
            "reference": name,
            "radius": radius,
            "gain": gain,
            "return": float(self.weights @ episodes.mean(axis=-1)),
            "standard_error": float(np.sqrt(np.square(self.weights) @ variance)),
            "plan": "-" if expected is None else float(self.weights @ np.asarray(expected)),
            "design": design,
        }

    def best_gain(self, radius: float) -> float:
        """The gain that the planned attack leaves most, goal known."""
        noise = self.arguments.noise
        found = [self.weights @ np.asarray(self.expected(g, noise, radius)) for g in self.arguments.gains]
        return self.arguments.gains[int(np.argmax(found))]

    def best_open_loop(self, target: str, noise: float) -> jax.Array:
        """The best of walking some share of the way to the target: clipped noise makes moves short."""
        tried = [self.blind(float(x) * self.targets[target], noise) for x in np.linspace(0.5, 1.3, 9)]
        return max(tried, key=lambda returns: self.weights @ np.asarray(returns).mean(axis=-1))

    def rows(self) -> list[dict[str, Any]]:
        """A row for each reference and radius; where no attack reaches, one row."""
        noise, rows = self.arguments.noise, []
        best = {radius: self.best_gain(radius) for radius in self.arguments.radii}
        for target, returns_of in self.known.items():
            for radius in self.arguments.radii:
                for gain in sorted({self.arguments.gains[0], best[radius]}, reverse=True):
                    found = returns_of(gain, noise, radius)
                    rows.append(self.row(f"feedback, {target} known", radius, gain, *found))
        # A move is what is executed, so who adds up the moves knows the true position.
        gain = self.best_gain(0.0)
        found = self.known["direction"](gain, noise, 0.0)
        rows.append(self.row("dead reckoning, direction known", 0.0, gain, *found))
        for size, words in ((noise, ""), (0.0, ", no noise")):
            still = self.blind(jnp.zeros_like(self.goals), size)
            rows.append(self.row(f"zero action{words}", 0.0, "-", still))
            for target in self.targets:
                walked = self.best_open_loop(target, size)
                rows.append(self.row(f"blind, {target} known{words}", 0.0, "-", walked))
        return rows


def main() -> None:
    """Runs the references from the command line."""
    arguments = tyro.cli(Arguments, prog="python -m benchmarks.references", description=__doc__)
    report(
        "References for 2D navigation",
        References(arguments, Navigation2D()).rows(),
        arguments.json,
        bars=("return",),
        labels=("reference", "radius", "gain"),
        unit="return",
    )


if __name__ == "__main__":
    main()
