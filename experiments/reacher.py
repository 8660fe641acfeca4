"""The paper's protocol on Reacher: `python -m experiments.reacher`."""

import sys

from admrl_jax.env_config import ReacherConfig
from experiments.command_line import main
from experiments.presets import physics_presets

PRESETS = physics_presets(ReacherConfig())

if __name__ == "__main__":
    sys.exit(main("experiments.reacher", __doc__ or "", PRESETS))
