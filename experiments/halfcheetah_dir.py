"""The paper's protocol on HalfCheetah-Dir: `python -m experiments.halfcheetah_dir`."""

import sys
from dataclasses import replace

from admrl_jax.config import DefenceConfigs, EvalConfig, LearnerConfigs
from admrl_jax.core.networks import PolicyConfig
from admrl_jax.defences.smooth import SmoothConfig
from admrl_jax.envs.half_cheetah import HalfCheetahDirConfig
from admrl_jax.learners.maml_trpo import MAMLTRPOConfig
from admrl_jax.protocol.command_line import main
from admrl_jax.sampling import SamplingConfig
from experiments.presets import presets_for

PRESETS = presets_for(HalfCheetahDirConfig())
# Beyond the paper: only a small context adapts, and actions hardly follow what an attack can move.
# docs/robust_training.md says what it is worth.
PRESETS["hardened"] = replace(
    PRESETS["paper"],
    methods=("maml", "smooth"),
    # Wide actions tell support episodes more, and a wrong direction costs more than they do.
    policy=PolicyConfig(context_size=4, init_std=1.2, min_std=1.0),
    # Two directions need no more tasks.
    sampling=SamplingConfig(num_tasks=20, gae_lambda=0.95),
    learners=LearnerConfigs(maml_trpo=MAMLTRPOConfig(inner_lr=30.0, adapts="context", pretrain_max_kl=0.03)),
    defences=DefenceConfigs(
        smooth=SmoothConfig(
            query_weight=0.05,
            support_weight=0.05,
            radius=0.8,
            ascent_steps=2,
            holds_std=False,
            is_bounded=True,
        )
    ),
    eval=EvalConfig(
        attacks=("l2_noise", "pgd"), undefended_attacks=(), curve_attacks=("l2_noise",), suite="standard"
    ),
)

if __name__ == "__main__":
    sys.exit(main("experiments.halfcheetah_dir", __doc__ or "", PRESETS))
