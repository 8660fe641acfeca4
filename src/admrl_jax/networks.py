"""Policy, generator and discriminator networks (flax Linen) as `(init, apply)` pairs.

The rest of the library sees parameters as plain pytrees and never a Linen module.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from admrl_jax.gaussian import Gaussian
from admrl_jax.types import Params


@jax.custom_jvp
def tanh(x: jax.Array) -> jax.Array:
    """Hyperbolic tangent whose slope is computed from its value alone.

    JAX's own rule spreads the slope over two products, which doubles what the second derivatives of the
    trust-region step compute and keep.
    """
    return jnp.tanh(x)


@tanh.defjvp
def _tanh_jvp(primals: tuple[jax.Array], tangents: tuple[jax.Array]) -> tuple[jax.Array, jax.Array]:
    value = tanh(*primals)
    return value, tangents[0] * ((1 - value) * (1 + value))


ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "tanh": tanh,
    "relu": nn.relu,
    "leaky_relu": lambda x: nn.leaky_relu(x, 0.2),
}


class Policy(NamedTuple):
    """A Gaussian policy.

    Attributes:
        init: `(key) -> Params`.
        apply: `(params, obs [..., O]) -> Gaussian`, mean `[..., A]`.
    """

    init: Callable[[jax.Array], Params]
    apply: Callable[[Params, jax.Array], Gaussian]


class Network(NamedTuple):
    """A deterministic network: `init(key) -> Params`, `apply(params, x [..., I]) -> [..., J]`."""

    init: Callable[[jax.Array], Params]
    apply: Callable[[Params, jax.Array], jax.Array]


class MLP(nn.Module):
    """Fully connected layers, Xavier-uniform kernels and zero biases, linear output."""

    hidden_sizes: Sequence[int]
    output_size: int
    activation: str
    output_scale: float = 1.0

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps `[..., I]` to `[..., J]`."""
        xavier = nn.initializers.xavier_uniform()
        for size in self.hidden_sizes:
            x = ACTIVATIONS[self.activation](nn.Dense(size, kernel_init=xavier)(x))
        last = nn.initializers.variance_scaling(self.output_scale**2, "fan_avg", "uniform")
        return nn.Dense(self.output_size, kernel_init=last)(x)


def make_policy(
    obs_size: int,
    action_size: int,
    *,
    hidden_sizes: Sequence[int] = (64, 64),
    activation: str = "tanh",
    init_std: float = 1.0,
    min_std: float = 1e-6,
) -> Policy:
    """Gaussian MLP policy with a state-free log standard deviation.

    The floor `min_std` acts where the policy is read, so it also holds after adaptation.
    """
    mlp = MLP(tuple(hidden_sizes), action_size, activation)

    def init(key: jax.Array) -> Params:
        mean_params = mlp.init(key, jnp.zeros((obs_size,)))
        return {"mean": mean_params, "log_std": jnp.full((action_size,), math.log(init_std), float)}

    def apply(params: Params, obs: jax.Array) -> Gaussian:
        mean = mlp.apply(params["mean"], obs)
        assert isinstance(mean, jax.Array)
        return Gaussian(mean, jnp.maximum(params["log_std"], math.log(min_std)))

    return Policy(init, apply)


def make_generator(obs_size: int, *, hidden_sizes: Sequence[int] = (64, 64)) -> Network:
    """AdGAN generator body `[..., O] -> [..., O]`, in units of the perturbation radius.

    The last layer starts at 0.3 of the usual size: about as large as the budget. Starting from almost
    nothing would start where a trained victim's return is flat, at its maximum.
    """
    return _network(MLP(tuple(hidden_sizes), obs_size, "tanh", output_scale=0.3), obs_size)


def make_discriminator(obs_size: int, *, hidden_sizes: Sequence[int] = (64, 64)) -> Network:
    """AdGAN discriminator `[..., O] -> [...]`: a score, high for clean observations."""
    body = _network(MLP(tuple(hidden_sizes), 1, "leaky_relu"), obs_size)
    return Network(body.init, lambda params, x: body.apply(params, x)[..., 0])


def _network(mlp: MLP, input_size: int) -> Network:
    def apply(params: Params, x: jax.Array) -> jax.Array:
        output = mlp.apply(params, x)
        assert isinstance(output, jax.Array)
        return output

    return Network(lambda key: mlp.init(key, jnp.zeros((input_size,))), apply)
