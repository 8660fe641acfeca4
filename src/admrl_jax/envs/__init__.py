"""Task families by name: `make("halfcheetah_dir", simulator="mujoco")`."""

from admrl_jax.config import ENV_CONFIGS, ConfigError, EnvConfig, HalfCheetahDirConfig, NavigationConfig
from admrl_jax.envs.base import Env
from admrl_jax.envs.half_cheetah import HalfCheetahDir
from admrl_jax.envs.navigation import Navigation2D
from admrl_jax.simulators import make_simulator, resolve

__all__ = ["Env", "HalfCheetahDir", "Navigation2D", "make"]


def make(env: str | EnvConfig, *, simulator: str = "auto", num_threads: int = 0) -> Env:
    """Builds a task family.

    Args:
        env: a name, which takes the published defaults, or a config with other numbers.
        simulator: `auto`, `mujoco` or `mjx`; closed-form environments need none.
        num_threads: host threads of the `mujoco` simulator; 0 takes one per core.

    Raises:
        ConfigError: the name is unknown.
        SimulatorError: the simulator is unknown or not installed.
    """
    if isinstance(env, str):
        if env not in ENV_CONFIGS:
            raise ConfigError(f"env: {env!r} is not known; accepted: {', '.join(ENV_CONFIGS)}")
        env = ENV_CONFIGS[env]()
    if isinstance(env, NavigationConfig):
        return Navigation2D(env)
    if isinstance(env, HalfCheetahDirConfig):
        resolve(simulator)
        # Only here, so that closed-form environments work without a physics engine.
        from admrl_jax.simulators.models import gymnasium_model

        model = gymnasium_model("half_cheetah.xml")
        return HalfCheetahDir(make_simulator(simulator, model, env.frame_skip, num_threads), env)
    raise ConfigError(f"env: no environment is built from {type(env).__name__}")
