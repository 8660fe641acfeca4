"""Every number of a run, as frozen dataclasses: no presets, no parsing of command lines, no files.

The settings of a part are defined beside the part. Here they are gathered by the names in the registries, so
those of a new part appear by themselves.
"""

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any

from admrl_jax.attacks.registry import ATTACKS, CLEAN
from admrl_jax.core.networks import PolicyConfig
from admrl_jax.core.settings import (
    COUNT,
    COUNT_OR_ZERO,
    POSITIVE,
    SEED,
    STEPS,
    STRENGTHS,
    ConfigError,
    check_fields,
    distinct,
    flatten,
    from_plain,
    one_of,
    refusal,
    to_plain,
    whole_from,
)
from admrl_jax.defences.registry import DEFENCES, UNDEFENDED
from admrl_jax.envs.base import EnvConfig
from admrl_jax.envs.registry import env_spec
from admrl_jax.learners.registry import LEARNERS
from admrl_jax.methods import METHODS, PAPER_METHODS
from admrl_jax.sampling import SamplingConfig
from admrl_jax.simulators import SIMULATORS
from admrl_jax.suites import SUITES

MACHINE_SETTINGS = ("simulator", "num_threads", "num_devices", "lanes", "task_block")
"""Settings that say where and how a run is computed, and not what."""

MAY_CHANGE = (*MACHINE_SETTINGS[1:], "schedule.max_bad_steps", "eval.suite")
"""Settings that may differ when a run is resumed: they do not affect its own results beyond rounding."""

UNITS = {"paper": "raw observation units", "normalised": "standard deviations of clean observations"}
"""Units of attacks, in words."""

_ATTACK_NAMES = tuple(name for name in ATTACKS if name != CLEAN)
_ATTACK_WORDS = "names of attacks: " + ", ".join(_ATTACK_NAMES)
METHOD_NAMES = distinct(one_of(*METHODS), "names of methods: " + ", ".join(METHODS))
ATTACK_NAMES = distinct(one_of(*_ATTACK_NAMES), _ATTACK_WORDS)
ATTACK_NAMES_OR_NONE = distinct(one_of(*_ATTACK_NAMES), _ATTACK_WORDS, may_be_empty=True)


def _gather(name: str, doc: str, configs: Mapping[str, type]) -> type:
    """A frozen dataclass with a field for every part of a registry."""
    fields = [(part, config, field(default_factory=config)) for part, config in configs.items()]
    gathered = dataclasses.make_dataclass(name, fields, frozen=True, kw_only=True)
    # Pickles look a class up in the module that it names.
    gathered.__module__, gathered.__doc__ = __name__, doc
    return gathered


if TYPE_CHECKING:

    class LearnerConfigs:
        """Its fields are the parts of a registry, which a type checker does not see."""

        def __init__(self, **configs: Any): ...
        def __getattr__(self, name: str) -> Any: ...

    class DefenceConfigs(LearnerConfigs):
        """As above."""

    class AttackConfigs(LearnerConfigs):
        """As above."""

else:
    LearnerConfigs = _gather(
        "LearnerConfigs", "Settings of every learner.", {k: spec.config for k, spec in LEARNERS.items()}
    )
    DefenceConfigs = _gather(
        "DefenceConfigs", "Settings of every defence.", {k: spec.config for k, spec in DEFENCES.items()}
    )
    AttackConfigs = _gather(
        "AttackConfigs",
        "Settings of every attack at meta-test.",
        {k: spec.config for k, spec in ATTACKS.items()},
    )

PART_GROUPS = ("learners", "defences", "attacks")
"""Settings of parts. A saved config may lack parts and settings that are newer than it; the default of a new
setting is what its part did before."""


@dataclass(frozen=True, kw_only=True)
class ScheduleConfig:
    """How long each stage lasts, in outer steps."""

    pretrain_steps: Annotated[int, STEPS] = 300
    """Clean steps shared by all methods of a seed."""
    finetune_steps: Annotated[int, STEPS] = 200
    """Steps of each method after pre-training."""
    chunk_steps: Annotated[int, STEPS] = 5
    """Steps after which metrics and progress are written and requests to stop are honoured."""
    checkpoint_every: Annotated[int, STEPS] = 25
    """A multiple of chunk_steps."""
    snapshot_every: Annotated[int, STEPS] = 50
    """Policies kept for the convergence curves; a multiple of chunk_steps."""
    max_bad_steps: Annotated[int, STEPS] = 10
    """The run stops after this many outer steps in a row with numbers that are not finite."""

    def check(self, prefix: str) -> None:
        """Checkpoints and snapshots fall between chunks."""
        for name in ("checkpoint_every", "snapshot_every"):
            if getattr(self, name) % self.chunk_steps:
                raise refusal(
                    prefix + name,
                    getattr(self, name),
                    f"a multiple of {prefix}chunk_steps ({self.chunk_steps})",
                )


