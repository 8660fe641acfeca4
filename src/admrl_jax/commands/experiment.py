"""What every experiment does with its command line: run the protocol; errors and exit codes."""

import json
import os
import shlex
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax

from admrl_jax.commands.arguments import Arguments, parse
from admrl_jax.commands.process import DISK_ERRORS, fail, keep_compiled_programs, settings_as_found
from admrl_jax.config import MACHINE_SETTINGS, Config, to_dict
from admrl_jax.core.settings import ConfigError
from admrl_jax.protocol.run import run_protocol
from admrl_jax.protocol.session import Session, open_session
from admrl_jax.protocol.stage import Diverged
from admrl_jax.runs import hosts
from admrl_jax.runs.artefact import ArtefactError
from admrl_jax.runs.devices import CPU_DEVICES, compile_fast, make_cpu_devices, start_devices
from admrl_jax.runs.directory import RunError, open_run
from admrl_jax.runs.signals import Interrupted
from admrl_jax.simulators import SimulatorError

DIVERGED = 3
"""Exit code of a run whose numbers were not finite for too long."""


def main(module: str, summary: str, presets: dict[str, Config], argv: list[str] | None = None) -> int:
    """Parses the command line, runs the protocol, returns the exit code.

    0: done. 2: bad settings or directory, nothing touched; or a disk that is full or cannot be
    written, with every earlier checkpoint intact. 3: numbers were not finite for too many steps in a
    row (`schedule.max_bad_steps`). 130, 143: stopped by SIGINT, SIGTERM after saving.

    Args:
        module: name of the experiment's module, for messages.
        summary: what the experiment does, for `--help`.
        presets: config by preset name.
        argv: arguments without the program's name; those of the process by default.
    """
    with settings_as_found():
        return _main(module, summary, presets, sys.argv[1:] if argv is None else argv)


def _main(module: str, summary: str, presets: dict[str, Config], argv: list[str]) -> int:
    try:
        arguments = parse(module, summary, presets, argv)
    except ConfigError as error:
        return fail(str(error))
    return carry_out(arguments, label_of(arguments.config, arguments.preset, presets), module, argv)


def carry_out(arguments: Arguments, label: str, module: str, argv: Sequence[str]) -> int:
    """Runs the protocol as arguments say; returns the exit code, see `main`.

    Args:
        arguments: what is run, and where.
        label: `paper`, `quick` or `custom`, for the report.
        module: the command, for the one that goes on.
        argv: its arguments, likewise.
    """
    lock = None
    try:
        directory = arguments.run_dir or Path("runs") / f"{arguments.config.env.name}-{arguments.preset}"
        _prepare_jax(arguments)
        _join(arguments)
        start_devices()
        session = open_session(arguments.config, directory)
        lock = _open(directory, session.config, arguments)
    except (ConfigError, SimulatorError, RunError) as error:
        return fail(str(error))
    if label != "paper" and session.journal.writes:
        print(f"{label} settings: the numbers of this run are not the paper's", file=sys.stderr)
    again = [argument for argument in argv if argument != "--resume"]
    command = shlex.join(["python", "-m", *module.split(), *again, "--resume"])
    try:
        return _run(session, label, arguments.until, command)
    finally:
        session.journal.log.close()
        if lock is not None:
            os.close(lock)


def label_of(config: Config, preset: str, presets: dict[str, Config]) -> str:
    """The preset's name, or `custom` where a setting that decides the numbers differs from it.

    How many seeds, where they are computed, and the suite that attacks them afterwards, make no other
    protocol.
    """
    wanted = presets[preset]
    same: dict[str, Any] = {name: getattr(config, name) for name in ("seeds", *MACHINE_SETTINGS)}
    same["eval"] = replace(wanted.eval, suite=config.eval.suite)
    return preset if config == replace(wanted, **same) else "custom"


def _run(session: Session, label: str, until: str, command: str) -> int:
    """Runs the protocol and prints how it ended; `command` resumes the run."""
    directory, writes = session.directory, session.journal.writes
    try:
        result = run_protocol(session, label, until)
    except Interrupted as stop:
        if writes:
            print(f"saved in {directory}; go on with\n  {command}", file=sys.stderr)
        return 128 + stop.signal_number
    except (RunError, ConfigError, ArtefactError) as error:
        return fail(str(error))
    except Diverged as error:
        return fail(str(error), DIVERGED)
    except OSError as error:
        if error.errno not in DISK_ERRORS:
            raise
        return fail(f"run-dir: {directory}: {error}; what was saved is intact, --resume goes on from there")
    if writes:
        print(f"{'report' if until == 'report' else 'stopped as asked; run'}: {result}")
    return 0


def _prepare_jax(arguments: Arguments) -> None:
    """Settings of JAX that a run needs, before JAX looks for devices."""
    jax.config.update("jax_disable_most_optimizations", False)
    if arguments.preset == "quick":
        compile_fast()
    keep_compiled_programs(arguments.compilation_cache)
    is_one_process = not arguments.coordinator and arguments.distributed == "off"
    make_cpu_devices(arguments.config.num_devices or (CPU_DEVICES if is_one_process else 1))


def _join(arguments: Arguments) -> None:
    """Becomes one of several processes, where the command line says so."""
    if arguments.coordinator:
        hosts.join(
            coordinator=arguments.coordinator,
            num_processes=arguments.num_processes,
            process_id=arguments.process_id,
        )
    elif arguments.distributed != "off":
        hosts.join_cluster(arguments.distributed)


def _open(directory: Path, config: Config, arguments: Arguments) -> int | None:
    """Opens the run directory on the first process and returns its lock; all go on, or none."""
    settings = (to_dict(config), arguments.preset, arguments.resume, arguments.until)
    hosts.check_same(json.dumps(settings), "settings")
    lock, refusal = None, None
    if hosts.is_first():
        try:
            lock = open_run(directory, config, resume=arguments.resume)
        except RunError as error:
            refusal = error
    if hosts.largest(refusal is not None):
        raise refusal or RunError("run-dir: refused by process 0, which says why")
    return lock
