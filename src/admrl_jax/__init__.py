"""Adversarially robust meta-reinforcement learning in JAX.

Pure functions to compose: environments, rollouts, adaptation, the trust-region step, attacks, defences,
evaluation. They are written for one task or one episode; `vmap` and `jit` outside. Environments, learners,
attacks and defences are small values, found by name in `ENVS`, `LEARNERS`, `ATTACKS` and `DEFENCES`; a method
of `METHODS` is a learner with a defence.
"""

from admrl_jax.attacking import (
    AttackerState,
    AttackerTraining,
    History,
    attack_step,
    init_attacker,
    train_attacker,
)
from admrl_jax.attacks.base import Attack, AttackSpec, Scene, Victim, memoryless
from admrl_jax.attacks.fgsm import fgsm
from admrl_jax.attacks.learned.trainer import AttackTrainer
from admrl_jax.attacks.noise import gaussian_noise, l2_noise, no_attack
from admrl_jax.attacks.pgd import pgd
from admrl_jax.attacks.registry import ATTACKS, make_attack, make_attack_trainer
from admrl_jax.attacks.stuck_sensor import stuck_sensor
from admrl_jax.attacks.threat import Budget, Measurement, Sides, ThreatModel, Units, make_threat
from admrl_jax.core.gaussian import Gaussian
from admrl_jax.core.lanes import Lanes, lane_mesh
from admrl_jax.core.networks import Policy, PolicyConfig, make_policy
from admrl_jax.core.returns import estimate_advantages
from admrl_jax.core.settings import ConfigError
from admrl_jax.core.task_axis import TaskAxis
from admrl_jax.core.types import Experience, MetaBatch, TimeStep, Trajectory
from admrl_jax.defences.base import Defence, DefenceSpec
from admrl_jax.defences.registry import DEFENCES
from admrl_jax.envs.adapters import FunctionEnv, from_brax, from_model_file
from admrl_jax.envs.base import Env, EnvConfig, EnvSpec
from admrl_jax.envs.registry import ENVS, make_env
from admrl_jax.evaluation import EvalResult, attacked_decisions, do_nothing_returns, evaluate
from admrl_jax.judging import Case
from admrl_jax.learners.base import Learner, LearnerSpec, LearnerState, LossTerm
from admrl_jax.learners.maml import inner_loss, surrogate_loss
from admrl_jax.learners.maml_trpo import MAMLTRPOConfig, make_maml_trpo
from admrl_jax.learners.promp import ProMPConfig, make_promp
from admrl_jax.learners.registry import LEARNERS
from admrl_jax.learners.trpo import Objective, TRPOConfig, TRPOInfo, trpo_update
from admrl_jax.methods import METHODS, Method
from admrl_jax.runs.artefact import ArtefactError, Trained, load_attacker, load_policy, save_policies
from admrl_jax.sampling import (
    Exposure,
    SamplingConfig,
    collect,
    collect_meta_batch,
    episode_returns,
    expose,
    rollout,
)
from admrl_jax.simulators import (
    SIMULATORS,
    Model,
    ModelParams,
    SimState,
    Simulator,
    SimulatorError,
    make_simulator,
)
from admrl_jax.suite import SuiteResult, SuiteRunner, attack_suite
from admrl_jax.suites import SUITES, Member, Suite
from admrl_jax.training import Setup, TrainState, init_train_state, outer_step
from admrl_jax.victims import make_victim

__all__ = [
    "ATTACKS",
    "DEFENCES",
    "ENVS",
    "LEARNERS",
    "METHODS",
    "SIMULATORS",
    "SUITES",
    "ArtefactError",
    "Attack",
    "AttackSpec",
    "AttackTrainer",
    "AttackerState",
    "AttackerTraining",
    "Budget",
    "Case",
    "ConfigError",
    "Defence",
    "DefenceSpec",
    "Env",
    "EnvConfig",
    "EnvSpec",
    "EvalResult",
    "Experience",
    "Exposure",
    "FunctionEnv",
    "Gaussian",
    "History",
    "Lanes",
    "Learner",
    "LearnerSpec",
    "LearnerState",
    "LossTerm",
    "MAMLTRPOConfig",
    "Measurement",
    "Member",
    "MetaBatch",
    "Method",
    "Model",
    "ModelParams",
    "Objective",
    "Policy",
    "PolicyConfig",
    "ProMPConfig",
    "SamplingConfig",
    "Scene",
    "Setup",
    "Sides",
    "SimState",
    "Simulator",
    "SimulatorError",
    "Suite",
    "SuiteResult",
    "SuiteRunner",
    "TRPOConfig",
    "TRPOInfo",
    "TaskAxis",
    "ThreatModel",
    "TimeStep",
    "TrainState",
    "Trained",
    "Trajectory",
    "Units",
    "Victim",
    "attack_step",
    "attack_suite",
    "attacked_decisions",
    "collect",
    "collect_meta_batch",
    "do_nothing_returns",
    "episode_returns",
    "estimate_advantages",
    "evaluate",
    "expose",
    "fgsm",
    "from_brax",
    "from_model_file",
    "gaussian_noise",
    "init_attacker",
    "init_train_state",
    "inner_loss",
    "l2_noise",
    "lane_mesh",
    "load_attacker",
    "load_policy",
    "make_attack",
    "make_attack_trainer",
    "make_env",
    "make_maml_trpo",
    "make_policy",
    "make_promp",
    "make_simulator",
    "make_threat",
    "make_victim",
    "memoryless",
    "no_attack",
    "outer_step",
    "pgd",
    "rollout",
    "save_policies",
    "stuck_sensor",
    "surrogate_loss",
    "train_attacker",
    "trpo_update",
]