@dataclass(frozen=True, kw_only=True)
class AttackerConfig:
    """Effort of each attacker that is trained against a frozen policy at meta-test."""

    steps: Annotated[int, STEPS] = 80
    """Updates; the strongest parameters on the way are kept."""
    num_tasks: Annotated[int, COUNT] = 20
    """Tasks per update."""
    num_trajectories: Annotated[int, COUNT] = 20
    """Episodes per task in an update."""


@dataclass(frozen=True, kw_only=True)
class EvalConfig:
    """Meta-test: attacks, strengths and the effort of attackers."""

    num_tasks: Annotated[int, COUNT] = 40
    """Held-out tasks."""
    num_trajectories: Annotated[int, COUNT] = 20
    """Episodes per task, both before and after adaptation."""
    num_adapt_steps: Annotated[int, whole_from(1, 100)] = 1
    """Gradient steps of adaptation."""
    attacks: Annotated[tuple[str, ...], ATTACK_NAMES] = (
        "gaussian",
        "l2_noise",
        "fgsm",
        "adgan",
    )
    """Attacks on every method. One that learns is trained afresh against each frozen policy."""
    undefended_attacks: Annotated[tuple[str, ...], ATTACK_NAMES_OR_NONE] = ("adgan_no_gan",)
    """Further attacks, on methods without a defence only, to show what one term of an attack is worth."""
    strengths: Annotated[tuple[float, ...], STRENGTHS] = (0.2, 0.5, 0.8)
    """Radii of every attack."""
    curve_attacks: Annotated[tuple[str, ...], ATTACK_NAMES_OR_NONE] = ("gaussian", "fgsm", "adgan")
    """Attacks in the convergence curves; one that learns is the opponent of a method's own training."""
    curve_strength: Annotated[float, POSITIVE] = 0.2
    """Strength of the attacks in the convergence curves."""
    attacker: AttackerConfig = field(default_factory=AttackerConfig)
    """Effort of attackers that learn."""
    suite: Annotated[str, one_of("none", *SUITES)] = "none"
    """Attackers that are tried on every policy after all this: none, quick, standard or claim. See
    `experiments.attack`, which does the same to a finished run."""
    seed: Annotated[int, SEED] = 20210426
    """Seed of the held-out tasks; the same for every seed and method."""

    @property
    def all_attacks(self) -> tuple[str, ...]:
        """Every attack of the meta-test, once."""
        return tuple(dict.fromkeys((*self.attacks, *self.undefended_attacks)))

    def attacks_on(self, method: str) -> tuple[str, ...]:
        """The attacks of a method's meta-test."""
        return self.all_attacks if METHODS[method].defence == UNDEFENDED else self.attacks


