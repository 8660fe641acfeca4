"""The paper's protocol on Ant-Goal: `python -m experiments.ant_goal`."""

import sys

from admrl_jax.env_config import AntGoalConfig
from experiments.command_line import main
from experiments.presets import physics_presets

PRESETS = physics_presets(AntGoalConfig())

if __name__ == "__main__":
    sys.exit(main("experiments.ant_goal", __doc__ or "", PRESETS))
