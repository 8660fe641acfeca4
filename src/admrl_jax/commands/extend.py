"""The command line that goes on with a finished run."""

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from admrl_jax.commands.arguments import Arguments, read_flags
from admrl_jax.commands.experiment import carry_out
from admrl_jax.commands.process import fail, settings_as_found
from admrl_jax.config import Config
from admrl_jax.core.settings import ConfigError, check_fields
from admrl_jax.envs.navigation import NavigationConfig
from admrl_jax.protocol.extend import extend_run, read_trained
from admrl_jax.runs.artefact import ArtefactError
from admrl_jax.runs.directory import RunError
from admrl_jax.runs.numerics import was_compiled_fast


def extend_main(module: str, summary: str, argv: Sequence[str] | None = None) -> int:
    """Extends a run; returns the exit code of `admrl_jax.commands.experiment.main`.

    Args:
        module: name of the module, for messages.
        summary: what it does, for `--help`.
        argv: arguments without the program's name; those of the process by default.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    source = Path(words[0]) if words and not words[0].startswith("-") else None
    with settings_as_found():
        try:
            arguments = _read(module, summary, source, words[source is not None :])
            if source is None:
                raise ConfigError("run: nothing given; accepted: the directory of a finished run, first")
            if arguments.run_dir is None:
                raise ConfigError("run_dir: nothing given; accepted: a new folder")
            if not arguments.resume:
                kept = extend_run(source, arguments.run_dir, arguments.config)
                print(f"from {source}: {', '.join(['policies', *kept])}", file=sys.stderr)
        except (ConfigError, RunError, ArtefactError) as error:
            return fail(str(error))
        return carry_out(replace(arguments, resume=True), "custom", module.split()[0], words)


def _read(module: str, summary: str, source: Path | None, argv: Sequence[str]) -> Arguments:
    """The flags over the settings of the run, or over any where there is none: `--help`."""
    default = Arguments(config=Config(env=NavigationConfig()), preset="custom")
    if source is not None:
        config = read_trained(source)
        # Its programs are compiled as they were.
        default = Arguments(config=config, preset="quick" if was_compiled_fast(source) else "custom")
    arguments = read_flags(module, summary, argv, default)
    check_fields(arguments.config)
    check_fields(arguments)
    return arguments
