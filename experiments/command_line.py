"""The command line shared by all experiments: presets, settings, errors and exit codes."""

import argparse
import contextlib
import difflib
import io
import json
import os
import re
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import jax
import tyro

from admrl_jax import hosts
from admrl_jax.checks import ConfigError
from admrl_jax.config import MACHINE_SETTINGS, Config, accepted, flatten, to_dict, validate
from admrl_jax.run_log import RunError, open_run
from admrl_jax.sharding import CPU_DEVICES, make_cpu_devices
from admrl_jax.simulators import SimulatorError
from experiments.context import Context, Diverged, Interrupted
from experiments.protocol import UNTIL, run_protocol


@dataclass(frozen=True)
class Arguments:
    """What the command line says beside the config."""

    config: Annotated[Config, tyro.conf.arg(name="")]
    preset: str = "paper"
    """paper: the paper's sizes. quick: everything at toy size in under two minutes."""
    run_dir: Path | None = None
    """Where the run is kept. Default: runs/<environment>-<preset>."""
    resume: bool = False
    """Go on with the run that is in the directory."""
    until: str = "report"
    """Last stage: pretrain, finetune or report. With --resume, a later run goes on from there."""
    compilation_cache: str = "auto"
    """Where compiled programs are kept, so that a second run starts at once: a directory, `off`, or
    auto: $JAX_COMPILATION_CACHE_DIR if set, else the user's cache folder."""
    distributed: str = "off"
    """auto or slurm: one of several processes, started by a job manager that JAX knows."""
    coordinator: str = ""
    """host:port of process 0: one of several processes started by hand, each with its own process_id."""
    num_processes: int = 1
    """With coordinator: processes of all hosts together."""
    process_id: int = 0
    """With coordinator: number of this process. Process 0 writes the files."""


OPTIONS = {
    "preset": "one name",
    "run_dir": "one directory",
    "until": "one of " + ", ".join(UNTIL),
    "compilation_cache": "one directory, off or auto",
    "distributed": "off, auto or slurm",
    "coordinator": "host:port",
    "num_processes": "a whole number of at least 1",
    "process_id": "a whole number of at least 0",
}
"""What the command line takes beside settings and switches, in words."""


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
    argv = sys.argv[1:] if argv is None else argv
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    # Without a value it is refused below, in one line, and not by argparse in two.
    first.add_argument("--preset", nargs="?", default="paper", const="")
    preset = first.parse_known_args(argv)[0].preset
    if preset not in presets:
        return fail(f"preset: {preset!r} is not known; accepted: {', '.join(presets)}")
    try:
        arguments = _parse(module, summary, argv, Arguments(config=presets[preset], preset=preset))
        validate(arguments.config)
    except ConfigError as error:
        return fail(str(error))
    if arguments.until not in UNTIL:
        return fail(f"until: {arguments.until!r} is not known; accepted: {', '.join(UNTIL)}")
    run_config = arguments.config
    directory = arguments.run_dir or Path("runs") / f"{run_config.env.name}-{preset}"
    # How many seeds, and where they are computed, does not make another protocol.
    same = {name: getattr(run_config, name) for name in ("seeds", *MACHINE_SETTINGS)}
    label = preset if run_config == replace(presets[preset], **same) else "custom"
    # A quick run compiles for longer than it computes.
    jax.config.update("jax_disable_most_optimizations", preset == "quick")
    _keep_compiled_programs(arguments.compilation_cache)
    is_one_process = not arguments.coordinator and arguments.distributed == "off"
    make_cpu_devices(run_config.num_devices or (CPU_DEVICES if is_one_process else 1))
    try:
        _join(arguments)
        context = Context(run_config, directory)
        lock = _open(directory, arguments)
    except (ConfigError, SimulatorError, RunError) as error:
        return fail(str(error))
    if label != "paper" and context.writes:
        print(f"{label} settings: the numbers of this run are not the paper's", file=sys.stderr)
    try:
        result = run_protocol(context, label, arguments.until)
    except Interrupted as stop:
        again = [a for a in argv if a != "--resume"]
        command = shlex.join(["python", "-m", module, *again, "--resume"])
        if context.writes:
            print(f"saved in {directory}; go on with\n  {command}", file=sys.stderr)
        return 128 + stop.signal_number
    except RunError as error:
        return fail(str(error))
    except Diverged as error:
        return fail(str(error), 3)
    except OSError as error:
        return fail(f"run-dir: {directory}: {error}; what was saved is intact, --resume goes on from there")
    finally:
        context.log.close()
        if lock is not None:
            os.close(lock)
    if context.writes:
        print(f"{'report' if arguments.until == 'report' else 'stopped as asked; run'}: {result}")
    return 0


