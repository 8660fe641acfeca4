"""Attacks by name. A new one is a file with its `AttackSpec`, and a line here."""

from typing import Any

from admrl_jax.attacks import fgsm, noise, pgd, sensor, stuck_sensor
from admrl_jax.attacks.base import Attack, AttackSpec, Victim
from admrl_jax.attacks.learned import (
    actor,
    adgan,
    black_box,
    counter_action,
    critic,
    director,
    misstep,
    pipeline,
    snoop,
)
from admrl_jax.attacks.learned.trainer import AttackTrainer
from admrl_jax.core.settings import ConfigError

ATTACKS: dict[str, AttackSpec] = {
    spec.name: spec
    for spec in (
        noise.NONE_SPEC,
        noise.GAUSSIAN_SPEC,
        noise.UNIFORM_SPEC,
        noise.CORNER_SPEC,
        noise.L2_SPEC,
        stuck_sensor.SPEC,
        sensor.DROPOUT_SPEC,
        sensor.BIAS_SPEC,
        sensor.DELAY_SPEC,
        fgsm.SPEC,
        pgd.SPEC,
        pgd.SPEC_LINF,
        pgd.SPEC_COUNTER,
        critic.SPEC,
        snoop.SPEC,
        adgan.SPEC,
        adgan.SPEC_NO_GAN,
        adgan.SPEC_ALL_RADII,
        actor.SPEC,
        director.SPEC,
        pipeline.SPEC,
        counter_action.SPEC,
        misstep.SPEC,
        black_box.SPEC,
    )
}

CLEAN = noise.NONE_SPEC.name
"""The attack that leaves observations as they are."""


def attack_spec(name: str) -> AttackSpec:
    """The spec of an attack.

    Raises:
        ConfigError: there is none of that name.
    """
    if name not in ATTACKS:
        raise ConfigError(f"attack: {name!r} is not known; accepted: {', '.join(ATTACKS)}")
    return ATTACKS[name]


def make_attack(name: str, victim: Victim, config: Any = None) -> Attack:
    """Builds an attack by its name; a learned one comes untrained.

    Args:
        name: one of `ATTACKS`.
        victim: the policy's functions and sizes.
        config: its settings, the defaults if None.

    Raises:
        ConfigError: there is no such attack.
    """
    spec = attack_spec(name)
    return spec.make(spec.config() if config is None else config, victim)


def make_attack_trainer(name: str, victim: Victim, config: Any = None) -> AttackTrainer:
    """Builds the trainer of a learned attack by its name.

    Args:
        name: one of `ATTACKS`.
        victim: the policy's functions and sizes.
        config: its settings, the defaults if None.

    Raises:
        ConfigError: there is no such attack, or it learns nothing.
    """
    spec = attack_spec(name)
    if spec.make_trainer is None:
        learned = [other.name for other in ATTACKS.values() if other.make_trainer]
        raise ConfigError(f"attack: {name!r} learns nothing; accepted: {', '.join(learned)}")
    return spec.make_trainer(spec.config() if config is None else config, victim)
