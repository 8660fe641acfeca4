"""The command line of an evaluation of saved policies."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from admrl_jax.commands.arguments import CACHE, DIRECTORY, NAMES, SEEDS, read_flags
from admrl_jax.commands.process import DISK_ERRORS, fail, keep_compiled_programs, settings_as_found
from admrl_jax.core.settings import (
    COUNT,
    INNER_STEP_SIZE,
    SEED,
    Accepts,
    ConfigError,
    check_fields,
    is_whole,
    one_of,
    whole_from,
)
from admrl_jax.report.evaluation import write_evaluation_report
from admrl_jax.runs.artefact import ArtefactError, check_known, load_policy, read_policies
from admrl_jax.runs.devices import start_devices
from admrl_jax.saved.evaluate_film import adaptation_section
from admrl_jax.saved.evaluate_run import EvaluationPlan, evaluate_policies, read_tasks
from admrl_jax.simulators import SIMULATORS, SimulatorError

MAX_STEPS = 100
SHOTS = Accepts(
    lambda x: isinstance(x, tuple) and all(is_whole(y) and 1 <= y <= 10_000 for y in x),
    "whole numbers from 1 to 10000",
)
SIZES = Accepts(
    lambda x: isinstance(x, tuple) and all(map(INNER_STEP_SIZE.test, x)), "numbers from 1e-06 to 100"
)
FILE = Accepts(lambda x: x is None or isinstance(x, Path), "one file")


@dataclass(frozen=True)
class Arguments:
    """Flags of an evaluation. Before them stands the run directory, or its `policies.npz`."""

    methods: Annotated[tuple[str, ...], NAMES] = ()
    """Policies, such as maml admrl. Default: the run's methods."""
    seeds: Annotated[tuple[int, ...], SEEDS] = ()
    """Of the policies. Default: all of the run."""
    shots: Annotated[tuple[int, ...], SHOTS] = ()
    """Episodes per step of adaptation; several, such as 5 20 40, are compared. Default: the run's."""
    steps: Annotated[int, whole_from(0, MAX_STEPS)] = 1
    """Gradient steps of adaptation, each on new episodes."""
    step_sizes: Annotated[tuple[float, ...], SIZES] = ()
    """Of the steps in turn; the last one holds for all that follow. Default: the run's."""
    query_episodes: Annotated[int, COUNT] = 20
    """Episodes by which every stage of adaptation is measured."""
    num_tasks: Annotated[int, COUNT] = 40
    """Tasks to draw."""
    tasks: Annotated[Path | None, FILE] = None
    """A JSON file with a list of tasks, instead of drawing them: [[0.3, -0.2], [0.1, 0.4]] for 2D navigation,
    [1, -1] for HalfCheetah-Dir."""
    seed: Annotated[int, SEED] = 0
    """Of tasks and episodes."""
    simulator: Annotated[str, one_of("", *SIMULATORS)] = ""
    """Engine. Default: the one that trained."""
    video: bool = False
    """Film two tasks before and after adaptation, where the environment has a MuJoCo body."""
    keep_positions: bool = False
    """Keep what is filmed as numbers too: observations, actions, rewards and the engine's positions."""
    out: Annotated[Path | None, DIRECTORY] = None
    """Where the results go. Default: runs/evaluate-<run>."""
    compilation_cache: Annotated[str, CACHE] = "auto"
    """Where compiled programs are kept: a directory, off, or auto."""


def evaluate_main(module: str, summary: str, argv: Sequence[str] | None = None) -> int:
    """Evaluates saved policies; returns the exit code: 0, or 2 where something is not accepted.

    Args:
        module: name of the module, for messages.
        summary: what it does, for `--help`.
        argv: arguments without the program's name; those of the process by default.
    """
    with settings_as_found():
        try:
            return _main(module, summary, list(sys.argv[1:] if argv is None else argv))
        except (ConfigError, SimulatorError, ArtefactError) as error:
            return fail(str(error))


def _main(module: str, summary: str, argv: list[str]) -> int:
    source = Path(argv.pop(0)) if argv and not argv[0].startswith("-") else None
    arguments = read_flags(module, summary, argv, Arguments())
    check_fields(arguments)
    if source is None:
        raise ConfigError("source: nothing given; accepted: a run directory or its policies.npz, first")
    keep_compiled_programs(arguments.compilation_cache)
    start_devices()
    plan = make_evaluation_plan(source, arguments)
    name = (source if source.is_dir() else source.parent).resolve().name
    folder = arguments.out or Path("runs") / f"evaluate-{name}"
    try:
        results = evaluate_policies(plan, folder)
        films = arguments.video or arguments.keep_positions
        extras = (
            adaptation_section(plan, folder, video=arguments.video, keep=arguments.keep_positions)
            if films
            else ()
        )
        report = write_evaluation_report(folder, results, extras)
    except OSError as error:
        if error.errno not in DISK_ERRORS:
            raise
        return fail(f"out: {folder}: {error}")
    print(f"report: {report}")
    return 0


def _own_step_sizes(source: Path, methods: Sequence[str], simulator: str) -> tuple[float, ...]:
    """The step size that these methods were trained to adapt with.

    Raises:
        ConfigError: one has none, or they differ.
    """
    found: dict[str, float] = {}
    for method in methods:
        trained = load_policy(source, method, simulator=simulator)
        learner = trained.learner_name
        size = getattr(getattr(trained.config.learners, learner), "inner_lr", None)
        if size is None:
            raise ConfigError(f"step_sizes: {learner} has no step size of adaptation; accepted: --steps 0")
        found[learner] = size
    if len(set(found.values())) > 1:
        each = ", ".join(f"{size:g} of {learner}" for learner, size in found.items())
        raise ConfigError(f"step_sizes: the run has {each}; accepted: one for all methods, or fewer methods")
    return tuple(set(found.values()))


def make_evaluation_plan(source: Path, arguments: Arguments) -> EvaluationPlan:
    """What is evaluated; what is not given is as in the run.

    Raises:
        ArtefactError: there is no such artefact, or it is damaged.
        ConfigError: something is not accepted, or not in the artefact.
    """
    arrays = read_policies(source)
    known = sorted({name.split("/")[1] for name in arrays if name.startswith("policy/")})
    trained = load_policy(source, known[0], simulator=arguments.simulator)
    config = trained.config
    found = tuple(int(x) for x in arrays["seeds"])
    methods = arguments.methods or tuple(name for name in config.methods if name in known)
    seeds = arguments.seeds or found
    check_known("methods", methods, known)
    check_known("seeds", seeds, found)
    sizes = arguments.step_sizes or (
        _own_step_sizes(source, methods, arguments.simulator) if arguments.steps else ()
    )
    sizes = (*sizes[: arguments.steps], *sizes[-1:] * (arguments.steps - len(sizes)))
    tasks = None
    if arguments.tasks is not None:
        tasks = read_tasks(arguments.tasks, trained.env)
    return EvaluationPlan(
        source=source,
        methods=tuple(methods),
        seeds=tuple(seeds),
        shots=arguments.shots or (config.eval.num_trajectories,),
        step_sizes=sizes,
        query_episodes=arguments.query_episodes,
        num_tasks=arguments.num_tasks,
        tasks=tasks,
        seed=arguments.seed,
        simulator=arguments.simulator,
    )
