"""Any experiment by the name of its environment: `python -m experiments navigation_2d`."""

import importlib
import sys

from admrl_jax.env_config import ENV_CONFIGS
from experiments.command_line import fail, main


def run(argv: list[str]) -> int:
    """Runs the experiment that the first argument names with the other arguments."""
    if not argv or argv[0] not in ENV_CONFIGS:
        given = repr(argv[0]) if argv else "nothing"
        return fail(f"env: {given} is not known; accepted: {', '.join(ENV_CONFIGS)}")
    module = importlib.import_module(f"experiments.{argv[0]}")
    return main(module.__name__, module.__doc__ or "", module.PRESETS, argv[1:])


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]))
