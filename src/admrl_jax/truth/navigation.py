"""The strongest attack on a fixed policy in 2D navigation, by dynamic programming.

The true position is all there is to the state, so the best attacker is a function of position and time. Its
value is computed backwards over a grid of positions. A move is the policy's mean plus Gaussian noise, clipped
per axis; the next value is linear between nodes, and its expectation under the clipped Gaussian is exact. All
weights are chances: the table is the exact value of a random walk near the true one (the Markov chain
approximation of Kushner and Dupuis 2001, chapter 5). Distances, and the chance to end in the goal's box, are
those of the true position and not of the table.

What the numbers say about the least expected return that an attacker of the budget can leave:

- The greedy attack of a table achieves a return in the environment. That is an upper bound, whatever the
  table's errors, up to sampling error.
- The table's own value at the start is an estimate. It differs from the achieved return by the error of the
  grid, and both miss what lies between the perturbations that are tried.
- The relaxed value is a lower bound up to the error of the grid, and no proof. Its attacker chooses between
  the corners of cells that cover the whole ball, and each choice is charged the most that could be lost by
  the mean action's distance from a mixture of those at the corners, which `affine_bounds` bounds. What is not
  bounded: the next value is interpolated between nodes; and a mixture of corners is taken to be no worse than
  the worst corner (it may be, by second order in the cell's size).
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from admrl_jax.attacks.base import Attack, Scene
from admrl_jax.attacks.threat import Budget, make_threat
from admrl_jax.core.linalg import safe_norm
from admrl_jax.core.networks import Policy
from admrl_jax.core.types import Params
from admrl_jax.envs.navigation import Navigation2D
from admrl_jax.sampling import collect, episode_returns
from admrl_jax.truth.choices import Choices, Choose, choices_at, polar_points, relaxed_choices, tried_choices
from admrl_jax.truth.grid import PlanConfig, axis_nodes
from admrl_jax.truth.interpolation import chance_between, interpolate, node_weights, normal_cdf, tents

THREAT = make_threat(label="planned", norm="l2", strength="L2 radius", knowledge="policy and task")


class Plan(NamedTuple):
    """A solved attack on one policy and one goal.

    Attributes:
        nodes: `[G]` of the grid, on both axes.
        goal: `[2]`.
        values: `[H + 1, G, G]` least expected return of the steps that are left, from every node.
    """

    nodes: jax.Array
    goal: jax.Array
    values: jax.Array


class Truth(NamedTuple):
    """What the planned attack of each of `N` tasks comes to.

    Attributes:
        returns: `[N, K]` of episodes under it; their mean is an upper bound of the least return.
        estimate: `[N]` value of the plan.
    """

    returns: jax.Array
    estimate: jax.Array


class Moves(NamedTuple):
    """One step of every choice at a position.

    Attributes:
        chances: of the nodes of a move, `[..., C, M]` for each axis.
        reward: `[..., C]` expected.
        ends: `[..., C]` chance that the episode ends; the least, where there is slack.
        slack: `[..., C, 2]` by how much the expected move may differ, if it may.
    """

    chances: tuple[jax.Array, jax.Array]
    reward: jax.Array
    ends: jax.Array
    slack: jax.Array | None


def expected_moves(
    position: jax.Array,
    choices: Choices,
    goal: jax.Array,
    *,
    env: Navigation2D,
    config: PlanConfig,
    nearby: jax.Array | None = None,
) -> Moves:
    """What every choice at a position does in one step.

    Where the longest move from a position just reaches the goal's box, the chance to end is high, and nowhere
    beside it. A node that happens to lie there must not speak for its neighbourhood: `nearby` averages.

    Args:
        position: `[..., 2]`.
        choices: at that position.
        goal: `[2]`.
        env: task family.
        config: the grid.
        nearby: `[..., 2, J]` shifts of the position, over which the chance to end is averaged if given.
    """
    limit, radius, scale = env.config.max_move, env.config.goal_radius, env.config.action_scale
    mean = choices.dist.mean / scale
    std = jnp.broadcast_to(jnp.maximum(jnp.exp(choices.dist.log_std) / scale, 1e-9), mean.shape)
    fine = (config.move_nodes - 1) * config.reward_parts + 1
    nodes, weights = jnp.linspace(-limit, limit, fine), node_weights(mean, std, limit, fine)
    to_goal = (goal - position)[..., None, :]
    along = jnp.square(to_goal[..., 0, :, None] - nodes)
    distance = jnp.sqrt(along[..., 0, :, None] + along[..., 1, None, :])
    reward = -jnp.einsum("...ci,...ij,...cj->...c", weights[..., 0, :], distance, weights[..., 1, :])
    # A tent is the sum of the finer tents below it.
    coarse, width = jnp.linspace(-limit, limit, config.move_nodes), 2 * limit / (config.move_nodes - 1)
    chances = weights @ jnp.maximum(1 - jnp.abs(nodes[:, None] - coarse) / width, 0.0)
    shifted = to_goal[..., None] if nearby is None else to_goal[..., None] - nearby[..., None, :, :]

    def ends(mean: jax.Array) -> jax.Array:
        box, mean = (shifted - radius, shifted + radius), mean[..., None]
        return jnp.mean(chance_between(*box, mean, std=std[..., None], limit=limit), axis=-1)

    moves = Moves((chances[..., 0, :], chances[..., 1, :]), reward, jnp.prod(ends(mean), axis=-1), None)
    if choices.slack is None:
        return moves
    slack = choices.slack / scale
    # The chance rises and then falls with the mean, so it is least at one of the two ends.
    least = jnp.prod(jnp.minimum(ends(mean - slack), ends(mean + slack)), axis=-1)
    # Where the noise is sure to be clipped, a little more or less of the mean matters little.
    nearest = jnp.clip(0.0, mean - slack, mean + slack)
    slack = slack * (normal_cdf((limit - nearest) / std) - normal_cdf((-limit - nearest) / std))
    return moves._replace(reward=reward - safe_norm(slack), ends=least, slack=slack)


def look_ahead(moves: Moves, nearby: jax.Array, at_goal: jax.Array, *, env: Navigation2D) -> jax.Array:
    """Expected return `[..., C]` of every choice.

    Args:
        moves: of `expected_moves`.
        nearby: `[..., M, M]` value after each move between nodes.
        at_goal: `[]` value at the goal, which an episode that ends there forgoes.
        env: task family.
    """
    expected = jnp.einsum("...ci,...ij,...cj->...c", moves.chances[0], nearby, moves.chances[1])
    if moves.slack is not None:
        per_unit = (nearby.shape[-1] - 1) / (2 * env.config.max_move)
        steepest = [jnp.max(jnp.abs(jnp.diff(nearby, axis=axis)), axis=(-2, -1)) for axis in (-2, -1)]
        charge = jnp.sum(moves.slack * (per_unit * jnp.stack(steepest, axis=-1))[..., None, :], axis=-1)
        # However steep, no move leads to less than the least value nearby.
        expected = jnp.maximum(expected - charge, jnp.min(nearby, axis=(-2, -1))[..., None])
    return moves.reward + expected - moves.ends * at_goal


def solve(choose: Choose, goal: jax.Array, *, env: Navigation2D, config: PlanConfig) -> Plan:
    """The least value of every position at every time, backwards from the end.

    Args:
        choose: what the attacker can choose between.
        goal: `[2]`.
        env: task family.
        config: the grid.
    """
    nodes = jnp.asarray(axis_nodes(env, config))
    steps = jnp.linspace(-env.config.max_move, env.config.max_move, config.move_nodes)

    # The middles of parts of what lies nearer to a node than to its neighbours.
    parts = (np.arange(config.end_parts) + 0.5) / config.end_parts - 0.5
    around = jnp.asarray(np.gradient(axis_nodes(env, config))[:, None] * parts, nodes.dtype)

    def moves_of_row(row: tuple[jax.Array, jax.Array]) -> Moves:
        position, nearby = (
            jnp.stack([jnp.broadcast_to(one, all.shape), all], axis=1)
            for one, all in zip(row, (nodes, around), strict=True)
        )
        choices = choose(position)
        return expected_moves(position, choices, goal, env=env, config=config, nearby=nearby)

    moves = jax.lax.map(moves_of_row, (nodes, around))
    after, at_goal = tents(nodes, nodes[:, None] + steps), tents(nodes, goal)

    def back(value: jax.Array, _: None) -> tuple[jax.Array, jax.Array]:
        nearby = jnp.einsum("axg,gh,byh->abxy", after, value, after, precision="highest")
        returns = look_ahead(moves, nearby, interpolate(value, *at_goal), env=env)
        return jnp.min(returns, axis=-1), value

    last = jnp.zeros((nodes.shape[0],) * 2)
    first, later = jax.lax.scan(back, last, length=env.horizon, reverse=True)
    return Plan(nodes, goal, jnp.concatenate([first[None], later]))


def plan_value(plan: Plan, position: jax.Array) -> jax.Array:
    """Value `[...]` of a whole episode from positions `[..., 2]`."""
    weights = tents(plan.nodes, position)
    return interpolate(plan.values[0], weights[..., 0, :], weights[..., 1, :])


def planned_attack(policy: Policy, env: Navigation2D, config: PlanConfig | None = None) -> Attack:
    """The greedy attack of a plan: at each step it looks one step ahead from the true position.

    It tries what the plan tried, and then directions up to the neighbours of the best one. Its parameters are
    a `Plan`, its memory counts steps.

    Args:
        policy: the one that was solved for.
        env: task family.
        config: that of the plan.
    """
    config = config or PlanConfig()
    nodes = axis_nodes(env, config)
    steps = jnp.linspace(-env.config.max_move, env.config.max_move, config.move_nodes)
    turns = 2 * math.pi / config.directions * np.linspace(-1, 1, config.between)
    rotations = np.array([[np.cos(turns), np.sin(turns)], [-np.sin(turns), np.cos(turns)]], np.float32)

    def init(key: jax.Array) -> Plan:
        values = jnp.zeros((env.horizon + 1, nodes.size, nodes.size))
        return Plan(jnp.asarray(nodes), jnp.zeros(2), values)

    def perturb(
        params: Plan, memory: jax.Array, key: jax.Array, obs: jax.Array, scene: Scene, budget: Budget
    ) -> tuple[jax.Array, jax.Array]:
        values, after = params.values[memory + 1], tents(params.nodes, obs[:, None] + steps)
        nearby = jnp.einsum("xg,gh,yh->xy", *(after[0], values, after[1]), precision="highest")
        at_goal = interpolate(values, *tents(params.nodes, params.goal))

        def best(points: jax.Array) -> jax.Array:
            choices = choices_at(scene.policy_params, obs, points, budget, policy)
            moves = expected_moves(obs, choices, params.goal, env=env, config=config)
            return points[jnp.argmin(look_ahead(moves, nearby, at_goal, env=env))]

        coarse = best(jnp.asarray(polar_points(config.directions, config.shells)))
        # The first is the coarse one itself, for the case that nothing around it is better.
        point = best(jnp.stack([coarse, *(coarse @ rotations[..., i] for i in range(config.between))]))
        return obs + budget.radius * point * budget.units.scale, memory + 1

    return Attack(init, lambda key: jnp.zeros((), jnp.int32), perturb, THREAT)


def planned_returns(
    params: Params,
    key: jax.Array,
    goals: jax.Array,
    budget: Budget,
    *,
    env: Navigation2D,
    policy: Policy,
    num_trajectories: int,
    config: PlanConfig | None = None,
) -> Truth:
    """Plans the attack on the policy of every task, and runs it. One task at a time, to bound the memory.

    Args:
        params: of the policy, leading axis `N`: one adapted policy per task.
        key: of the episodes.
        goals: `[N, 2]`.
        budget: of the attack, its radius `[]`.
        env: task family.
        policy: any Gaussian policy of the position.
        num_trajectories: episodes per task.
        config: the grid.
    """
    config = config or PlanConfig()
    attack = planned_attack(policy, env, config)

    def one_task(task: tuple[Params, jax.Array, jax.Array]) -> Truth:
        params, key, goal = task
        plan = solve(
            tried_choices(params, budget, policy=policy, config=config), goal, env=env, config=config
        )
        episodes = collect(
            params,
            plan,
            key,
            goal,
            num_trajectories=num_trajectories,
            env=env,
            policy=policy,
            attack=attack,
            budget=budget,
            is_query=True,
        )
        return Truth(episode_returns(episodes), plan_value(plan, jnp.zeros(2)))

    return jax.lax.map(one_task, (params, jax.random.split(key, goals.shape[0]), goals))


def relaxed_values(
    params: Params,
    goals: jax.Array,
    budget: Budget,
    *,
    env: Navigation2D,
    policy: Policy,
    activation: str = "tanh",
    config: PlanConfig | None = None,
) -> jax.Array:
    """Lower bounds `[N]` of the return that an attack can leave, up to the error of the grid; see above.

    Args:
        params: of `make_policy`, leading axis `N`: one adapted policy per task.
        goals: `[N, 2]`.
        budget: of the attack, its radius `[]`.
        env: task family.
        policy: of `make_policy`.
        activation: of the policy.
        config: the grid.
    """
    config = config or PlanConfig()

    def one_task(task: tuple[Params, jax.Array]) -> jax.Array:
        params, goal = task
        choose = relaxed_choices(params, budget, policy=policy, config=config, activation=activation)
        return plan_value(solve(choose, goal, env=env, config=config), jnp.zeros(2))

    return jax.lax.map(one_task, (params, goals))
