"""Defences by name. A new one is a file with its `DefenceSpec`, and a line here."""

from admrl_jax.defences import adgan, fixed, population, smooth
from admrl_jax.defences.base import DefenceSpec

DEFENCES: dict[str, DefenceSpec] = {
    spec.name: spec
    for spec in (
        fixed.NONE_SPEC,
        fixed.NOISE_SPEC,
        fixed.FGSM_SPEC,
        adgan.SPEC,
        smooth.SPEC,
        population.SPEC,
    )
}

UNDEFENDED = fixed.NONE_SPEC.name
"""The defence that leaves training as it is."""
