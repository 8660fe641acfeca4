"""Adversarially robust meta-reinforcement learning in JAX.

Pure functions to compose: environments, rollouts, adaptation, the trust-region step, attacks, the
adGAN update, evaluation. They are written for one task or one episode; `vmap` and `jit` outside.
"""

from admrl_jax.adgan import AdGAN, AdversaryState, init_adversary, make_adgan, update_adversary
from admrl_jax.attacks import (
    Attack,
    Budget,
    Measurement,
    fgsm,
    gaussian_noise,
    generator_attack,
    l2_noise,
    measure_by,
    no_attack,
    select,
)
from admrl_jax.checks import ConfigError
from admrl_jax.config import (
    METHODS,
    AdversaryConfig,
    Config,
    EvalConfig,
    MAMLConfig,
    PolicyConfig,
    ScheduleConfig,
    TrainConfig,
    TRPOConfig,
)
from admrl_jax.env_config import (
    ENV_CONFIGS,
    AntDirConfig,
    AntGoalConfig,
    AntVelConfig,
    EnvConfig,
    HalfCheetahDirConfig,
    HalfCheetahVelConfig,
    HopperParamsConfig,
    NavigationConfig,
    ReacherConfig,
    Walker2dParamsConfig,
)
from admrl_jax.envs import Env, FunctionEnv, PhysicsEnv, from_brax, from_model_file, make
from admrl_jax.evaluation import EvalResult, do_nothing_returns, evaluate
from admrl_jax.gaussian import Gaussian
from admrl_jax.maml import adapt, adapt_and_predict, adapt_step, inner_loss, surrogate_loss
from admrl_jax.networks import Policy, make_policy
from admrl_jax.returns import estimate_advantages
from admrl_jax.rollout import collect, episode_returns, rollout
from admrl_jax.simulators import (
    SIMULATORS,
    Model,
    ModelParams,
    SimState,
    Simulator,
    SimulatorError,
    make_simulator,
)
from admrl_jax.training import (
    MetaBatch,
    TrainState,
    collect_meta_batch,
    init,
    outer_step,
    train_chunk,
)
from admrl_jax.trpo import TRPOInfo, trpo_update
from admrl_jax.types import Experience, TimeStep, Trajectory

__all__ = [
    "ENV_CONFIGS",
    "METHODS",
    "SIMULATORS",
    "AdGAN",
    "AdversaryConfig",
    "AdversaryState",
    "AntDirConfig",
    "AntGoalConfig",
    "AntVelConfig",
    "Attack",
    "Budget",
    "Config",
    "ConfigError",
    "Env",
    "EnvConfig",
    "EvalConfig",
    "EvalResult",
    "Experience",
    "FunctionEnv",
    "Gaussian",
    "HalfCheetahDirConfig",
    "HalfCheetahVelConfig",
    "HopperParamsConfig",
    "MAMLConfig",
    "Measurement",
    "MetaBatch",
    "Model",
    "ModelParams",
    "NavigationConfig",
    "PhysicsEnv",
    "Policy",
    "PolicyConfig",
    "ReacherConfig",
    "ScheduleConfig",
    "SimState",
    "Simulator",
    "SimulatorError",
    "TRPOConfig",
    "TRPOInfo",
    "TimeStep",
    "TrainConfig",
    "TrainState",
    "Trajectory",
    "Walker2dParamsConfig",
    "adapt",
    "adapt_and_predict",
    "adapt_step",
    "collect",
    "collect_meta_batch",
    "do_nothing_returns",
    "episode_returns",
    "estimate_advantages",
    "evaluate",
    "fgsm",
    "from_brax",
    "from_model_file",
    "gaussian_noise",
    "generator_attack",
    "init",
    "init_adversary",
    "inner_loss",
    "l2_noise",
    "make",
    "make_adgan",
    "make_policy",
    "make_simulator",
    "measure_by",
    "no_attack",
    "outer_step",
    "rollout",
    "select",
    "surrogate_loss",
    "train_chunk",
    "trpo_update",
    "update_adversary",
]
