"""The command line of an experiment: what it takes, and one line for what it refuses."""

import argparse
import contextlib
import difflib
import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypeVar

import tyro

from admrl_jax.config import Config
from admrl_jax.core.settings import (
    SEED,
    Accepts,
    ConfigError,
    check_fields,
    distinct,
    fields_of,
    is_number,
    one_of,
    whole_from,
)
from admrl_jax.protocol.run import UNTIL
from admrl_jax.runs.hosts import CLUSTERS

Flags = TypeVar("Flags")

DIRECTORY = Accepts(lambda x: x is None or isinstance(x, Path), "one directory")
CACHE = Accepts(lambda x: isinstance(x, str), "one directory, off or auto")
NAMES = distinct(Accepts(lambda x: isinstance(x, str), "a name"), "names", may_be_empty=True)
SEEDS = distinct(SEED, "seeds of the run", may_be_empty=True)
RADII = Accepts(lambda x: isinstance(x, tuple) and all(is_number(y) and y > 0 for y in x), "numbers above 0")
ADDRESS = Accepts(lambda x: isinstance(x, str), "host:port")


@dataclass(frozen=True)
class Arguments:
    """What the command line says beside the config."""

    config: Annotated[Config, tyro.conf.arg(name="")]
    preset: str = "paper"
    """paper: the paper's sizes. quick: everything at toy size in under two minutes.
    hardened: beyond the paper, see docs/robust_training.md; 2D navigation has hardened_memoryless too."""
    run_dir: Annotated[Path | None, DIRECTORY] = None
    """Where the run is kept. Default: runs/<environment>-<preset>."""
    resume: bool = False
    """Go on with the run that is in the directory."""
    until: Annotated[str, one_of(*UNTIL)] = "report"
    """Last stage: pretrain, finetune or report. With --resume, a later run goes on from there."""
    compilation_cache: Annotated[str, CACHE] = "auto"
    """Where compiled programs are kept, so that a second run starts at once: a directory, `off`, or
    auto: $JAX_COMPILATION_CACHE_DIR if set, else the user's cache folder."""
    distributed: Annotated[str, one_of("off", *CLUSTERS)] = "off"
    """auto or slurm: one of several processes, started by a job manager that JAX knows."""
    coordinator: Annotated[str, ADDRESS] = ""
    """host:port of process 0: one of several processes started by hand, each with its own process_id."""
    num_processes: Annotated[int, whole_from(1, 2**31 - 1)] = 1
    """With coordinator: processes of all hosts together."""
    process_id: Annotated[int, whole_from(0, 2**31 - 1)] = 0
    """With coordinator: number of this process. Process 0 writes the files."""


def parse(module: str, summary: str, presets: Mapping[str, Config], argv: Sequence[str]) -> Arguments:
    """Reads and checks a command line.

    Args:
        module: of the experiment, for its help.
        summary: what it is, for its help.
        presets: settings by name; `--preset` chooses, the other flags change them.
        argv: words.

    Raises:
        ConfigError: something is not accepted; names it and says what is.
    """
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    # Without a value it is refused below, in one line, and not by argparse in two.
    first.add_argument("--preset", nargs="?", default="paper", const="")
    preset = first.parse_known_args(argv)[0].preset
    if preset not in presets:
        raise ConfigError(f"preset: {preset!r} is not known; accepted: {', '.join(presets)}")
    arguments = read_flags(module, summary, argv, Arguments(config=presets[preset], preset=preset))
    check_fields(arguments.config)
    check_fields(arguments)
    return arguments


def read_flags(module: str, summary: str, argv: Sequence[str], default: Flags) -> Flags:
    """Reads flags over a dataclass of defaults.

    Args:
        module: for the help.
        summary: what it does, for the help.
        argv: words.
        default: what holds where no flag says otherwise.

    Raises:
        ConfigError: tyro refused it; in one line instead of tyro's box, which does not say what is accepted.
    """
    box = io.StringIO()
    try:
        with contextlib.redirect_stderr(box):
            return tyro.cli(
                type(default),
                args=argv,
                prog=f"python -m {module}",
                description=summary,
                default=default,
                config=(tyro.conf.AvoidSubcommands,),
            )
    except SystemExit as stop:
        if stop.code != 2:
            raise
    said = " ".join(re.sub("[─-╿]|-{3,}", " ", box.getvalue()).split())
    raise _why_refused(argv, default) or ConfigError(f"command line: {said}")


def _why_refused(argv: Sequence[str], default: Any) -> ConfigError | None:
    """What is wrong with the first flag that is unknown or whose value is not of its type."""
    fields = {name.removeprefix("config."): field for name, *field in fields_of(default)}
    flags = {_flag(name): name for name in fields}
    flags |= {_flag(name, "no-"): name for name, (value, _) in fields.items() if isinstance(value, bool)}
    for flag, words in _by_flag(argv):
        name = flags.get(flag.replace("_", "-"))
        if name is None:
            close = ", ".join(difflib.get_close_matches(flag, flags, cutoff=0))
            return ConfigError(
                f"command line: {flag!r} is not known; accepted: what --help lists, such as {close}"
            )
        value, accepts = fields[name]
        if isinstance(value, bool) and words:
            accepts = Accepts(bool, f"{_flag(name)} or {_flag(name, 'no-')}, without a value")
        elif value == () and accepts:
            if accepts.test(tuple(map(_parsed, words))):
                continue
        elif _are_of_type(words, value):
            continue
        given = repr(" ".join(words)) if words else "no value"
        accepted = accepts.words if accepts else "what --help says"
        return ConfigError(f"{name}: {given} is not accepted; accepted: {accepted}")
    return None


def _by_flag(argv: Sequence[str]) -> list[tuple[str, list[str]]]:
    """Flags with the words that belong to each; a word before the first flag counts as a flag."""
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
    if isinstance(default, bool):
        return not words
    is_list = isinstance(default, tuple)
    kind = type(default[0] if is_list and default else default)
    return (is_list or len(words) == 1) and (
        kind not in (int, float) or all(_is_read(kind, word) for word in words)
    )


def _parsed(word: str) -> int | float | str:
    """A word as what it looks like."""
    kinds = [kind for kind in (int, float) if _is_read(kind, word)]
    return kinds[0](word) if kinds else word


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
