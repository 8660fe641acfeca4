"""What one run holds throughout its stages: config, environment, networks, attacks, files."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from admrl_jax import adgan as adgan_lib
from admrl_jax import attacks, envs, hosts, networks
from admrl_jax.attacks import Attack
from admrl_jax.config import Config, task_counts, validate
from admrl_jax.envs import Env
from admrl_jax.networks import Policy
from admrl_jax.run_log import MetricsLog, Progress, StopRequest
from admrl_jax.sharding import TASKS, choose_num_devices, local, replicate, spread_tasks, task_mesh
from admrl_jax.training import TrainState
from admrl_jax.types import Params


class Interrupted(Exception):  # noqa: N818 - not an error
    """The run was asked to stop and has saved its state."""

    def __init__(self, signal_number: int):
        super().__init__(f"stopped by signal {signal_number}")
        self.signal_number = signal_number


class Diverged(Exception):  # noqa: N818 - named like `Interrupted`
    """Numbers were not finite for too many steps in a row; the message is for the user."""


class Context:
    """Built once per run from its config; the stages read it and never change it."""

    def __init__(self, config: Config, directory: Path):
        self.config, self.directory = config, directory
        self.env = envs.make(config.env, simulator=config.simulator, num_threads=config.num_threads)
        self.policy = make_policy(config, self.env)
        self.adgan = adgan_lib.make_adgan(self.env.obs_size, config.train.adversary)
        self._attacks: dict[str, Attack] = {
            "none": attacks.no_attack(),
            "gaussian": attacks.gaussian_noise(),
            "l2_noise": attacks.l2_noise(),
            "fgsm": attacks.fgsm(self.policy),
            "adgan": self.adgan.attack,
        }
        num_devices = config.num_devices or choose_num_devices(list(task_counts(config).values()))
        validate(replace(config, num_devices=num_devices))
        is_alone = num_devices == 1 and jax.process_count() == 1
        self.mesh = None if is_alone else task_mesh(num_devices)
        self.axis_name = None if self.mesh is None else TASKS
        self.writes = hosts.is_first()
        self.log = MetricsLog(directory, writes=self.writes)
        self.stop = StopRequest()
        self.seconds: dict[str, float] = {}
        key_tasks, self.eval_key = jax.random.split(jax.random.key(config.eval.seed))
        self.tasks = jax.vmap(self.env.sample_task)(jax.random.split(key_tasks, config.eval.num_tasks))
        self.seed_keys = jnp.stack([jax.random.key(seed) for seed in config.seeds])

    def attack(self, number: jax.Array) -> Attack:
        """The attack of that number; one compiled program serves them all."""
        return attacks.select(list(self._attacks.values()), number)

    def number(self, attack: str) -> jax.Array:
        """Number of an attack by its name."""
        return jnp.array(list(self._attacks).index(attack), jnp.int32)

    def spread(self, function: Callable[..., Any], out_specs: Any = None) -> Callable[..., Any]:
        """Runs a function on every device, where tasks are spread over several."""
        return function if self.mesh is None else spread_tasks(function, self.mesh, out_specs)

    def place(self, tree: Any) -> Any:
        """Puts arrays on every device, where tasks are spread over several."""
        return tree if self.mesh is None else replicate(tree, self.mesh)

    def local(self, tree: Any) -> Any:
        """Takes arrays back from `place`: this process's copies, on one device."""
        return tree if self.mesh is None else local(tree)

    def is_done(self, path: Path) -> bool:
        """Whether a result is there, as the process sees it that writes them."""
        return bool(hosts.from_first(int(path.exists())))

    def progress(self, stage: str, total: int, done: int = 0) -> Progress:
        """Progress of a stage, shown by the process that writes."""
        return Progress(stage, total, done, shown=self.writes)

    def stop_signal(self) -> int:
        """The signal that asks for an end, whichever process it reached; 0 if none did.

        Every process must ask at the same points, so that all of them stop at the same one.
        """
        return hosts.largest(self.stop.signal or 0)

    def check_stop(self) -> None:
        """Raises `Interrupted` if a signal asked for it."""
        number = self.stop_signal()
        if number:
            raise Interrupted(number)


def make_policy(config: Config, env: Env) -> Policy:
    """The policy that a config describes, for its environment."""
    return networks.make_policy(
        env.obs_size,
        env.action_size,
        hidden_sizes=config.policy.hidden_sizes,
        activation=config.policy.activation,
        init_std=config.policy.init_std,
        min_std=config.policy.min_std,
    )


def generator_of(state: TrainState) -> Params:
    """Parameters of the generator that a state carries."""
    assert state.adversary is not None
    return state.adversary.generator_params


def check_budget(excess: Any, where: str) -> None:
    """Refuses results of an attack that went beyond its budget."""
    if np.any(np.asarray(excess) > 0):
        raise RuntimeError(
            f"{where}: an attack broke its budget by {float(np.max(excess)):.3g}; this is a bug in the attack"
        )
