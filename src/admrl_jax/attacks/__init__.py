"""Observation attacks behind one interface, and the threat model they obey."""

from admrl_jax.attacks.base import (
    Attack,
    Budget,
    budget_excess,
    perturbation_size,
    project_l2,
    safe_norm,
)
from admrl_jax.attacks.fgsm import fgsm
from admrl_jax.attacks.generator import generator_attack
from admrl_jax.attacks.noise import gaussian_noise, l2_noise, no_attack

__all__ = [
    "Attack",
    "Budget",
    "budget_excess",
    "fgsm",
    "gaussian_noise",
    "generator_attack",
    "l2_noise",
    "no_attack",
    "perturbation_size",
    "project_l2",
    "safe_norm",
]
