"""adGAN: a generator of perturbations, trained against the policy and a discriminator (paper, IV)."""

import functools
from dataclasses import dataclass, replace
from typing import Annotated

from admrl_jax.attacks.base import Attack, AttackSpec, Victim
from admrl_jax.attacks.generator import generator_attack
from admrl_jax.attacks.learned.adgan.config import AdGANConfig
from admrl_jax.attacks.learned.adgan.state import AdGAN, AdGANState, init_adgan, make_adgan
from admrl_jax.attacks.learned.adgan.steps import update_adgan
from admrl_jax.attacks.learned.trainer import AttackTrainer
from admrl_jax.attacks.threat import make_threat
from admrl_jax.core.settings import NOT_NEGATIVE, ConfigError

__all__ = [
    "SPEC",
    "SPEC_ALL_RADII",
    "SPEC_NO_GAN",
    "AdGAN",
    "AdGANConfig",
    "AdGANState",
    "adgan_attack",
    "make_adgan_trainer",
]

THREAT = make_threat(label="adGAN", norm="l2", strength="L2 radius", knowledge="policy")
THREAT_ALL_RADII = THREAT._replace(label="adGAN for all radii")
THREAT_NO_GAN = THREAT._replace(label="adGAN without GAN loss")


@dataclass(frozen=True, kw_only=True)
class NoGANConfig(AdGANConfig):
    """adGAN without its GAN loss, which shows what that loss costs the attacker."""

    gan_weight: Annotated[float, NOT_NEGATIVE] = 0.0


def adgan_attack(config: AdGANConfig, victim: Victim) -> Attack:
    """The generator as an attack."""
    return make_adgan_trainer(config, victim).attack


def make_adgan_trainer(
    config: AdGANConfig, victim: Victim, *, is_for_all_radii: bool = False
) -> AttackTrainer:
    """Trains a generator against a policy.

    Args:
        config: settings.
        victim: the policy.
        is_for_all_radii: the generator also reads the budget's radius and learns from tasks at radii up to
            it, so that one serves a whole curve.
    """
    adgan = make_adgan(victim, config, knows_radius=is_for_all_radii)

    def check_batch(num_trajectories: int, horizon: int) -> None:
        samples = num_trajectories * horizon
        if samples % config.num_minibatches:
            raise ConfigError(
                f"num_minibatches: {config.num_minibatches} is not accepted; accepted: a divisor of "
                f"num_trajectories x horizon ({samples})"
            )

    # The loss weights are arrays in the state, so trainers with other weights share the program.
    shape = replace(config, gan_weight=0.0, hinge_weight=0.0)
    return AttackTrainer(
        name="adgan "
        + "all radii " * is_for_all_radii
        + ", ".join(f"{name}={value}" for name, value in sorted(vars(shape).items())),
        attack=generator_attack(adgan.generator, THREAT),
        init=functools.partial(init_adgan, adgan),
        params=lambda state: state.attack_params,
        update=functools.partial(update_adgan, adgan),
        check_batch=check_batch,
        is_for_all_radii=is_for_all_radii,
    )


SPEC = AttackSpec("adgan", THREAT, "#009E73", AdGANConfig, adgan_attack, make_adgan_trainer)
SPEC_NO_GAN = AttackSpec(
    "adgan_no_gan", THREAT_NO_GAN, "#56B4E9", NoGANConfig, adgan_attack, make_adgan_trainer
)


@dataclass(frozen=True, kw_only=True)
class AllRadiiConfig(AdGANConfig):
    """One generator for all radii up to the budget's."""


_make_for_all_radii = functools.partial(make_adgan_trainer, is_for_all_radii=True)
SPEC_ALL_RADII = AttackSpec(
    "adgan_all_radii",
    THREAT_ALL_RADII,
    "#66C2A5",
    AllRadiiConfig,
    lambda config, victim: _make_for_all_radii(config, victim).attack,
    _make_for_all_radii,
)
