"""Environments by name: `make_env("halfcheetah_dir", simulator="mujoco")`.

A new one is a file with its `EnvSpec`, and a line here.
"""

from admrl_jax.core.settings import ConfigError, check_fields
from admrl_jax.envs import ant, custom, half_cheetah, navigation, random_dynamics, reacher
from admrl_jax.envs.base import Env, EnvConfig, EnvSpec
from admrl_jax.envs.memory import remember

ENVS: dict[str, EnvSpec] = {
    spec.config.name: spec
    for family in (navigation, half_cheetah, ant, reacher, random_dynamics, custom)
    for spec in family.SPECS
}


def env_spec(name: str) -> EnvSpec:
    """The spec of an environment.

    Raises:
        ConfigError: there is none of that name.
    """
    if name not in ENVS:
        raise ConfigError(f"env: {name!r} is not known; accepted: {', '.join(ENVS)}")
    return ENVS[name]


def make_env(env: str | EnvConfig, *, simulator: str = "auto", num_threads: int = 0) -> Env:
    """Builds a task family.

    Args:
        env: a name, which takes the published defaults, or a config with other numbers.
        simulator: `auto` or one of `SIMULATORS`; closed-form environments need none.
        num_threads: host threads of the `mujoco` simulator; 0 takes one per core.

    Raises:
        ConfigError: the name is unknown, or a number of the config is not accepted.
        SimulatorError: the simulator is unknown, not installed, or has no such body.
    """
    if isinstance(env, str):
        env = env_spec(env).config()
    spec = ENVS.get(env.name)
    if spec is None or not isinstance(env, spec.config):
        raise ConfigError(f"env: no environment is built from {type(env).__name__}")
    check_fields(env, "env.")
    return remember(spec.make(env, simulator, num_threads), env)
