"""What an attacker can make a policy of the position do: the choices that a plan is made of.

Either perturbations that are tried, each with the action that it really causes, or the corners of cells that
cover the whole ball, each with the slack by which everything within its cells may differ.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from admrl_jax.attacks.threat import Budget
from admrl_jax.core.gaussian import Gaussian
from admrl_jax.core.networks import Policy
from admrl_jax.core.types import Params
from admrl_jax.truth.grid import PlanConfig
from admrl_jax.truth.intervals import accepted_radius, affine_bounds


class Choices(NamedTuple):
    """What an attacker can choose between at a position.

    Attributes:
        dist: of actions: mean `[..., C, 2]`, log standard deviation that broadcasts to it.
        slack: `[..., C, 2]` by how much the mean may differ; None where perturbations really cause it.
    """

    dist: Gaussian
    slack: jax.Array | None = None


Choose = Callable[[jax.Array], Choices]
"""Choices at positions `[..., 2]`."""


def polar_points(directions: int, shells: int) -> np.ndarray:
    """The centre and points `[1 + shells * directions, 2]` of the unit disc, shell by shell outwards."""
    angles = 2 * np.pi * np.arange(directions) / directions
    circle = np.stack([np.cos(angles), np.sin(angles)], axis=-1)
    sizes = np.sin(np.pi / 2 * (1 + np.arange(shells)) / shells)
    return np.concatenate([np.zeros((1, 2)), *(size * circle for size in sizes)]).astype(np.float32)


def tried_choices(params: Params, budget: Budget, *, policy: Policy, config: PlanConfig) -> Choose:
    """The perturbations that are tried: none, and some directions on each shell of the ball."""
    points = jnp.asarray(polar_points(config.directions, config.shells))
    return lambda position: choices_at(params, position, points, budget, policy)


def choices_at(
    params: Params, position: jax.Array, points: jax.Array, budget: Budget, policy: Policy
) -> Choices:
    """What perturbations cause, given as points `[C, 2]` of the unit disc."""
    return Choices(policy.apply(params, position[..., None, :] + budget.radius * points * budget.units.scale))


def relaxed_choices(
    params: Params, budget: Budget, *, policy: Policy, config: PlanConfig, activation: str = "tanh"
) -> Choose:
    """Corners of a polar mesh that covers the ball, each with the slack of the cells around it.

    Within a cell the mean is an affine function of the perturbation up to `Affine.error`, so it is within
    twice that of the same mixture of the means at the cell's corners.

    Args:
        params: of `make_policy`.
        budget: of the attack.
        policy: the same policy.
        config: sizes of the mesh.
        activation: of the policy.
    """
    directions, shells = config.mesh_directions, config.mesh_shells
    # Chords cut off a little of the disc: the polygon goes around it.
    points = polar_points(directions, shells) / math.cos(math.pi / directions)
    around = 1 + np.arange(shells * directions).reshape(shells, directions)
    inner = np.concatenate([np.zeros((1, directions), int), around[:-1]])
    cells = np.stack([inner, np.roll(inner, -1, axis=1), around, np.roll(around, -1, axis=1)], axis=-1)

    def choose(position: jax.Array) -> Choices:
        radius = accepted_radius(position, budget)[..., None, None]
        offsets = radius * jnp.asarray(points) * budget.units.scale
        corners = offsets[..., cells, :].reshape(*offsets.shape[:-2], shells * directions, 4, 2)
        error = affine_bounds(params, position[..., None, :], corners, activation=activation).error
        error = error.reshape(*error.shape[:-2], shells, directions, 2)
        beside = jnp.maximum(error, jnp.roll(error, 1, axis=-2))
        beyond = jnp.concatenate([beside[..., 1:, :, :], beside[..., -1:, :, :]], axis=-3)
        on_shells = jnp.maximum(beside, beyond).reshape(*offsets.shape[:-2], -1, 2)
        at_centre = jnp.max(error[..., 0, :, :], axis=-2, keepdims=True)
        slack = 2 * jnp.concatenate([at_centre, on_shells], axis=-2)
        return Choices(policy.apply(params, position[..., None, :] + offsets), slack)

    return choose
