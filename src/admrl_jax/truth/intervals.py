"""Which mean actions an attack can cause: sound bounds of a policy's network.

Two kinds. `mean_bounds` propagates intervals (Gowal et al. 2018): cheap, and loose for all but small
perturbations. `affine_bounds` replaces each activation by a line plus an error (Zhang et al. 2018, "CROWN";
Singh et al. 2018, "DeepZ"); over a small polytope of perturbations it is as good as exact.

Both are widened by what rounding can add, so that no perturbation that `ThreatModel.measure` accepts escapes
them. That is for devices that multiply in float32. Where factors are rounded first (TF32), give its relative
rounding, 2^-10, as `rounding`.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from admrl_jax.attacks.threat import Budget
from admrl_jax.core.networks import ACTIVATIONS, tanh
from admrl_jax.core.types import Params

FLOAT32 = 2.0**-23
"""Relative rounding of a product."""


class Interval(NamedTuple):
    """Elementwise bounds `[..., A]`, `low` nowhere above `high`."""

    low: jax.Array
    high: jax.Array


class Affine(NamedTuple):
    """Bounds that follow the perturbation: at an offset `d` the mean is `centre + d @ slope`, up to `error`.

    Attributes:
        centre: `[..., A]`.
        slope: `[..., O, A]` per unit of raw observation.
        error: `[..., A]`.
    """

    centre: jax.Array
    slope: jax.Array
    error: jax.Array


SPANS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "l2": lambda kernel: jnp.sqrt(jnp.sum(jnp.square(kernel), axis=0)),
    "linf": lambda kernel: jnp.sum(jnp.abs(kernel), axis=0),
}
"""How far the unit ball of a norm moves `x @ kernel` `[J]`: the dual norm of each column of `[O, J]`."""

KINKS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "tanh": lambda slope: jnp.arctanh(jnp.sqrt(1 - jnp.clip(slope, 1e-6, 1.0))),
    "relu": jnp.zeros_like,
    "leaky_relu": jnp.zeros_like,
}
"""Where an activation differs most from a line of the slope `[...]`: at plus and minus this."""


def accepted_radius(obs: jax.Array, budget: Budget) -> jax.Array:
    """The radius `[...]` at observations `[..., O]`, and twice what `ThreatModel.measure` forgives."""
    magnitude = jnp.max(jnp.abs(budget.units.shift(obs)), axis=-1)
    forgiven = 8 * FLOAT32 * (1 + magnitude) * obs.shape[-1] ** 0.5
    return jnp.asarray(budget.radius) * (1 + 4 * FLOAT32) + 2 * forgiven


def mean_bounds(
    params: Params,
    obs: jax.Array,
    budget: Budget,
    *,
    norm: str = "l2",
    activation: str = "tanh",
    rounding: float = FLOAT32,
) -> Interval:
    """Bounds of the mean action `[..., A]` over all perturbations that a budget allows.

    The first layer is bounded exactly, the others by the intervals before them (Gowal et al. 2018, Eq. 6).

    Args:
        params: of `make_policy`.
        obs: `[..., O]` true observations.
        budget: its radius is `[]` or `[...]`.
        norm: of the budget, one of `SPANS`.
        activation: of the policy, one of `KINKS`.
        rounding: relative error of a product on this device.
    """
    first, *rest = _layers(params)
    act = ACTIVATIONS[activation]
    scale = jnp.broadcast_to(jnp.asarray(budget.units.scale, obs.dtype), obs.shape[-1:])
    radius = accepted_radius(obs, budget)[..., None]
    centre = obs @ first["kernel"] + first["bias"]
    half_width = radius * SPANS[norm](scale[:, None] * first["kernel"])
    half_width = half_width + _slack(first, jnp.abs(obs) + radius * scale, rounding)
    for layer in rest:
        low, high = act(centre - half_width), act(centre + half_width)
        middle, reach = (high + low) / 2, (high - low) / 2 + _act_slack(low, high)
        centre = middle @ layer["kernel"] + layer["bias"]
        half_width = reach @ jnp.abs(layer["kernel"]) + _slack(layer, jnp.abs(middle) + reach, rounding)
    return Interval(centre - half_width, centre + half_width)


def affine_bounds(
    params: Params,
    obs: jax.Array,
    corners: jax.Array,
    *,
    activation: str = "tanh",
    rounding: float = FLOAT32,
) -> Affine:
    """Bounds of the mean action over the convex hull of some perturbations.

    Every activation becomes the chord of its interval, plus and minus its largest distance from that. The
    errors of all hidden layers are carried to the output by the product of the slopes behind them.

    Args:
        params: of `make_policy`.
        obs: `[..., O]` true observations.
        corners: `[..., V, O]` raw perturbations.
        activation: of the policy, one of `KINKS`.
        rounding: relative error of a product on this device.
    """
    first, *rest = _layers(params)
    lead = jnp.broadcast_shapes(obs.shape[:-1], corners.shape[:-2])
    slope = jnp.broadcast_to(first["kernel"], (*lead, *first["kernel"].shape))
    centre = jnp.broadcast_to(obs @ first["kernel"] + first["bias"], (*lead, first["bias"].shape[0]))
    furthest = jnp.max(jnp.abs(corners), axis=-2)
    error = slack = _slack(first, jnp.abs(obs) + furthest, rounding)
    # What the perturbation moves, cancellation left out: for the rounding of `slope`.
    moved = furthest @ jnp.abs(first["kernel"])
    hidden = []
    for layer in rest:
        # Written out: neither a batch of tiny matrix products nor a sum over a short axis compiles well.
        moves = sum(corners[..., i, None] * slope[..., None, i, :] for i in range(corners.shape[-1]))
        low, high = centre + jnp.min(moves, axis=-2) - error, centre + jnp.max(moves, axis=-2) + error
        line, offset, distance = _chord(low, high, activation)
        hidden.append((line, distance + line * slack))
        centre, moved = line * centre + offset, line * moved
        slack = _slack(layer, jnp.abs(centre) + moved + line * error + distance, rounding)
        error = (line * error + distance) @ jnp.abs(layer["kernel"]) + slack
        slope = (line[..., None, :] * slope) @ layer["kernel"]
        centre, moved = centre @ layer["kernel"] + layer["bias"], moved @ jnp.abs(layer["kernel"])
    behind, carried = jnp.broadcast_to(rest[-1]["kernel"].T, (*lead, *rest[-1]["kernel"].T.shape)), slack
    for layer, (line, distance) in zip(reversed([None, *rest[:-1]]), reversed(hidden), strict=True):
        carried = carried + jnp.sum(jnp.abs(behind) * distance[..., None, :], axis=-1)
        behind = behind if layer is None else (behind * line[..., None, :]) @ layer["kernel"].T
    # The products behind round too, in the sixth digit.
    return Affine(centre, slope, (1 + 256 * rounding) * jnp.minimum(carried, error))


def _layers(params: Params) -> list[dict[str, jax.Array]]:
    named = params["mean"]["params"]
    layers = [named[f"Dense_{number}"] for number in range(len(named))]
    if "context" in params:
        # No attack reaches it: it moves what the first layer adds.
        size = params["context"].shape[0]
        kernel, bias = layers[0]["kernel"][:-size], layers[0]["bias"]
        layers[0] = {"kernel": kernel, "bias": bias + tanh(params["context"]) @ layers[0]["kernel"][-size:]}
    return layers


def _slack(layer: dict[str, jax.Array], largest: jax.Array, rounding: float) -> jax.Array:
    """How far sums of products with an input of size `largest` `[..., I]` may be off, twice over."""
    kernel = layer["kernel"]
    total = largest @ jnp.abs(kernel) + jnp.abs(layer["bias"])
    return 2 * (kernel.shape[0] + 4) * rounding * total


def _act_slack(low: jax.Array, high: jax.Array) -> jax.Array:
    """How far activations between two values may be off."""
    return 8 * FLOAT32 * (1 + jnp.maximum(jnp.abs(low), jnp.abs(high)))


def _chord(low: jax.Array, high: jax.Array, activation: str) -> tuple[jax.Array, jax.Array, jax.Array]:
    """`(slope, offset, error)` of a line along an activation on `[low, high]`.

    Any slope is sound: the error is that of the furthest point, and those are the ends and `KINKS`.
    """
    act = ACTIVATIONS[activation]
    at_low, at_high = act(low), act(high)
    slope = jnp.clip((at_high - at_low) / jnp.maximum(high - low, 1e-12), 0.0, 1.0)
    kink = KINKS[activation](slope)
    points = (low, high, jnp.clip(kink, low, high), jnp.clip(-kink, low, high))
    gaps = jnp.stack([act(x) - slope * x for x in points])
    least, most = jnp.min(gaps, axis=0), jnp.max(gaps, axis=0)
    furthest = jnp.maximum(jnp.abs(low), jnp.abs(high))
    slack = _act_slack(at_low, at_high) + 8 * FLOAT32 * slope * furthest
    return slope, (most + least) / 2, (most - least) / 2 + slack
