"""The paper's protocol on Walker2d with random dynamics: `python -m experiments.walker2d_params`."""

import sys

from admrl_jax.config import MAMLConfig
from admrl_jax.env_config import Walker2dParamsConfig
from experiments.command_line import main
from experiments.presets import physics_presets

PRESETS = physics_presets(Walker2dParamsConfig(), MAMLConfig(inner_lr=0.05))

if __name__ == "__main__":
    sys.exit(main("experiments.walker2d_params", __doc__ or "", PRESETS))
