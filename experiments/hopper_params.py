"""The paper's protocol on Hopper with random dynamics: `python -m experiments.hopper_params`."""

import sys

from admrl_jax.config import MAMLConfig
from admrl_jax.env_config import HopperParamsConfig
from experiments.command_line import main
from experiments.presets import physics_presets

PRESETS = physics_presets(HopperParamsConfig(), MAMLConfig(inner_lr=0.05))

if __name__ == "__main__":
    sys.exit(main("experiments.hopper_params", __doc__ or "", PRESETS))
