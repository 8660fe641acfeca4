"""The paper's protocol on Reacher: `python -m experiments.reacher`."""

import sys

from admrl_jax.envs.reacher import ReacherConfig
from admrl_jax.protocol.command_line import main
from experiments.presets import presets_for

PRESETS = presets_for(ReacherConfig())

if __name__ == "__main__":
    sys.exit(main("experiments.reacher", __doc__ or "", PRESETS))
