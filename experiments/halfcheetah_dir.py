"""The paper's protocol on HalfCheetah-Dir: `python -m experiments.halfcheetah_dir`."""

import sys
from dataclasses import replace

from admrl_jax.config import (
    Config,
    EvalConfig,
    HalfCheetahDirConfig,
    MAMLConfig,
    ScheduleConfig,
    TrainConfig,
)
from experiments.command_line import main

PAPER = Config(
    env=HalfCheetahDirConfig(),
    seeds=(0,),
    # A step takes seconds here, so each is shown and a stop request never waits long.
    schedule=ScheduleConfig(chunk_steps=1),
)

QUICK = replace(
    PAPER,
    env=HalfCheetahDirConfig(horizon=50),
    train=TrainConfig(maml=MAMLConfig(num_tasks=4, num_trajectories=4)),
    schedule=ScheduleConfig(
        pretrain_steps=4,
        warmup_steps=2,
        finetune_steps=2,
        chunk_steps=1,
        checkpoint_every=1,
        snapshot_every=2,
    ),
    eval=EvalConfig(
        num_tasks=4,
        num_trajectories=4,
        strengths=(0.2, 0.8),
        adaptive_steps=2,
        adaptive_tasks=4,
        adaptive_trajectories=4,
    ),
)

PRESETS = {"paper": PAPER, "quick": QUICK}

if __name__ == "__main__":
    sys.exit(main("experiments.halfcheetah_dir", __doc__ or "", PRESETS))