def _parse(module: str, summary: str, argv: Sequence[str], default: Arguments) -> Arguments:
    """Reads the command line over the settings of a preset.

    Raises:
        ConfigError: tyro refused it; in one line instead of tyro's box, which does not say what is accepted.
    """
    box = io.StringIO()
    try:
        with contextlib.redirect_stderr(box):
            return tyro.cli(
                Arguments,
                args=argv,
                prog=f"python -m {module}",
                description=summary,
                default=default,
                config=(tyro.conf.AvoidSubcommands,),
            )
    except SystemExit as stop:
        if stop.code != 2:
            raise
    said = " ".join(re.sub("[─-╿]", " ", box.getvalue()).split())
    raise ConfigError(_why_refused(argv, default) or f"command line: {said}")


def _why_refused(argv: Sequence[str], default: Arguments) -> str | None:
    """What is wrong with the first flag that is unknown or whose words are not of its type."""
    settings = {name.removeprefix("config."): value for name, value in flatten(default).items()}
    flags = {_flag(name): name for name in settings}
    flags |= {_flag(name, "no-"): name for name, value in settings.items() if isinstance(value, bool)}
    for flag, words in _by_flag(argv):
        name = flags.get(flag.replace("_", "-"))
        if name is None:
            close = ", ".join(difflib.get_close_matches(flag, flags, cutoff=0))
            return f"command line: {flag!r} is not known; accepted: what --help lists, such as {close}"
        if not _are_of_type(words, settings[name]):
            given = repr(" ".join(words)) if words else "no value"
            return f"{name}: {given} is not accepted; accepted: {_accepted(name, settings[name])}"
    return None


def _by_flag(argv: Sequence[str]) -> list[tuple[str, list[str]]]:
    """Flags with the words that belong to each; a word before all flags passes for one."""
    groups: list[tuple[str, list[str]]] = []
    for word in argv:
        if groups and (not word.startswith("-") or _is_read(float, word)):
            groups[-1][1].append(word)
        else:
            flag, equals, value = word.partition("=")
            groups.append((flag, [value] if equals else []))
    return groups


def _are_of_type(words: Sequence[str], default: Any) -> bool:
    """Whether words spell a value of the type of a setting's default."""
    is_list = isinstance(default, tuple)
    kind = type(default[0] if is_list else default)
    if kind is bool:
        return not words
    return (is_list or len(words) == 1) and (
        kind not in (int, float) or all(_is_read(kind, word) for word in words)
    )


def _is_read(kind: type[int] | type[float], word: str) -> bool:
    try:
        kind(word)
    except ValueError:
        return False
    return True


def _flag(name: str, prefix: str = "") -> str:
    """`--env.no-torso-position` of `env.torso_position` and the prefix `no-`."""
    path, dot, last = name.rpartition(".")
    return f"--{path}{dot}{prefix}{last}".replace("_", "-")


def _accepted(name: str, default: Any) -> str:
    """What a flag accepts, in words."""
    if isinstance(default, bool):
        return f"{_flag(name)} or {_flag(name, 'no-')}, without a value"
    return OPTIONS[name] if name in OPTIONS else accepted(name)


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


def _open(directory: Path, arguments: Arguments) -> int | None:
    """Opens the run directory on the first process and returns its lock; all go on, or none."""
    settings = (to_dict(arguments.config), arguments.preset, arguments.resume, arguments.until)
    hosts.check_same(json.dumps(settings), "settings")
    lock, refusal = None, None
    if hosts.is_first():
        try:
            lock = open_run(directory, arguments.config, resume=arguments.resume)
        except RunError as error:
            refusal = error
    if hosts.largest(refusal is not None):
        raise refusal or RunError("run-dir: refused by process 0, which says why")
    return lock


def _keep_compiled_programs(choice: str) -> None:
    """Turns on JAX's persistent compilation cache."""
    if choice == "off":
        jax.config.update("jax_enable_compilation_cache", False)
        return
    jax.config.update("jax_enable_compilation_cache", True)
    # A start compiles about a hundred tiny programs, together several seconds, which JAX would not keep.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    if choice == "auto":
        if jax.config.values.get("jax_compilation_cache_dir") is not None:
            return
        caches = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        choice = str(caches / "admrl_jax" / "xla")
    jax.config.update("jax_compilation_cache_dir", choice)


def fail(message: str, code: int = 2) -> int:
    """Prints one line and returns the exit code."""
    print(f"error: {message}", file=sys.stderr)
    return code
