"""The paper's protocol on Walker2d with random dynamics: `python -m experiments.walker2d_params`."""

import sys

from admrl_jax.commands.experiment import main
from admrl_jax.envs.random_dynamics import Walker2dParamsConfig
from experiments.presets import presets_for

PRESETS = presets_for(Walker2dParamsConfig(), inner_lr=0.05)

if __name__ == "__main__":
    sys.exit(main("experiments.walker2d_params", __doc__ or "", PRESETS))
