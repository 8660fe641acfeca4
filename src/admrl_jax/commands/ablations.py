"""The command line of ablations: one thing changed at a time, and what a suite of attackers leaves of each.

All variants go on from the clean pre-training of the first one, unless they change that. Variants do not know
each other: some can be run now, and others added.
"""

import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, NamedTuple

from admrl_jax.commands.arguments import CACHE, DIRECTORY, NAMES, RADII, SEEDS, read_flags
from admrl_jax.commands.attack import attack_main
from admrl_jax.commands.experiment import main
from admrl_jax.commands.process import fail
from admrl_jax.config import Config
from admrl_jax.core.settings import Accepts, ConfigError, check_fields, one_of
from admrl_jax.report.ablations import Variant, write_ablations_report
from admrl_jax.report.attacked import ATTACK_FOLDER, Attacked
from admrl_jax.report.results import read_results
from admrl_jax.suites import SUITES

NAME = Accepts(lambda x: isinstance(x, str), "a name")


class Ablation(NamedTuple):
    """One thing changed.

    Attributes:
        says: what, in words.
        method: that is trained.
        settings: that differ from the preset, by name.
        pretrains: it does not go on from the first variant's pre-training.
    """

    says: str
    method: str
    settings: Mapping[str, Any] = {}
    pretrains: bool = False


Ablations = Mapping[str, Ablation]
"""By name; the first is what the others go on from and are compared with."""


@dataclass(frozen=True)
class Arguments:
    """Which ablations, and how large."""

    env: Annotated[str, NAME] = ""
    """Environment."""
    only: Annotated[tuple[str, ...], NAMES] = ()
    """Some variants, beside the first. Default: all."""
    seeds: Annotated[tuple[int, ...], SEEDS] = (0, 1, 2)
    """Of every variant."""
    radii: Annotated[tuple[float, ...], RADII] = (0.2,)
    """L2 radii at which all are attacked, in raw observations."""
    suite: Annotated[str, one_of(*SUITES)] = "quick"
    """Attackers: quick, standard or claim."""
    preset: Annotated[str, one_of("paper", "quick")] = "paper"
    """Sizes of every run."""
    out: Annotated[Path | None, DIRECTORY] = None
    """Where everything goes. Default: runs/ablations-<env>. The same command goes on where it stopped."""
    compilation_cache: Annotated[str, CACHE] = "auto"
    """Where compiled programs are kept: a directory, off, or auto."""


def ablations_main(
    module: str,
    summary: str,
    presets: Mapping[str, dict[str, Config]],
    ablations_of: Callable[[str, Config], Ablations],
    argv: Sequence[str] | None = None,
) -> int:
    """Runs ablations; returns the exit code of the first command that did not end well, else 0.

    Args:
        module: name of the module, for messages.
        summary: what it does, for `--help`.
        presets: of every environment, by its name.
        ablations_of: `(environment, preset) -> Ablations`.
        argv: arguments without the program's name; those of the process by default.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        arguments = read_flags(module, summary, words, Arguments())
        check_fields(arguments)
        chosen = choose(arguments, presets, ablations_of)
    except ConfigError as error:
        return fail(str(error))
    out = arguments.out or Path("runs") / f"ablations-{arguments.env}"
    for number, name in enumerate(chosen, 1):
        print(f"variant {number} of {len(chosen)}: {name}", file=sys.stderr)
        code = _run(out, name, chosen, arguments, presets[arguments.env])
        if code:
            again = shlex.join(["python", "-m", module, *words])
            print(f"all variants that are not finished go on with\n  {again}", file=sys.stderr)
            return code
    variants = [_read(out, name, ablation) for name, ablation in chosen.items()]
    print(f"report: {write_ablations_report(out, variants, arguments.preset)}")
    return 0


def choose(
    arguments: Arguments,
    presets: Mapping[str, dict[str, Config]],
    ablations_of: Callable[[str, Config], Ablations],
) -> Ablations:
    """The variants that are asked for; the first is always among them.

    Raises:
        ConfigError: an environment or a variant is not known.
    """
    if arguments.env not in presets:
        given = f"{arguments.env!r} is not accepted" if arguments.env else "nothing given"
        raise ConfigError(f"env: {given}; accepted: {', '.join(presets)}")
    known = ablations_of(arguments.env, presets[arguments.env][arguments.preset])
    for name in arguments.only:
        if name not in known:
            raise ConfigError(f"only: {name!r} is not known; accepted: {', '.join(known)}")
    first = next(iter(known))
    return {name: x for name, x in known.items() if name in (first, *(arguments.only or known))}


def flags_of(settings: Mapping[str, Any]) -> list[str]:
    """The words of a command line that make these settings."""
    return [f"--{name.replace('_', '-')}={value}" for name, value in settings.items()]


def _run(out: Path, name: str, chosen: Ablations, arguments: Arguments, presets: dict[str, Config]) -> int:
    """Trains and attacks a variant, or what of that is not done yet."""
    ablation, first, run = chosen[name], next(iter(chosen)), out / name
    seeds = ["--seeds", *map(str, arguments.seeds)]
    method = ["--methods", ablation.method]
    cache = f"--compilation-cache={arguments.compilation_cache}"
    flags = [f"--preset={arguments.preset}", *seeds, *method, *flags_of(ablation.settings), cache]
    flags += [f"--run-dir={run}", "--until=finetune"]
    flags += [] if ablation.pretrains else [f"--pretrained={out / first}"]
    # A finished run is not run again, but one with other settings is refused.
    flags += ["--resume"] * (run / "config.json").exists()
    code = main(f"experiments.{arguments.env}", "", presets, flags)
    if code:
        return code
    radii = ["--radii", *(f"{radius:g}" for radius in arguments.radii), "--units=paper"]
    flags = [str(run), f"--suite={arguments.suite}", *radii, *seeds, *method, cache]
    return attack_main("experiments.attack", "", [*flags, f"--out={run / ATTACK_FOLDER}"])


def _read(out: Path, name: str, ablation: Ablation) -> Variant:
    attacked = Attacked(read_results(out / name / ATTACK_FOLDER))
    return Variant(name, ablation.says, ablation.method, attacked)
