"""The paper's protocol on HalfCheetah-Dir: `python -m experiments.halfcheetah_dir`."""

import sys

from admrl_jax.commands.experiment import main
from admrl_jax.envs.half_cheetah import HalfCheetahDirConfig
from experiments.presets import presets_for

PRESETS = presets_for(HalfCheetahDirConfig())

if __name__ == "__main__":
    sys.exit(main("experiments.halfcheetah_dir", __doc__ or "", PRESETS))
