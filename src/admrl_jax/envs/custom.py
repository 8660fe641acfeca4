"""User-defined environments, named on the command line: `my_module:make_env`."""

import importlib
from dataclasses import dataclass
from typing import ClassVar

from admrl_jax.core.settings import Accepts, ConfigError, refusal
from admrl_jax.envs.base import Env, EnvConfig, EnvSpec
from admrl_jax.envs.contract import check_env

FACTORY = Accepts(
    lambda x: (
        isinstance(x, str)
        and all(part.isidentifier() for part in x.replace(":", ".").split("."))
        and x.count(":") == 1
    ),
    "module:function, a function without arguments that returns an environment",
)


@dataclass(frozen=True, kw_only=True)
class CustomConfig(EnvConfig):
    """A user-defined environment, with whatever settings its factory gives it."""

    name: ClassVar[str] = "custom"

    factory: str = ""
    """module:function, a function without arguments that returns an object with the members of `Env`."""

    def check(self, prefix: str) -> None:
        """The factory must be given as `module:function`."""
        if not FACTORY.test(self.factory):
            raise refusal(prefix + "factory", self.factory, FACTORY.words)


def make_custom(config: CustomConfig, simulator: str = "auto", num_threads: int = 0) -> Env:
    """Calls the factory and checks what it returns.

    Raises:
        ConfigError: there is no such function, or it returns no environment.
    """
    module, _, name = config.factory.partition(":")
    try:
        factory = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"env: {config.factory!r} cannot be imported ({error})") from error
    env = factory()
    check_env(env)
    return env


SPECS = (EnvSpec("custom", CustomConfig, make_custom),)
