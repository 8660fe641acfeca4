"""The paper's protocol on Ant-Dir: `python -m experiments.ant_dir`."""

import sys

from admrl_jax.envs.ant import AntDirConfig
from admrl_jax.protocol.command_line import main
from experiments.presets import presets_for

PRESETS = presets_for(AntDirConfig())

if __name__ == "__main__":
    sys.exit(main("experiments.ant_dir", __doc__ or "", PRESETS))
