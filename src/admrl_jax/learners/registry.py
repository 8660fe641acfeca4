"""Learners by name. A new one is a file with its `LearnerSpec`, and a line here."""

from admrl_jax.learners import maml_trpo, promp
from admrl_jax.learners.base import LearnerSpec

LEARNERS: dict[str, LearnerSpec] = {spec.name: spec for spec in (maml_trpo.SPEC, promp.SPEC)}
