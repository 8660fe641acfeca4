"""Training under an attack that does not learn: none (clean), Gaussian noise, FGSM."""

from dataclasses import dataclass
from typing import Annotated

from admrl_jax.attacks.base import Attack, Victim
from admrl_jax.attacks.fgsm import fgsm
from admrl_jax.attacks.noise import gaussian_noise, no_attack
from admrl_jax.attacks.threat import SIDES
from admrl_jax.core.settings import NOT_NEGATIVE, SHARE, STEPS_OR_ZERO, one_of
from admrl_jax.defences.base import Defence, DefenceSpec, expose_all


@dataclass(frozen=True, kw_only=True)
class NoDefenceConfig:
    """Clean training has no settings."""


@dataclass(frozen=True, kw_only=True)
class NoiseConfig:
    """Training under Gaussian noise."""

    radius: Annotated[float, NOT_NEGATIVE] = 1.0
    """Standard deviation per dimension (Eq. 13)."""
    ramp_steps: Annotated[int, STEPS_OR_ZERO] = 0
    """Steps over which the radius grows to its full size; 0 starts with all of it."""
    task_share: Annotated[float, SHARE] = 1.0
    """Share of a meta-batch's tasks that are attacked."""
    side: Annotated[str, one_of(*SIDES)] = "both"
    """Data under attack: both, query (after adaptation) or support (before it)."""


@dataclass(frozen=True, kw_only=True)
class FGSMTrainingConfig:
    """Training under FGSM."""

    radius: Annotated[float, NOT_NEGATIVE] = 0.2
    """Step size (Eq. 14); not given in the paper."""
    ramp_steps: Annotated[int, STEPS_OR_ZERO] = 0
    """Steps over which the radius grows to its full size; 0 starts with all of it."""
    task_share: Annotated[float, SHARE] = 1.0
    """Share of a meta-batch's tasks that are attacked."""
    side: Annotated[str, one_of(*SIDES)] = "both"
    """Data under attack: both, query (after adaptation) or support (before it)."""


def train_under(
    attack: Attack,
    name: str,
    *,
    radius: float,
    ramp_steps: int = 0,
    task_share: float = 1.0,
    side: str = "both",
) -> Defence:
    """Training under an attack without parameters to learn.

    Args:
        attack: what support and query rollouts are collected under.
        name: of the attack.
        radius: of its budget.
        ramp_steps: steps over which the radius grows; 0 starts with all of it.
        task_share: share of the tasks that are attacked.
        side: data under attack, one of `SIDES`.
    """
    return Defence(
        name=f"{name} {radius} {ramp_steps} {task_share} {side}",
        init=lambda key, inputs: attack.init(key),
        expose=expose_all(
            attack,
            lambda state: state,
            radius=radius,
            ramp_steps=ramp_steps,
            task_share=task_share,
            side=side,
        ),
    )


def no_defence() -> Defence:
    """Clean training."""
    return train_under(no_attack(), "none", radius=0.0)


def noise_defence(config: NoiseConfig, victim: Victim) -> Defence:
    """Training under Gaussian noise."""
    return train_under(gaussian_noise(), "noise", **vars(config))


def fgsm_defence(config: FGSMTrainingConfig, victim: Victim) -> Defence:
    """Training under FGSM."""
    return train_under(fgsm(victim.policy), "fgsm", **vars(config))


NONE_SPEC = DefenceSpec("none", "none", NoDefenceConfig, lambda config, victim: no_defence())
NOISE_SPEC = DefenceSpec("noise", "Gaussian noise", NoiseConfig, noise_defence)
FGSM_SPEC = DefenceSpec("fgsm", "FGSM", FGSMTrainingConfig, fgsm_defence)
