"""The two presets of every environment on a physics engine."""

from dataclasses import replace

from admrl_jax.config import Config, EvalConfig, MAMLConfig, ScheduleConfig, TrainConfig
from admrl_jax.env_config import PhysicsConfig


def physics_presets(env: PhysicsConfig, maml: MAMLConfig | None = None) -> dict[str, Config]:
    """`paper`: the paper's sizes, one seed. `quick`: every stage at toy size.

    Args:
        env: the environment's numbers.
        maml: adaptation settings where they differ from the defaults.
    """
    maml = maml or MAMLConfig()
    paper = Config(
        env=env,
        seeds=(0,),
        train=TrainConfig(maml=maml),
        # A step takes seconds here, so each is shown and a stop request never waits long.
        schedule=ScheduleConfig(chunk_steps=1),
    )
    quick = replace(
        paper,
        env=replace(env, horizon=50),
        train=TrainConfig(maml=replace(maml, num_tasks=4, num_trajectories=4)),
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
    return {"paper": paper, "quick": quick}
