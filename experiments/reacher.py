"""The paper's protocol on Reacher: `python -m experiments.reacher`."""

import sys

from admrl_jax.commands.experiment import main
from admrl_jax.envs.reacher import ReacherConfig
from experiments.presets import presets_for

PRESETS = presets_for(ReacherConfig())

if __name__ == "__main__":
    sys.exit(main("experiments.reacher", __doc__ or "", PRESETS))
