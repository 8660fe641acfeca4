"""The paper's protocol on 2D navigation: `python -m experiments.navigation_2d`."""

import sys
from dataclasses import replace

from admrl_jax.commands.experiment import main
from admrl_jax.config import (
    AttackerConfig,
    Config,
    DefenceConfigs,
    EvalConfig,
    LearnerConfigs,
    ScheduleConfig,
)
from admrl_jax.core.networks import PolicyConfig
from admrl_jax.defences.adgan import AdGANTrainingConfig
from admrl_jax.defences.fixed import NoiseConfig
from admrl_jax.defences.smooth import SmoothConfig
from admrl_jax.envs.navigation import NavigationConfig
from admrl_jax.learners.maml_trpo import MAMLTRPOConfig
from admrl_jax.learners.trpo import TRPOConfig
from admrl_jax.sampling import SamplingConfig

PAPER = Config(
    env=NavigationConfig(),
    seeds=(0, 1, 2),
    # Exploration that stays wide: docs/appendix_tuning.md.
    policy=PolicyConfig(min_std=0.5),
    sampling=SamplingConfig(num_tasks=20),
    # Short, damped steps, which do not wander off once nothing is left to learn: same place.
    learners=LearnerConfigs(maml_trpo=MAMLTRPOConfig(trpo=TRPOConfig(max_kl=0.003, cg_damping=0.1))),
    eval=EvalConfig(
        # Returns differ between goals by far more than between methods.
        num_tasks=200,
        # One below the paper's, where the attack leaves room above doing nothing.
        strengths=(0.1, 0.2, 0.5, 0.8),
        attacker=AttackerConfig(steps=60, num_tasks=10, num_trajectories=10),
        suite="quick",
    ),
)

QUICK = replace(
    PAPER,
    seeds=(0,),
    sampling=SamplingConfig(num_tasks=4, num_trajectories=8),
    learners=LearnerConfigs(),
    defences=DefenceConfigs(adgan=AdGANTrainingConfig(warmup_steps=5)),
    schedule=ScheduleConfig(
        pretrain_steps=10, finetune_steps=5, chunk_steps=5, checkpoint_every=5, snapshot_every=5
    ),
    eval=EvalConfig(
        num_tasks=8,
        num_trajectories=8,
        strengths=(0.1, 0.2, 0.5),
        attacker=AttackerConfig(steps=2, num_tasks=4, num_trajectories=8),
    ),
)

# Beyond the paper: the policy knows a clock and its own actions, and hardly follows what an attack can move.
# docs/robust_training.md says what it is worth.
HARDENED = replace(
    PAPER,
    env=NavigationConfig(remembers_actions=True),
    methods=("maml", "smooth"),
    defences=DefenceConfigs(
        smooth=SmoothConfig(query_weight=1.0, support_weight=1.0, radius=0.5, ascent_steps=2, num_episodes=5)
    ),
    eval=EvalConfig(
        num_tasks=200,
        strengths=(0.1, 0.2, 0.5),
        attacks=("l2_noise", "pgd"),
        undefended_attacks=(),
        curve_attacks=("l2_noise",),
        suite="standard",
    ),
)

# The same without a clock and own actions. What to adapt to is read from the rewards that follow an action at
# once, which an attack shifts little; only a context adapts, by a large step that is cut to one length.
MEMORYLESS = replace(
    HARDENED,
    env=NavigationConfig(),
    methods=("maml", "random", "admrl"),
    policy=replace(PAPER.policy, context_size=4),
    sampling=replace(PAPER.sampling, support_discount=0.5),
    # Of first order: the second moves the unadapted policy away from the start (docs/robust_training.md).
    learners=LearnerConfigs(
        maml_trpo=replace(
            PAPER.learners.maml_trpo, inner_lr=100.0, max_length=1.0, adapts="context", first_order=True
        )
    ),
    defences=DefenceConfigs(noise=NoiseConfig(radius=0.2)),
    # Enough: three seeds are there after 60 clean steps.
    schedule=ScheduleConfig(pretrain_steps=100, finetune_steps=100),
    eval=replace(HARDENED.eval, strengths=(0.1, 0.2)),
)

PRESETS = {"paper": PAPER, "quick": QUICK, "hardened": HARDENED, "hardened_memoryless": MEMORYLESS}

if __name__ == "__main__":
    sys.exit(main("experiments.navigation_2d", __doc__ or "", PRESETS))
