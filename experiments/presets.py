"""The presets that every environment has; 2D navigation has its own."""

from dataclasses import replace

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
from admrl_jax.defences.smooth import SmoothConfig
from admrl_jax.envs.base import BuiltInConfig, EnvConfig
from admrl_jax.learners.maml_trpo import MAMLTRPOConfig
from admrl_jax.sampling import SamplingConfig


def presets_for(env: EnvConfig, *, inner_lr: float = 0.1) -> dict[str, Config]:
    """`paper`: the paper's sizes, one seed. `quick`: every stage at toy size. `hardened`: see `hardened`.

    Args:
        env: the environment's numbers.
        inner_lr: step size of adaptation.
    """
    paper = Config(
        env=env,
        seeds=(0,),
        learners=LearnerConfigs(maml_trpo=MAMLTRPOConfig(inner_lr=inner_lr)),
        # A step takes seconds here, so each is shown and a stop request never waits long.
        schedule=ScheduleConfig(chunk_steps=1),
        eval=EvalConfig(suite="quick"),
    )
    quick = replace(
        paper,
        env=replace(env, horizon=50) if isinstance(env, BuiltInConfig) else env,
        sampling=SamplingConfig(num_tasks=4, num_trajectories=4),
        defences=DefenceConfigs(adgan=AdGANTrainingConfig(warmup_steps=2)),
        schedule=ScheduleConfig(
            pretrain_steps=4, finetune_steps=2, chunk_steps=1, checkpoint_every=1, snapshot_every=2
        ),
        eval=EvalConfig(
            num_tasks=4,
            num_trajectories=4,
            strengths=(0.2, 0.8),
            attacker=AttackerConfig(steps=2, num_tasks=4, num_trajectories=4),
        ),
    )
    return {"paper": paper, "quick": quick, "hardened": hardened(paper)}


def hardened(paper: Config) -> Config:
    """Beyond the paper: adapts a small context by the returns of others, and acts smoothly.

    docs/robust_training.md says what it is worth, and where.

    Args:
        paper: the settings that it starts from; a context takes larger steps than weights, so that its own
            step size of adaptation is not kept.
    """
    return replace(
        paper,
        methods=("maml", "smooth"),
        # Wide actions mattered while adaptation read them; narrower ones have not been tried since.
        policy=PolicyConfig(context_size=4, context_std=1.0, init_std=1.2, min_std=1.0),
        sampling=SamplingConfig(num_tasks=20, gae_lambda=0.95),
        learners=LearnerConfigs(
            maml_trpo=MAMLTRPOConfig(inner_lr=4.0, adapts="context", pretrain_max_kl=0.03)
        ),
        defences=DefenceConfigs(
            smooth=SmoothConfig(
                query_weight=0.03,
                support_weight=0.0,
                radius=max(paper.eval.strengths),
                ascent_steps=2,
                num_episodes=5,
                holds_std=False,
                is_bounded=True,
            )
        ),
        eval=EvalConfig(
            attacks=("l2_noise", "pgd"), undefended_attacks=(), curve_attacks=("l2_noise",), suite="standard"
        ),
    )
