"""Task families by name: `make("halfcheetah_dir", simulator="mujoco")`."""

from admrl_jax.checks import ConfigError
from admrl_jax.env_config import ENV_CONFIGS, EnvConfig, NavigationConfig, PhysicsConfig, validate_env
from admrl_jax.envs.adapters import FunctionEnv, from_brax, from_model_file
from admrl_jax.envs.ant import AntDir, AntGoal, AntVel
from admrl_jax.envs.base import Env
from admrl_jax.envs.half_cheetah import HalfCheetahDir, HalfCheetahVel
from admrl_jax.envs.navigation import Navigation2D
from admrl_jax.envs.physics import PhysicsEnv
from admrl_jax.envs.random_dynamics import HopperParams, Walker2dParams
from admrl_jax.envs.reacher import Reacher
from admrl_jax.simulators import SIMULATORS, SimulatorError, make_simulator, resolve

__all__ = [
    "PHYSICS_ENVS",
    "AntDir",
    "AntGoal",
    "AntVel",
    "Env",
    "FunctionEnv",
    "HalfCheetahDir",
    "HalfCheetahVel",
    "HopperParams",
    "Navigation2D",
    "PhysicsEnv",
    "Reacher",
    "Walker2dParams",
    "from_brax",
    "from_model_file",
    "make",
    "simulators_of",
]

PHYSICS_ENVS: dict[type[EnvConfig], type[PhysicsEnv]] = {
    env.config_type: env
    for env in (
        HalfCheetahDir,
        HalfCheetahVel,
        AntVel,
        AntDir,
        AntGoal,
        Reacher,
        Walker2dParams,
        HopperParams,
    )
}


def simulators_of(env: EnvConfig) -> tuple[str, ...]:
    """The engines that an environment runs on; none where it is in closed form."""
    if not isinstance(env, PhysicsConfig):
        return ()
    has_brax = bool(PHYSICS_ENVS[type(env)].model.brax)
    return tuple(name for name in SIMULATORS if has_brax or not name.startswith("brax-"))


def make(env: str | EnvConfig, *, simulator: str = "auto", num_threads: int = 0) -> Env:
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
        if env not in ENV_CONFIGS:
            raise ConfigError(f"env: {env!r} is not known; accepted: {', '.join(ENV_CONFIGS)}")
        env = ENV_CONFIGS[env]()
    validate_env(env)
    if isinstance(env, NavigationConfig):
        return Navigation2D(env)
    if not isinstance(env, PhysicsConfig) or type(env) not in PHYSICS_ENVS:
        raise ConfigError(f"env: no environment is built from {type(env).__name__}")
    name = resolve(simulator)
    if name not in simulators_of(env):
        raise SimulatorError(
            f"simulator: {env.name} does not run on {name!r}; "
            f"accepted: {', '.join(('auto', *simulators_of(env)))}"
        )
    family = PHYSICS_ENVS[type(env)]
    return family(make_simulator(name, family.model, env.frame_skip, num_threads), env)
