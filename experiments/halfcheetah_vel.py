"""The paper's protocol on HalfCheetah-Vel: `python -m experiments.halfcheetah_vel`."""

import sys

from admrl_jax.env_config import HalfCheetahVelConfig
from experiments.command_line import main
from experiments.presets import physics_presets

PRESETS = physics_presets(HalfCheetahVelConfig())

if __name__ == "__main__":
    sys.exit(main("experiments.halfcheetah_vel", __doc__ or "", PRESETS))
