"""Policies and plain networks (flax Linen) as `(init, apply)` pairs.

The rest of the library sees parameters as plain pytrees and never a Linen module.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from admrl_jax.core import gaussian
from admrl_jax.core.gaussian import Gaussian
from admrl_jax.core.settings import (
    COUNT_OR_ZERO,
    NOT_NEGATIVE,
    POSITIVE,
    SIZES,
    check_order,
    one_of,
    refusal,
)
from admrl_jax.core.types import Params


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
        part: `(params, name) -> pytree` like the parameters, 1 for those of a part that `PARTS` names, else
            0; by default the policy is all one part.
        explore: of a policy that tries another context in every episode before it adapts; else None.
    """

    init: Callable[[jax.Array], Params]
    apply: Callable[[Params, jax.Array], Gaussian]
    part: Callable[[Params, str], Params] = lambda params, name: jax.tree.map(lambda x: 1.0, params)
    explore: "Exploration | None" = None

    def acting(self, params: Params, context: Any) -> Params:
        """The policy as it acts with another context `[..., C]`; as it is with `()`."""
        is_given = self.explore and not isinstance(context, tuple)
        return {**params, "context": context} if is_given else params


class Exploration(NamedTuple):
    """How a policy tries contexts (Gupta et al. 2018, "MAESN"): one in each episode, around its own.

    Attributes:
        std: standard deviation of each of a context's numbers.
    """

    std: float

    def draw(self, params: Params, key: jax.Array, is_query: jax.Array | bool) -> jax.Array:
        """The context `[C]` that acts in an episode: the policy's own once it has adapted."""
        own = params["context"]
        return jnp.where(is_query, own, own + self.std * jax.random.normal(key, own.shape, own.dtype))

    def log_prob(self, params: Params, context: jax.Array) -> jax.Array:
        """Log density `[...]` of contexts `[..., C]`."""
        log_std = jnp.full_like(params["context"], math.log(self.std))
        return gaussian.log_prob(Gaussian(params["context"], log_std), context)


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


STD_FLOORS = ("smooth", "hard")
"""How a policy's standard deviation is kept above `min_std`; see `make_policy`."""


PARTS = ("all", "head", "context")
"""Parts of a policy: all of it; what comes after the last hidden layer; the context, see `PolicyConfig`."""


@dataclass(frozen=True, kw_only=True)
class PolicyConfig:
    """Gaussian MLP policy."""

    hidden_sizes: Annotated[tuple[int, ...], SIZES] = (64, 64)
    activation: Annotated[str, one_of("tanh", "relu")] = "tanh"
    """tanh or relu."""
    init_std: Annotated[float, POSITIVE] = 1.0
    """Standard deviation of an untrained policy's actions."""
    min_std: Annotated[float, POSITIVE] = 1e-6
    """Floor of the standard deviation, also after adaptation. A high one keeps exploration wide, and rules
    out policies that ignore what they observe: their actions' noise alone then costs too much."""
    std_floor: Annotated[str, one_of(*STD_FLOORS)] = "smooth"
    """smooth: the deviation nears the floor and can always come back. hard: cut off at the floor, as in
    common MAML code; below it nothing can raise the deviation again."""
    context_size: Annotated[int, COUNT_OR_ZERO] = 0
    """Inputs beside the observation that are parameters and start at 0, for a learner that adapts nothing
    else (CAVIA, Zintgraf et al. 2019). They are read through tanh: no data push them beyond 1."""
    context_std: Annotated[float, NOT_NEGATIVE] = 0.0
    """Before it adapts, the policy acts with a context drawn anew for every episode, with this standard
    deviation around its own. Adaptation then weighs contexts by the returns of their episodes, and reads no
    observation: an attack reaches it through what the policy does, and in no other way. 0: it weighs actions
    by their advantages."""

    def check(self, prefix: str) -> None:
        """A smooth floor is never reached, so the deviation must start above it; what is tried is there."""
        if self.std_floor == "smooth":
            check_order(self, prefix, "min_std", "init_std")
        if self.context_std and not self.context_size:
            raise refusal(f"{prefix}context_size", 0, f"1 or more where {prefix}context_std is above 0")


def make_policy(obs_size: int, action_size: int, config: PolicyConfig | None = None) -> Policy:
    """Gaussian MLP policy with a state-free log standard deviation.

    The floor acts where the policy is read, so it also holds after adaptation. The hard floor,
    `max(log_std, log min_std)`, has no gradient below itself: a deviation that falls there stays. The
    smooth one, `log min_std + softplus(x)`, has one everywhere.

    Args:
        obs_size: length of an observation.
        action_size: length of an action.
        config: sizes, activation and standard deviations.
    """
    config = config or PolicyConfig()
    mlp = MLP(tuple(config.hidden_sizes), action_size, config.activation)
    floor, start = math.log(config.min_std), math.log(config.init_std)
    is_smooth = config.std_floor == "smooth"

    def init(key: jax.Array) -> Params:
        first = math.log(math.expm1(start - floor)) if is_smooth else start
        params = {
            "mean": mlp.init(key, jnp.zeros((obs_size + config.context_size,))),
            "log_std": jnp.full((action_size,), first, float),
        }
        return params | ({"context": jnp.zeros(config.context_size)} if config.context_size else {})

    def apply(params: Params, obs: jax.Array) -> Gaussian:
        if config.context_size:
            context = tanh(params["context"])
            context = jnp.broadcast_to(context, (*obs.shape[:-1], config.context_size))
            obs = jnp.concatenate([obs, context], axis=-1)
        mean = mlp.apply(params["mean"], obs)
        assert isinstance(mean, jax.Array)
        raw = params["log_std"]
        return Gaussian(mean, floor + jax.nn.softplus(raw) if is_smooth else jnp.maximum(raw, floor))

    def part(params: Params, name: str) -> Params:
        last = f"Dense_{len(config.hidden_sizes)}"

        def belongs(path: tuple, _: jax.Array) -> float:
            keys = [entry.key for entry in path]
            is_in = {"all": True, "head": last in keys or "log_std" in keys, "context": "context" in keys}
            return float(is_in[name])

        return jax.tree.map_with_path(belongs, params)

    return Policy(init, apply, part, Exploration(config.context_std) if config.context_std else None)


def make_network(
    input_size: int,
    output_size: int,
    *,
    hidden_sizes: Sequence[int] = (64, 64),
    activation: str = "tanh",
    output_scale: float = 1.0,
) -> Network:
    """A fully connected network `[..., input_size] -> [..., output_size]`.

    Args:
        input_size: length of its input.
        output_size: length of its output.
        hidden_sizes: of the layers between.
        activation: one of `ACTIVATIONS`.
        output_scale: multiplies the usual size of the last layer's first weights.
    """
    mlp = MLP(tuple(hidden_sizes), output_size, activation, output_scale)

    def apply(params: Params, x: jax.Array) -> jax.Array:
        output = mlp.apply(params, x)
        assert isinstance(output, jax.Array)
        return output

    return Network(lambda key: mlp.init(key, jnp.zeros((input_size,))), apply)
