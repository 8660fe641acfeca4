"""Goes on with a finished run after its end: `python -m experiments.extend RUN --run-dir NEW [settings]`.

Settings are those of the run, but for what the flags say: `--methods` may name more of them,
`--schedule.finetune-steps` may be larger, and everything under `--eval` may change. What is trained already
is not trained again; the meta-test is repeated where it changes. More seeds: `experiments.merge`.
"""

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from admrl_jax.core.settings import ConfigError, check_fields
from admrl_jax.protocol.arguments import Arguments, read_flags
from admrl_jax.protocol.command_line import carry_out, fail, settings_as_found
from admrl_jax.protocol.extend import extend_run, read_run
from admrl_jax.runs.directory import RunError
from admrl_jax.runs.numerics import was_compiled_fast
from experiments.navigation_2d import QUICK


def main(argv: Sequence[str] | None = None) -> int:
    """Extends a run; returns the exit code of `admrl_jax.protocol.command_line.main`."""
    argv = list(sys.argv[1:] if argv is None else argv)
    summary, command = __doc__ or "", "experiments.extend"
    with settings_as_found():
        try:
            if not argv or argv[0].startswith("-"):
                if {"-h", "--help"} & set(argv):
                    read_flags(f"{command} RUN", summary, argv, Arguments(config=QUICK))
                raise ConfigError("run: nothing given; accepted: the directory of a finished run")
            source = Path(argv[0])
            config = read_run(source)
            preset = "quick" if was_compiled_fast(source) else "custom"
            default = Arguments(config=config, preset=preset)
            arguments = read_flags(f"{command} RUN", summary, argv[1:], default)
            check_fields(arguments.config)
            check_fields(arguments)
            if arguments.run_dir is None:
                raise ConfigError("run_dir: nothing given; accepted: a new folder")
            if not arguments.resume:
                kept = extend_run(source, arguments.run_dir, arguments.config)
                print(f"from {source}: {', '.join(['policies', *kept])}", file=sys.stderr)
        except (ConfigError, RunError) as error:
            return fail(str(error))
        return carry_out(replace(arguments, resume=True), "custom", command, argv)


if __name__ == "__main__":
    sys.exit(main())
