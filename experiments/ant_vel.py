"""The paper's protocol on Ant-Vel: `python -m experiments.ant_vel`."""

import sys

from admrl_jax.commands.experiment import main
from admrl_jax.envs.ant import AntVelConfig
from experiments.presets import presets_for

PRESETS = presets_for(AntVelConfig())

if __name__ == "__main__":
    sys.exit(main("experiments.ant_vel", __doc__ or "", PRESETS))
