"""The command line of an attack on saved policies."""

import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from admrl_jax.attacks.threat import SIDES
from admrl_jax.commands.arguments import CACHE, DIRECTORY, NAMES, RADII, SEEDS, read_flags
from admrl_jax.commands.process import DISK_ERRORS, fail, keep_compiled_programs, settings_as_found
from admrl_jax.config import UNITS
from admrl_jax.core.settings import SEED, ConfigError, check_fields, one_of
from admrl_jax.report.attacks import write_attack_report
from admrl_jax.runs.artefact import ArtefactError
from admrl_jax.runs.devices import compile_fast, make_cpu_devices, make_lanes, start_devices
from admrl_jax.runs.directory import RunError
from admrl_jax.runs.signals import Interrupted
from admrl_jax.saved.attack_film import film_section
from admrl_jax.saved.attack_plan import make_plan
from admrl_jax.saved.attack_run import AttackRun
from admrl_jax.simulators import SimulatorError
from admrl_jax.suites import SUITES


@dataclass(frozen=True)
class Arguments:
    """Flags of an attack. Before them stands the run directory, or its `policies.npz`."""

    suite: Annotated[str, one_of(*SUITES)] = "standard"
    """Attackers and effort: quick, standard or claim."""
    radii: Annotated[tuple[float, ...], RADII] = ()
    """L2 radii. Default: the strengths of the run's meta-test."""
    methods: Annotated[tuple[str, ...], NAMES] = ()
    """Victims, such as maml admrl. Default: the run's methods."""
    seeds: Annotated[tuple[int, ...], SEEDS] = ()
    """Of the victims. Default: all of the run."""
    units: Annotated[str, one_of("", *UNITS)] = ""
    """Units of the radii: paper (raw observations) or normalised. Default: the run's."""
    side: Annotated[str, one_of(*SIDES)] = "both"
    """Data under attack: both, query (after adaptation) or support (before it)."""
    seed: Annotated[int, SEED] = 0
    """Of the attack: tasks, episodes and starts."""
    transfer_from: Annotated[tuple[str, ...], NAMES] = ()
    """Folders of finished attacks on the same environment. Their strongest attackers are tried here too."""
    out: Annotated[Path | None, DIRECTORY] = None
    """Where the results go. Default: runs/attack-<run>-<suite>. The same command goes on where it stopped."""
    compilation_cache: Annotated[str, CACHE] = "auto"
    """Where compiled programs are kept: a directory, off, or auto."""


def attack_main(module: str, summary: str, argv: Sequence[str] | None = None) -> int:
    """Attacks saved policies; returns the exit code.

    0: done. 2: something is not accepted, or the disk cannot be written. 130, 143: stopped by SIGINT,
    SIGTERM; what was finished is saved.

    Args:
        module: name of the module, for messages.
        summary: what it does, for `--help`.
        argv: arguments without the program's name; those of the process by default.
    """
    with settings_as_found():
        return _main(module, summary, list(sys.argv[1:] if argv is None else argv))


def _main(module: str, summary: str, argv: list[str]) -> int:
    command = shlex.join(["python", "-m", module.split()[0], *argv])
    try:
        source = Path(argv.pop(0)) if argv and not argv[0].startswith("-") else None
        arguments = read_flags(module, summary, argv, Arguments())
        check_fields(arguments)
        if source is None:
            raise ConfigError("source: nothing given; accepted: a run directory or its policies.npz, first")
        if arguments.suite == "quick":
            compile_fast()
        keep_compiled_programs(arguments.compilation_cache)
        make_cpu_devices()
        start_devices()
        plan = make_plan(
            source,
            **{
                name: getattr(arguments, name)
                for name in (
                    "suite",
                    "methods",
                    "seeds",
                    "radii",
                    "units",
                    "side",
                    "seed",
                    "transfer_from",
                )
            },
        )
        name = (source if source.is_dir() else source.parent).resolve().name
        side = "" if arguments.side == "both" else f"-{arguments.side}"
        folder = arguments.out or Path("runs") / f"attack-{name}-{arguments.suite}{side}"
        run = AttackRun(plan, folder, make_lanes())
    except (ConfigError, SimulatorError, RunError, ArtefactError) as error:
        return fail(str(error))
    try:
        results = run.run()
        report = write_attack_report(folder, results, film_section(run))
    except Interrupted as stop:
        print(f"saved in {folder}; go on with\n  {command}", file=sys.stderr)
        return 128 + stop.signal_number
    except (RunError, ConfigError) as error:
        return fail(str(error))
    except OSError as error:
        if error.errno not in DISK_ERRORS:
            raise
        return fail(f"out: {folder}: {error}; what was saved is intact, the same command goes on from there")
    print(f"report: {report}")
    return 0
