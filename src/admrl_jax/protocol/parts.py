"""The parts of a run, built from its config: environment, policy, learners, defences, attacks."""

from dataclasses import replace
from typing import NamedTuple

from admrl_jax.attacks.base import Attack, Victim
from admrl_jax.attacks.learned.trainer import AttackTrainer
from admrl_jax.attacks.registry import ATTACKS, make_attack, make_attack_trainer
from admrl_jax.config import Config
from admrl_jax.core.networks import Policy, make_policy
from admrl_jax.core.settings import ConfigError
from admrl_jax.defences.base import Defence
from admrl_jax.defences.registry import DEFENCES
from admrl_jax.envs.base import Env
from admrl_jax.envs.registry import make_env
from admrl_jax.learners.base import Learner
from admrl_jax.learners.registry import LEARNERS
from admrl_jax.methods import METHODS
from admrl_jax.sampling import SamplingConfig
from admrl_jax.training import Setup
from admrl_jax.victims import make_victim


class Parts(NamedTuple):
    """What a run is made of; built once, never changed.

    Attributes:
        config: the run's settings.
        env: task family.
        policy: Gaussian policy.
    """

    config: Config
    env: Env
    policy: Policy

    def learner(self, method: str) -> Learner:
        """The learner of a method."""
        spec = LEARNERS[METHODS[method].learner]
        return spec.make(getattr(self.config.learners, spec.name), self.policy)

    def pretraining_setup(self, method: str) -> Setup:
        """The setup of the clean pre-training that a method shares with those of its learner."""
        spec = LEARNERS[METHODS[method].learner]
        config = spec.in_pretraining(getattr(self.config.learners, spec.name))
        return self.setup(method)._replace(learner=spec.make(config, self.policy))

    def defence(self, method: str) -> Defence:
        """The defence of a method."""
        spec = DEFENCES[METHODS[method].defence]
        return spec.make(getattr(self.config.defences, spec.name), self.victim(method))

    def victim(self, method: str) -> Victim:
        """A method's policy as attacks see it."""
        return make_victim(self.env, self.policy, self.learner(method))

    def attack(self, name: str, method: str) -> Attack:
        """An attack on a method at meta-test."""
        return make_attack(name, self.victim(method), getattr(self.config.attacks, name))

    def identity(self, name: str, method: str) -> str:
        """Identifies an attack among compiled programs; other loss weights make no other program."""
        if ATTACKS[name].make_trainer is not None:
            return self.attack_trainer(name, method).name
        return f"{name} {getattr(self.config.attacks, name)}"

    def attack_trainer(self, name: str, method: str) -> AttackTrainer:
        """The trainer of an attack on a method that learns at meta-test."""
        return make_attack_trainer(name, self.victim(method), getattr(self.config.attacks, name))

    def setup(self, method: str, sampling: SamplingConfig | None = None) -> Setup:
        """A method's setup in training, or with another `sampling`, as in attacks and tests."""
        return Setup(self.env, self.policy, self.learner(method), sampling or self.config.sampling)

    @property
    def attack_sampling(self) -> SamplingConfig:
        """Size of the meta-batch of an attacker's update; policies adapt as in the meta-test."""
        test = self.config.eval
        return replace(
            self.config.sampling,
            num_tasks=test.attacker.num_tasks,
            num_trajectories=test.attacker.num_trajectories,
            num_adapt_steps=test.num_adapt_steps,
        )

    @property
    def test_sampling(self) -> SamplingConfig:
        """Size of the meta-test."""
        test = self.config.eval
        return replace(
            self.config.sampling,
            num_tasks=test.num_tasks,
            num_trajectories=test.num_trajectories,
            num_adapt_steps=test.num_adapt_steps,
        )


def build_parts(config: Config) -> Parts:
    """Builds environment and policy, and checks that attacks and defences can learn from the batches.

    The config then says which engine `auto` is here.

    Raises:
        ConfigError: a setting does not suit the environment.
        SimulatorError: the engine cannot run here.
    """
    env = make_env(config.env, simulator=config.simulator, num_threads=config.num_threads)
    engine = getattr(env, "simulator", None)
    if engine is not None:
        config = replace(config, simulator=engine.name)
    policy = make_policy(env.obs_size, env.action_size, config.policy)
    parts = Parts(config, env, policy)
    for method in config.methods:
        name = METHODS[method].defence
        _check_batch(f"defences.{name}", parts.defence(method).check_batch, config.sampling, env)
    for name in config.eval.all_attacks:
        if ATTACKS[name].make_trainer is not None:
            check = parts.attack_trainer(name, config.methods[0]).check_batch
            _check_batch(f"attacks.{name}", check, parts.attack_sampling, env)
    return parts


def _check_batch(where: str, check, sampling: SamplingConfig, env: Env) -> None:
    try:
        check(sampling.num_trajectories, env.horizon)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from error
