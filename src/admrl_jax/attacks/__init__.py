"""Observation attacks behind one interface, and the threat model they obey."""

from admrl_jax.attacks.base import (
    Attack,
    Budget,
    Measurement,
    measure_by,
    project_l2,
    safe_norm,
    select,
)
from admrl_jax.attacks.fgsm import fgsm
from admrl_jax.attacks.generator import generator_attack
from admrl_jax.attacks.noise import gaussian_noise, l2_noise, no_attack

__all__ = [
    "Attack",
    "Budget",
    "Measurement",
    "fgsm",
    "gaussian_noise",
    "generator_attack",
    "l2_noise",
    "measure_by",
    "no_attack",
    "project_l2",
    "safe_norm",
    "select",
]
