"""The paper's protocol on Hopper with random dynamics: `python -m experiments.hopper_params`."""

import sys

from admrl_jax.commands.experiment import main
from admrl_jax.envs.random_dynamics import HopperParamsConfig
from experiments.presets import presets_for

PRESETS = presets_for(HopperParamsConfig(), inner_lr=0.05)

if __name__ == "__main__":
    sys.exit(main("experiments.hopper_params", __doc__ or "", PRESETS))
