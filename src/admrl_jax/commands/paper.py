"""The command line of the whole paper: units of one environment, seed and preset, and one report of all.

A unit does not know the others, so they can be spread over machines: `--list` prints a command for each.
Runs that are there already can be reported on as they are, with `--runs`.
"""

import json
import shlex
import shutil
import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, NamedTuple

from admrl_jax.commands.arguments import CACHE, DIRECTORY, read_flags
from admrl_jax.commands.experiment import DIVERGED, main
from admrl_jax.commands.process import fail, keep_compiled_programs, settings_as_found
from admrl_jax.config import Config
from admrl_jax.core.settings import SEED, Accepts, ConfigError, check_fields, distinct, one_of
from admrl_jax.protocol.merge import merge_runs
from admrl_jax.report.attacked import ATTACK_FOLDER, Attacked
from admrl_jax.report.compared import ALIKE, TwiceError
from admrl_jax.report.measured import PAPER_ENVS, Measured
from admrl_jax.report.paper import write_paper_report
from admrl_jax.report.results import RESULTS, has_results, read_results
from admrl_jax.runs.artefact import ArtefactError
from admrl_jax.runs.devices import start_devices
from admrl_jax.runs.directory import RunError, read_run
from admrl_jax.runs.files import DamagedFileError
from admrl_jax.saved.attack_plan import effort_of
from admrl_jax.saved.decisions import measure_decisions
from admrl_jax.simulators import SimulatorError
from admrl_jax.suites import SUITES

UNTIL = ("units", "report")
MERGED = "all"
"""Folder of an environment in which its seeds are put together; made again where there are more."""

ENVS = Accepts(lambda x: isinstance(x, tuple) and set(x) <= set(PAPER_ENVS), ", ".join(PAPER_ENVS))
HARDENED = "hardened"
"""The preset beyond the paper that a unit may run as well."""
PRESETS = Accepts(
    lambda x: set(x) in ({"paper"}, {HARDENED}, {"paper", HARDENED}, {"quick"}) and len(set(x)) == len(x),
    f"paper, {HARDENED}, both of them, or quick",
)
SEEDS = distinct(SEED, "seeds from 0 on", may_be_empty=True)

PATHS = distinct(Accepts(lambda x: isinstance(x, Path), "a directory"), "directories", may_be_empty=True)


@dataclass(frozen=True)
class Arguments:
    """What is run of the paper."""

    envs: Annotated[tuple[str, ...], ENVS] = PAPER_ENVS
    """Environments."""
    seeds: Annotated[tuple[int, ...], SEEDS] = ()
    """Of every environment. Default: 10 in 2D navigation, 5 each of HalfCheetah and Reacher, 3 of Ant."""
    suite: Annotated[str, one_of("none", *SUITES)] = "standard"
    """Attackers that are tried on every unit's policies: none, quick, standard or claim."""
    until: Annotated[str, one_of(*UNTIL)] = "report"
    """Last stage: units, or the report on all of them."""
    presets: Annotated[tuple[str, ...], PRESETS] = ("paper", HARDENED)
    """Settings of every environment and seed; hardened is beyond the paper, and not run without a suite."""
    runs: Annotated[tuple[Path, ...], PATHS] = ()
    """Finished runs, one of each environment, that are reported on instead; nothing is trained."""
    attacks: Annotated[tuple[Path, ...], PATHS] = ()
    """With runs: finished attacks on more policies of these environments, such as hardened ones."""
    report_only: bool = False
    """Reports on the units that are there, and trains nothing."""
    list: bool = False
    """Prints the command of every unit that is not finished, one per line, and runs nothing."""
    out: Annotated[Path, DIRECTORY] = Path("runs/paper")
    """Where everything goes. The same command goes on where it stopped."""
    compilation_cache: Annotated[str, CACHE] = "auto"
    """Where compiled programs are kept: a directory, off, or auto."""


OF_UNITS = ("envs", "seeds", "suite", "until", "presets", "report_only", "list")
"""Arguments about what is run."""


class Unit(NamedTuple):
    """One seed of an environment, by one preset.

    Attributes:
        env: its name.
        seed: its seed.
        preset: its settings.
        directory: of its run.
    """

    env: str
    seed: int
    preset: str
    directory: Path

    @property
    def is_tested(self) -> bool:
        """Whether it is trained and tested, so that it can be reported on."""
        return (self.directory / "report.md").exists()

    def is_finished(self, suite: str) -> bool:
        """Whether it is tested, and attacked by that suite as it is now, support and query."""
        if suite == "none" or not self.is_tested:
            return self.is_tested
        plans = [attack["plan"] for attack in _attacks_on([self.directory])]
        wanted = (suite, effort_of(SUITES[suite]), "both")
        return [(plan["suite"], plan["effort"], plan["side"]) for plan in plans] == [wanted]


