"""The paper's protocol on 2D navigation: `python -m experiments.navigation_2d`."""

import sys
from dataclasses import replace

from admrl_jax.config import (
    Config,
    EvalConfig,
    MAMLConfig,
    PolicyConfig,
    ScheduleConfig,
    TrainConfig,
    TRPOConfig,
)
from admrl_jax.env_config import NavigationConfig
from experiments.command_line import main

PAPER = Config(
    env=NavigationConfig(),
    seeds=(0, 1, 2),
    # Exploration that stays wide: docs/method.md, "2D navigation".
    policy=PolicyConfig(min_std=0.5),
    # Short, damped steps, which do not wander off once nothing is left to learn: same place.
    train=TrainConfig(maml=MAMLConfig(num_tasks=20), trpo=TRPOConfig(max_kl=0.003, cg_damping=0.1)),
    eval=EvalConfig(
        # Returns differ between goals by far more than between methods.
        num_tasks=200,
        # One below the paper's, where the attack leaves room above doing nothing.
        strengths=(0.1, 0.2, 0.5, 0.8),
        adaptive_steps=60,
        adaptive_tasks=10,
        adaptive_trajectories=10,
    ),
)

QUICK = replace(
    PAPER,
    seeds=(0,),
    train=TrainConfig(maml=MAMLConfig(num_tasks=4, num_trajectories=8)),
    schedule=ScheduleConfig(
        pretrain_steps=10,
        warmup_steps=5,
        finetune_steps=5,
        chunk_steps=5,
        checkpoint_every=5,
        snapshot_every=5,
    ),
    eval=EvalConfig(
        num_tasks=8,
        num_trajectories=8,
        strengths=(0.1, 0.2, 0.5),
        adaptive_steps=2,
        adaptive_epochs=2,
        adaptive_tasks=4,
        adaptive_trajectories=8,
    ),
)

PRESETS = {"paper": PAPER, "quick": QUICK}

if __name__ == "__main__":
    sys.exit(main("experiments.navigation_2d", __doc__ or "", PRESETS))
