"""The paper's protocol on Ant-Dir: `python -m experiments.ant_dir`."""

import sys

from admrl_jax.commands.experiment import main
from admrl_jax.envs.ant import AntDirConfig
from experiments.presets import presets_for

PRESETS = presets_for(AntDirConfig())

if __name__ == "__main__":
    sys.exit(main("experiments.ant_dir", __doc__ or "", PRESETS))
