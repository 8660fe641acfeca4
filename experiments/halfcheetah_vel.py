"""The paper's protocol on HalfCheetah-Vel: `python -m experiments.halfcheetah_vel`."""

import sys

from admrl_jax.commands.experiment import main
from admrl_jax.envs.half_cheetah import HalfCheetahVelConfig
from experiments.presets import presets_for

PRESETS = presets_for(HalfCheetahVelConfig())

if __name__ == "__main__":
    sys.exit(main("experiments.halfcheetah_vel", __doc__ or "", PRESETS))
