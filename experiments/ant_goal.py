"""The paper's protocol on Ant-Goal: `python -m experiments.ant_goal`."""

import sys

from admrl_jax.commands.experiment import main
from admrl_jax.envs.ant import AntGoalConfig
from experiments.presets import presets_for

PRESETS = presets_for(AntGoalConfig())

if __name__ == "__main__":
    sys.exit(main("experiments.ant_goal", __doc__ or "", PRESETS))
