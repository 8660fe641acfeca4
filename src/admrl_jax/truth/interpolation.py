"""Linear interpolation on a table, and its expectation under a Gaussian that is clipped."""

import jax
import jax.numpy as jnp


def node_weights(mean: jax.Array, std: jax.Array, limit: float, count: int) -> jax.Array:
    """Expected weights `[..., count]` of linear interpolation at a Gaussian that is clipped.

    The nodes are evenly spaced from `-limit` to `limit`. With `g(a) = E max(X - a, 0)` the weight of an inner
    node is the second difference of `g` over the spacing; the tails fall on the outermost nodes.

    Args:
        mean: `[...]`.
        std: `[...]`, 0 allowed.
        limit: at which it is clipped, on both sides.
        count: of nodes.
    """
    over = mean[..., None] - jnp.linspace(-limit, limit, count)
    std = jnp.maximum(std, 1e-9)[..., None]
    above = std * jax.scipy.stats.norm.pdf(over / std) + over * normal_cdf(over / std)
    shares = (above[..., :-1] - above[..., 1:]) * ((count - 1) / (2 * limit))
    ends = jnp.ones_like(shares[..., :1])
    return -jnp.diff(jnp.concatenate([ends, shares, 0 * ends], axis=-1), axis=-1)


def chance_between(
    low: jax.Array, high: jax.Array, mean: jax.Array, *, std: jax.Array, limit: float
) -> jax.Array:
    """Chance `[...]` that a Gaussian, clipped to `-limit` and `limit`, falls between two numbers."""
    std = jnp.maximum(std, 1e-9)

    def below(x: jax.Array) -> jax.Array:
        inside = normal_cdf((x - mean) / std)
        return jnp.where(x > limit, 1.0, jnp.where(x <= -limit, 0.0, inside))

    return below(high) - below(low)


def normal_cdf(x: jax.Array) -> jax.Array:
    """To seven digits, not in the far tail."""
    return 0.5 + 0.5 * jax.lax.erf(x * 0.5**0.5)


def tents(nodes: jax.Array, at: jax.Array) -> jax.Array:
    """Weights `[..., G]` of linear interpolation between nodes `[G]` at `[...]`; constant beyond the last."""
    share = jnp.clip((at[..., None] - nodes[:-1]) / jnp.diff(nodes), 0.0, 1.0)
    ends = jnp.ones_like(share[..., :1])
    return -jnp.diff(jnp.concatenate([ends, share, 0 * ends], axis=-1), axis=-1)


def interpolate(values: jax.Array, x: jax.Array, y: jax.Array) -> jax.Array:
    """Values `[...]` of a table `[G, G]` at weights `[..., G]` of both coordinates."""
    return jnp.einsum("...g,gh,...h->...", x, values, y, precision="highest")
