"""The grid over which the strongest attack in 2D navigation is computed."""

import math
from dataclasses import dataclass
from typing import Annotated

import numpy as np

from admrl_jax.core.settings import ABOVE_ONE, POSITIVE, whole_from
from admrl_jax.envs.navigation import Navigation2D


@dataclass(frozen=True, kw_only=True)
class PlanConfig:
    """Grid of positions, and what the attacker tries at each."""

    spacing: Annotated[float, POSITIVE] = 1 / 30
    """Between nodes in the middle."""
    middle: Annotated[float, POSITIVE] = 1.5
    """Half-width of the square with that spacing."""
    growth: Annotated[float, ABOVE_ONE] = 1.25
    """Of the spacing, from node to node, beyond the middle."""
    move_nodes: Annotated[int, whole_from(2, 101)] = 8
    """Per axis of a move, between which the next value is linear. Multiples of 8 are fast."""
    reward_parts: Annotated[int, whole_from(1, 10)] = 2
    """Of each such piece, in which the distance is linear: its kink at the goal is sharp."""
    end_parts: Annotated[int, whole_from(1, 100)] = 8
    """Per axis of a node's neighbourhood, over which the chance to end is averaged."""
    directions: Annotated[int, whole_from(3, 1000)] = 24
    """Of perturbations that are tried at every node."""
    shells: Annotated[int, whole_from(1, 100)] = 1
    """Sizes that are tried in each direction, the largest the whole radius."""
    between: Annotated[int, whole_from(1, 1000)] = 11
    """Directions around the best of these that the greedy attack tries as well."""
    mesh_directions: Annotated[int, whole_from(3, 1000)] = 24
    """The same for the polygons of the relaxed value."""
    mesh_shells: Annotated[int, whole_from(1, 100)] = 4
    """The same for the polygons of the relaxed value."""


def axis_nodes(env: Navigation2D, config: PlanConfig) -> np.ndarray:
    """Nodes `[G]` of an axis, out to what can be reached, symmetric around 0."""
    reach = env.horizon * env.config.max_move
    count, step = math.ceil(min(config.middle, reach) / config.spacing), config.spacing
    nodes = [step * number for number in range(count + 1)]
    while nodes[-1] < reach:
        step *= config.growth
        nodes.append(nodes[-1] + step)
    return np.array([-x for x in nodes[:0:-1]] + nodes, np.float32)
