"""The paper's protocol on HalfCheetah-Dir: `python -m experiments.halfcheetah_dir`."""

import sys

from admrl_jax.env_config import HalfCheetahDirConfig
from experiments.command_line import main
from experiments.presets import physics_presets

PRESETS = physics_presets(HalfCheetahDirConfig())

if __name__ == "__main__":
    sys.exit(main("experiments.halfcheetah_dir", __doc__ or "", PRESETS))
