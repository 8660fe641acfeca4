"""Loads what a run has trained, for use outside it: `load_policy("results/halfcheetah_dir", "admrl")`."""

import json
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp

from admrl_jax import envs
from admrl_jax.checkpoint import read_latest
from admrl_jax.config import Config, from_dict
from admrl_jax.envs import Env
from admrl_jax.networks import Policy
from admrl_jax.run_log import RunError
from admrl_jax.types import Params
from experiments.context import make_policy


class Trained(NamedTuple):
    """A policy out of a run directory.

    Attributes:
        config: the run's settings.
        env: its environment.
        policy: the Gaussian policy.
        params: meta-parameters, leading axis the run's seeds.
    """

    config: Config
    env: Env
    policy: Policy
    params: Params


def load_policy(directory: str | Path, method: str = "maml", simulator: str = "") -> Trained:
    """The newest policy of a method.

    Args:
        directory: a run directory, finished or not.
        method: `pretrain` or one of `METHODS`.
        simulator: another engine than the run's.

    Raises:
        RunError: the run has no checkpoint of that method.
    """
    directory = Path(directory)
    path = directory / "config.json"
    if not path.is_file():
        raise RunError(f"run-dir: {directory} holds no run")
    config = from_dict(json.loads(path.read_text()))
    stage = "pretrain-pretrain" if method == "pretrain" else f"finetune-{method}"
    tree = read_latest(directory / "checkpoints" / stage)
    if tree is None:
        raise RunError(f"run-dir: {directory} holds no checkpoint of {method}")
    state, _ = tree
    params = jax.tree.map(jnp.asarray, state["policy_params"])
    env = envs.make(config.env, simulator=simulator or config.simulator)
    return Trained(config, env, make_policy(config, env), params)
