"""The paper's protocol on Ant-Dir: `python -m experiments.ant_dir`."""

import sys

from admrl_jax.env_config import AntDirConfig
from experiments.command_line import main
from experiments.presets import physics_presets

PRESETS = physics_presets(AntDirConfig())

if __name__ == "__main__":
    sys.exit(main("experiments.ant_dir", __doc__ or "", PRESETS))