def units_of(arguments: Arguments, seeds: Mapping[str, int]) -> Iterator[Unit]:
    """Every unit; the first seed of all environments comes first.

    Args:
        arguments: of the command line.
        seeds: how many of each environment by default.
    """
    wanted = {env: arguments.seeds or tuple(range(seeds[env])) for env in arguments.envs}
    for place in range(max(map(len, wanted.values()), default=0)):
        for env, numbers in wanted.items():
            for preset in arguments.presets:
                # Nothing but what a suite leaves of hardened policies is reported.
                if place < len(numbers) and (preset != HARDENED or arguments.suite != "none"):
                    folder = arguments.out / env / ("" if preset == "paper" else preset)
                    yield Unit(env, numbers[place], preset, folder / f"seed-{numbers[place]}")


def paper_main(
    module: str,
    summary: str,
    presets: Mapping[str, dict[str, Config]],
    seeds: Mapping[str, int],
    argv: Sequence[str] | None = None,
) -> int:
    """Runs the paper; returns the exit code of the first unit that did not end well, else 0.

    Args:
        module: name of the module, for messages.
        summary: what it does, for `--help`.
        presets: of every environment, by its name.
        seeds: how many of each environment by default.
        argv: arguments without the program's name; those of the process by default.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        arguments = read_flags(module, summary, words, Arguments())
        check_fields(arguments)
    except ConfigError as error:
        return fail(str(error))
    if arguments.runs:
        unused = [name for name in OF_UNITS if getattr(arguments, name) != getattr(Arguments(), name)]
        if unused:
            return fail(f"{unused[0]}: nothing is run where --runs names finished runs; leave one out")
        return _report(lambda: report_of_runs(arguments.out, arguments.runs, arguments.attacks), arguments)
    if arguments.attacks:
        return fail("attacks: they are reported beside runs; name these with --runs")
    units = list(units_of(arguments, seeds))
    if arguments.list:
        for unit in units:
            if not unit.is_finished(arguments.suite):
                print(_command_of(module, unit, arguments))
        return 0
    code = 0 if arguments.report_only else _run_units(units, arguments, presets)
    if code not in (0, DIVERGED):
        again = shlex.join(["python", "-m", module, *words])
        print(f"all units that are not finished go on with\n  {again}", file=sys.stderr)
        return code
    if arguments.until != UNTIL[-1]:
        return code
    return _report(lambda: report_of_units(arguments.out, units, arguments.suite), arguments) or code


def _report(write: Callable[[], Path], arguments: Arguments) -> int:
    """Says where the report is, or what is wrong; an exit code. Attacked decisions are measured for it."""
    wrong = (RunError, ArtefactError, DamagedFileError, TwiceError, ConfigError, SimulatorError, OSError)
    try:
        with settings_as_found():
            keep_compiled_programs(arguments.compilation_cache)
            start_devices()
            print(f"report: {write()}")
    except wrong as error:
        return fail(str(error))
    except KeyboardInterrupt:
        return fail("stopped before the report was written; the same command writes it", 128 + signal.SIGINT)
    return 0


def report_of_runs(out: Path, directories: Sequence[Path], attacks: Sequence[Path] = ()) -> Path:
    """Writes the report on finished runs.

    Args:
        out: of the report.
        directories: of the runs, one of each environment.
        attacks: finished attacks on more policies.

    Raises:
        RunError: one is not finished, is of no environment of the paper, or two are of the same.
    """
    runs, places = {}, {}
    for directory in directories:
        env = read_run(directory, (RESULTS,), "directories of finished runs").env.name
        if env not in PAPER_ENVS:
            raise RunError(f"runs: {directory} is of {env}; accepted: {', '.join(PAPER_ENVS)}")
        if env in runs:
            raise RunError(f"runs: {places[env]} and {directory} are both of {env}; accepted: one of each")
        runs[env], places[env] = _measured(directory, [directory]), directory
    beyond = [(_name_of(folder), Attacked(_read_attack(folder))) for folder in attacks]
    out.mkdir(parents=True, exist_ok=True)
    return write_paper_report(out, runs, places, beyond)


def report_of_units(out: Path, units: Sequence[Unit], suite: str = "none") -> Path:
    """Puts together what is finished and writes the report.

    Args:
        out: of the report.
        units: of the paper; those that are not trained and tested are left out.
        suite: that should have attacked them.

    Raises:
        RunError: no unit is finished, or units do not fit together.
    """
    runs, places, beyond = {}, {}, []
    for env in dict.fromkeys(unit.env for unit in units):
        finished = [unit for unit in units if unit.env == env and unit.is_tested]
        directories = [unit.directory for unit in finished if unit.preset != HARDENED]
        hardened = _attacks_on([unit.directory for unit in finished if unit.preset == HARDENED])
        beyond += [(f"{env}, {HARDENED}", Attacked(attack)) for attack in hardened]
        if directories:
            places[env] = _merged(directories)
            runs[env] = _measured(places[env], directories)
    if not runs and not beyond:
        raise RunError(f"out: {out} has no finished unit")
    missing = [
        f"{unit.env}, seed {unit.seed}, {unit.preset} ({'attack' if unit.is_tested else 'training'})"
        for unit in units
        if not unit.is_finished(suite)
    ]
    return write_paper_report(out, runs, places, beyond, missing)


def _measured(run: Path, attacked: Sequence[Path]) -> Measured:
    """A run, with the attacks of a suite on the runs that it was put together from; attacked decisions.

    Raises:
        RunError: these were not attacked alike, so that they cannot be put together.
    """
    plans, names = {}, (*ALIKE, "radii")
    for one in attacked:
        for attack in _attacks_on([one]):
            plans[json.dumps([attack["plan"].get(name) for name in names])] = one
    if len(plans) > 1:
        first, second, *_ = plans.values()
        words = ", ".join(names)
        raise RunError(f"attacks: {first} and {second} were not attacked alike; accepted: equal {words}")
    return Measured(read_results(run), _attacks_on(attacked), measure_decisions(run))


def _attacks_on(runs: Sequence[Path]) -> list[dict[str, Any]]:
    """What the suite left of those runs that it attacked."""
    return [_read_attack(run / ATTACK_FOLDER) for run in runs if has_results(run / ATTACK_FOLDER)]


def _read_attack(folder: Path) -> dict[str, Any]:
    """What a suite left.

    Raises:
        RunError: the folder is not that of a finished attack.
        DamagedFileError: the file cannot be read.
    """
    if not has_results(folder):
        raise RunError(f"attacks: {folder} has no {RESULTS}; accepted: folders of finished attacks")
    results = read_results(folder)
    if "plan" not in results:
        raise RunError(f"attacks: {folder} is no attack but a run; accepted: folders of finished attacks")
    return results


def _name_of(attack: Path) -> str:
    """An attack is called by its run where it lies inside it; a run may have several."""
    attack = attack.resolve()
    return attack.parent.name if (attack.parent / "config.json").exists() else attack.name


def _merged(directories: Sequence[Path]) -> Path:
    """The directory in which the seeds of an environment are put together."""
    if len(directories) == 1:
        return directories[0]
    place = directories[0].parent / MERGED
    if (place / "report.md").exists() and _holds_the_same(place, directories):
        return place
    if place.exists():
        shutil.rmtree(place)
    merge_runs(directories, place)
    return place


def _holds_the_same(place: Path, directories: Sequence[Path]) -> bool:
    """Whether runs were put together as they are now: one may have been trained anew since."""

    def rows(run: Path) -> list[str]:
        return [json.dumps(row, sort_keys=True) for row in read_results(run)["rows"]]

    return sorted(rows(place)) == sorted(row for directory in directories for row in rows(directory))


def _run_units(units: Sequence[Unit], arguments: Arguments, presets: Mapping[str, dict[str, Config]]) -> int:
    """Runs what is not finished; returns the exit code that ended it, else whether a unit diverged, or 0.

    One that diverged does so again, and keeps nobody else from running.
    """
    ended = 0
    for number, unit in enumerate(units, 1):
        if unit.is_finished(arguments.suite):
            continue
        words = f"{unit.env}, seed {unit.seed}, preset {unit.preset}"
        print(f"unit {number} of {len(units)}: {words}", file=sys.stderr)
        preset = presets[unit.env][unit.preset]
        flags = [f"--preset={unit.preset}", f"--seeds={unit.seed}", f"--run-dir={unit.directory}"]
        flags += [f"--eval.suite={arguments.suite}", f"--compilation-cache={arguments.compilation_cache}"]
        flags += ["--resume"] * (unit.directory / "config.json").exists()
        code = main(f"experiments.{unit.env}", "", {unit.preset: preset}, flags)
        if code not in (0, DIVERGED):
            return code
        ended = ended or code
    return ended


def _command_of(module: str, unit: Unit, arguments: Arguments) -> str:
    """What runs one unit alone, or goes on with it."""
    flags = ["--envs", unit.env, "--seeds", str(unit.seed), "--until", "units", "--out", str(arguments.out)]
    flags += ["--suite", arguments.suite, "--presets", unit.preset]
    if arguments.compilation_cache != Arguments().compilation_cache:
        flags += ["--compilation-cache", arguments.compilation_cache]
    return shlex.join(["python", "-m", module, *flags])
