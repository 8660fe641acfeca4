"""The paper's protocol on any environment: `python -m experiments.train --env my_module:make_env`.

`--env` takes the name of a built-in environment, or a function of your own, `module:function`, that
returns an environment: a class of yours, `FunctionEnv`, `from_brax(...)` or `from_model_file(...)`. All
other flags are those of the other experiments.
"""

import importlib
import sys

from admrl_jax.commands.experiment import fail, main
from admrl_jax.config import Config
from admrl_jax.core.settings import ConfigError
from admrl_jax.envs.custom import FACTORY, CustomConfig
from admrl_jax.envs.registry import ENVS
from experiments.presets import presets_for


def presets_of(env: str) -> dict[str, Config]:
    """The presets of an environment by its name, or of a user's own by `module:function`.

    Raises:
        ConfigError: it is neither.
    """
    if env in ENVS and env != CustomConfig.name:
        return importlib.import_module(f"experiments.{env}").PRESETS
    if FACTORY.test(env):
        return presets_for(CustomConfig(factory=env))
    names = ", ".join(name for name in ENVS if name != CustomConfig.name)
    raise ConfigError(f"env: {env!r} is not accepted; accepted: {names}, or {FACTORY.words}")


def run(argv: list[str]) -> int:
    """Runs the protocol with a command line that begins with, or holds, `--env NAME`."""
    words = list(argv)
    name = ""
    for i, word in enumerate(words):
        flag, equals, value = word.partition("=")
        if flag == "--env":
            name = value if equals else "".join(words[i + 1 : i + 2])
            del words[i : i + (1 if equals else 2)]
            break
    if not name and {"-h", "--help"} & set(words):
        print(__doc__)
        return 0
    try:
        presets = presets_of(name)
    except ConfigError as error:
        return fail(str(error))
    return main(f"experiments.train --env {name}", __doc__ or "", presets, words)


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]))
