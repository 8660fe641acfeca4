"""The paper's protocol on Ant-Vel: `python -m experiments.ant_vel`."""

import sys

from admrl_jax.env_config import AntVelConfig
from experiments.command_line import main
from experiments.presets import physics_presets

PRESETS = physics_presets(AntVelConfig())

if __name__ == "__main__":
    sys.exit(main("experiments.ant_vel", __doc__ or "", PRESETS))