@dataclass(frozen=True, kw_only=True)
class Config:
    """One run of the paper's protocol on one environment."""

    env: EnvConfig
    methods: Annotated[tuple[str, ...], METHOD_NAMES] = PAPER_METHODS
    """Methods that fine-tune from the shared pre-trained policy; by default the paper's four."""
    simulator: Annotated[str, one_of("auto", *SIMULATORS)] = "auto"
    """auto, mujoco, mjx, mjx-warp, brax-spring, brax-positional or brax-generalized; environments in
    closed form need none."""
    num_threads: Annotated[int, whole_from(0, 1000)] = 0
    """Host threads of the mujoco simulator; 0 takes one per core."""
    num_devices: Annotated[int, COUNT_OR_ZERO] = 0
    """Devices over which tasks are spread; on a CPU, as many are made of its cores. 0 chooses: two on a CPU,
    else all that divide the numbers of tasks."""
    lanes: Annotated[int, COUNT_OR_ZERO] = 0
    """Lanes computed at once, a lane being one seed of one method, or one attacker; the others follow
    in turn. 0 chooses: as many as fit the device's memory, but one on a CPU."""
    task_block: Annotated[int, COUNT_OR_ZERO] = 0
    """Tasks whose gradients are computed together. Small blocks stay in a CPU's cache. 0 chooses: one on a
    CPU, all tasks on an accelerator."""
    pretrained: str = ""
    """A run, or its policies.npz, from whose pre-trained policies the methods go on; empty pre-trains."""
    seeds: Annotated[tuple[int, ...], distinct(SEED, "whole numbers from 0 to 2147483647")] = (0, 1, 2)
    """One training run each."""
    units: Annotated[str, one_of(*UNITS)] = "paper"
    """Units of every attack: `paper` (raw observations) or `normalised` (standard deviations of
    clean rollouts of the pre-trained policy)."""
    policy: PolicyConfig = field(default_factory=PolicyConfig)
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    learners: LearnerConfigs = field(default_factory=LearnerConfigs)
    defences: DefenceConfigs = field(default_factory=DefenceConfigs)
    attacks: AttackConfigs = field(default_factory=AttackConfigs)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)

    def check(self, prefix: str) -> None:
        """Devices divide tasks, what adapts is there, and so are the other tasks that an attack needs."""
        adapts = self.learners.maml_trpo.adapts
        if adapts == "context" and not self.policy.context_size:
            raise refusal("policy.context_size", 0, "1 or more where learners.maml_trpo.adapts is context")
        if self.policy.context_std:
            where = "where policy.context_std is above 0"
            if adapts != "context":
                raise refusal("learners.maml_trpo.adapts", adapts, f"context {where}")
            for name in self.methods:
                if METHODS[name].learner != "maml_trpo":
                    raise refusal("methods", name, f"methods of maml_trpo {where}")
            if self.sampling.support_discount:
                # Whole returns are what it adapts by.
                raise refusal("sampling.support_discount", self.sampling.support_discount, f"0 {where}")
        for tasks, setting in self._where_other_tasks_are_met():
            if task_counts(self)[tasks] == 1:
                raise refusal(tasks, 1, f"2 or more where {setting} is other_task")
        for name, tasks in task_counts(self).items():
            if self.num_devices and tasks % self.num_devices:
                raise refusal("num_devices", self.num_devices, f"0 or a divisor of {name} ({tasks})")

    def _where_other_tasks_are_met(self) -> Iterator[tuple[str, str]]:
        """Numbers of tasks, and settings by which attackers of so many lead one task towards another."""
        opponents = {METHODS[name].defence for name in self.methods}
        if "population" in opponents and self.defences.population.fit.target == "other_task":
            yield "sampling.num_tasks", "defences.population.fit.target"
        for name in self.eval.all_attacks:
            if getattr(getattr(self.attacks, name), "target", "") == "other_task":
                yield "eval.attacker.num_tasks", f"attacks.{name}.target"


def task_counts(config: Config) -> dict[str, int]:
    """The settings that say how many tasks are computed together; devices must divide them all."""
    return {
        "sampling.num_tasks": config.sampling.num_tasks,
        "eval.num_tasks": config.eval.num_tasks,
        "eval.attacker.num_tasks": config.eval.attacker.num_tasks,
    }


def validate(config: Config) -> Config:
    """Returns `config` unchanged, or raises `ConfigError` at the first bad setting."""
    check_fields(config)
    return config


def to_dict(config: Config) -> dict[str, Any]:
    """Plain dictionaries, lists and numbers, ready for JSON."""
    tree = to_plain(config)
    tree["env"] = {"name": config.env.name, **tree["env"]}
    return tree


def from_dict(tree: dict[str, Any]) -> Config:
    """The inverse of `to_dict`; raises `ConfigError` on unknown or missing settings."""
    tree = dict(tree)
    env = dict(tree.get("env", {}))
    spec = env_spec(env.pop("name", None))
    tree["env"] = from_plain(spec.config, env, "env.", may_miss=("env",))
    newer = (*PART_GROUPS, "eval", "policy", "pretrained", "sampling")
    return validate(from_plain(Config, tree, may_miss=newer))


def config_difference(saved: Config, wanted: Config) -> str:
    """`name: saved -> wanted` for every setting that differs; empty if none does.

    Where a run is computed may change from one session to the next, except for the engine.
    """
    if type(saved.env) is not type(wanted.env):
        return f"env: {saved.env.name} -> {wanted.env.name}"
    old, new = flatten(saved), flatten(wanted)
    return "; ".join(
        f"{name}: {old[name]} -> {new[name]}"
        for name in old
        if old[name] != new[name] and name not in MAY_CHANGE
    )


__all__ = [
    "MACHINE_SETTINGS",
    "AttackConfigs",
    "AttackerConfig",
    "Config",
    "ConfigError",
    "DefenceConfigs",
    "EvalConfig",
    "LearnerConfigs",
    "ScheduleConfig",
    "config_difference",
    "from_dict",
    "task_counts",
    "to_dict",
    "validate",
]
