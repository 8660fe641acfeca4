"""Frozen dataclasses with every number of a run: no presets, no parsing of command lines, no files.

The environments' numbers are in `env_config`.
"""

import dataclasses
from dataclasses import dataclass, field
from typing import Any, get_type_hints

from admrl_jax.checks import (
    COUNT,
    COUNT_OR_ZERO,
    FLAG,
    FRACTION,
    NOT_NEGATIVE,
    POSITIVE,
    REPEATS,
    SEED,
    SIZES,
    STEP_SIZE,
    STEPS,
    STEPS_OR_ZERO,
    UNIT,
    Check,
    ConfigError,
    distinct,
    one_of,
    whole_from,
)
from admrl_jax.env_config import ENV_CHECKS, ENV_CONFIGS, EnvConfig, validate_env

MACHINE_SETTINGS = ("simulator", "num_threads", "num_devices", "lanes")
"""Settings of a `Config` that say where a run is computed and not what."""

METHODS = ("maml", "random", "fgsm", "admrl")
"""The four training methods, in the order of the paper's Table I."""


@dataclass(frozen=True, kw_only=True)
class PolicyConfig:
    """Gaussian MLP policy."""

    hidden_sizes: tuple[int, ...] = (64, 64)
    activation: str = "tanh"
    """tanh or relu."""
    init_std: float = 1.0
    min_std: float = 1e-6


@dataclass(frozen=True, kw_only=True)
class MAMLConfig:
    """Meta-batch and adaptation. Defaults: MAML's and pytorch-maml-rl's settings."""

    num_tasks: int = 40
    """Tasks per outer step."""
    num_trajectories: int = 20
    """Episodes per task, both before and after adaptation."""
    num_adapt_steps: int = 1
    """Gradient steps of adaptation."""
    inner_lr: float = 0.1
    """Step size of adaptation (alpha in Eq. 4)."""
    first_order: bool = False
    """Drop the derivative of the inner gradient."""
    discount: float = 0.99
    gae_lambda: float = 1.0
    task_block: int = 0
    """Tasks whose gradients are computed together in the outer step. Small blocks stay in a CPU's
    cache; 0 chooses: 1 on a CPU, all tasks on an accelerator."""


@dataclass(frozen=True, kw_only=True)
class TRPOConfig:
    """Trust-region step on the meta-parameters."""

    max_kl: float = 0.01
    cg_iterations: int = 10
    cg_damping: float = 1e-5
    line_search_steps: int = 15
    backtrack_ratio: float = 0.8


@dataclass(frozen=True, kw_only=True)
class AdversaryConfig:
    """adGAN: generator, discriminator and their losses (Eq. 9 to 12)."""

    perturbation_bound: float = 0.2
    """c in Eq. 11: L2 bound of a perturbation in training."""
    gan_weight: float = 0.8
    """Weight of the generator's GAN loss (alpha in Eq. 12)."""
    hinge_weight: float = 0.2
    """Weight of the hinge loss (beta in Eq. 12)."""
    gan_loss: str = "lsgan"
    """lsgan, bce (non-saturating) or bce_paper (Eq. 9 to the letter, saturating)."""
    hidden_sizes: tuple[int, ...] = (64, 64)
    generator_lr: float = 1e-3
    discriminator_lr: float = 1e-3
    num_epochs: int = 2
    """Passes over a meta-batch per update."""
    num_minibatches: int = 8
    """Generator and discriminator steps per pass."""
    clip_ratio: float = 0.5
    """Clip of the probability ratio in the adversarial loss, which lets one meta-batch serve several
    generator steps."""


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Everything one outer step needs."""

    maml: MAMLConfig = field(default_factory=MAMLConfig)
    trpo: TRPOConfig = field(default_factory=TRPOConfig)
    adversary: AdversaryConfig = field(default_factory=AdversaryConfig)
    noise_std: float = 1.0
    """Standard deviation of the noise that the method `random` trains with (Eq. 13)."""
    fgsm_radius: float = 0.2
    """Step size that the method `fgsm` trains with (Eq. 14); not given in the paper."""


@dataclass(frozen=True, kw_only=True)
class ScheduleConfig:
    """How long each stage lasts, in outer steps."""

    pretrain_steps: int = 300
    """Clean steps shared by all methods of a seed."""
    warmup_steps: int = 50
    """adGAN updates on the frozen policy before admrl starts."""
    finetune_steps: int = 200
    """Steps of each method after pre-training."""
    chunk_steps: int = 5
    """Steps compiled into one program; progress is shown after each chunk."""
    checkpoint_every: int = 25
    snapshot_every: int = 50
    """Policies kept for the convergence curves."""
    max_bad_steps: int = 10
    """The run stops after so many outer steps in a row in which numbers were not finite."""


@dataclass(frozen=True, kw_only=True)
class EvalConfig:
    """Meta-test: attacks, strengths and the effort of adaptive attackers."""

    num_tasks: int = 40
    num_trajectories: int = 20
    num_adapt_steps: int = 1
    strengths: tuple[float, ...] = (0.2, 0.5, 0.8)
    adaptive_steps: int = 80
    """adGAN updates of each fresh generator that attacks a frozen victim; the strongest one is kept."""
    adaptive_tasks: int = 20
    """Tasks per such update."""
    adaptive_trajectories: int = 20
    """Episodes per task in such an update."""
    adaptive_epochs: int = 4
    """Passes over the data of such an update."""
    curve_strength: float = 0.2
    """Strength of the attacks in the convergence curves."""
    seed: int = 20210426
    """Seed of the held-out tasks; the same for every seed and method."""


@dataclass(frozen=True, kw_only=True)
class Config:
    """One run of the paper's protocol on one environment."""

    env: EnvConfig
    simulator: str = "auto"
    """auto, mujoco, mjx, mjx-warp, brax-spring, brax-positional or brax-generalized; environments in
    closed form need none."""
    num_threads: int = 0
    """Host threads of the mujoco simulator; 0 takes one per core."""
    num_devices: int = 0
    """Devices over which tasks are spread; on a CPU, as many are made of its cores. 0 chooses: two on a CPU,
    else all that divide the numbers of tasks."""
    lanes: int = 0
    """Lanes computed at once, a lane being one seed of one method, or one attacker; the others follow
    in turn. 0 chooses: as many as fit the device's memory, but one on a CPU."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Trained together in one program."""
    units: str = "paper"
    """Units of every attack: `paper` (raw observations) or `normalised` (standard deviations of
    clean rollouts of the pre-trained policy)."""
    policy: PolicyConfig = field(default_factory=PolicyConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)


SIMULATORS = (
    "mujoco",
    "mjx",
    "mjx-warp",
    "brax-spring",
    "brax-positional",
    "brax-generalized",
)
"""Physics engines; which of them an environment runs on is in `docs/environments.md`."""

_CHECKS: dict[str, Check] = {
    "simulator": one_of("auto", *SIMULATORS),
    "num_threads": whole_from(0, 1000),
    "num_devices": COUNT_OR_ZERO,
    "lanes": COUNT_OR_ZERO,
    "seeds": distinct(SEED, "whole numbers from 0 to 2147483647"),
    "units": one_of("paper", "normalised"),
    **{f"env.{name}": check for name, check in ENV_CHECKS.items()},
    "policy.hidden_sizes": SIZES,
    "policy.activation": one_of("tanh", "relu"),
    "policy.init_std": POSITIVE,
    "policy.min_std": POSITIVE,
    "train.maml.num_tasks": COUNT,
    "train.maml.num_trajectories": COUNT,
    "train.maml.num_adapt_steps": whole_from(1, 100),
    "train.maml.inner_lr": STEP_SIZE,
    "train.maml.first_order": FLAG,
    "train.maml.discount": UNIT,
    "train.maml.gae_lambda": UNIT,
    "train.maml.task_block": COUNT_OR_ZERO,
    "train.trpo.max_kl": STEP_SIZE,
    "train.trpo.cg_iterations": REPEATS,
    "train.trpo.cg_damping": NOT_NEGATIVE,
    "train.trpo.line_search_steps": REPEATS,
    "train.trpo.backtrack_ratio": FRACTION,
    "train.adversary.perturbation_bound": POSITIVE,
    "train.adversary.gan_weight": NOT_NEGATIVE,
    "train.adversary.hinge_weight": NOT_NEGATIVE,
    "train.adversary.gan_loss": one_of("lsgan", "bce", "bce_paper"),
    "train.adversary.hidden_sizes": SIZES,
    "train.adversary.generator_lr": STEP_SIZE,
    "train.adversary.discriminator_lr": STEP_SIZE,
    "train.adversary.num_epochs": REPEATS,
    "train.adversary.num_minibatches": COUNT,
    "train.adversary.clip_ratio": FRACTION,
    "train.noise_std": NOT_NEGATIVE,
    "train.fgsm_radius": NOT_NEGATIVE,
    "schedule.pretrain_steps": STEPS,
    "schedule.warmup_steps": STEPS_OR_ZERO,
    "schedule.finetune_steps": STEPS,
    "schedule.chunk_steps": STEPS,
    "schedule.checkpoint_every": STEPS,
    "schedule.snapshot_every": STEPS,
    "schedule.max_bad_steps": STEPS,
    "eval.num_tasks": COUNT,
    "eval.num_trajectories": COUNT,
    "eval.num_adapt_steps": whole_from(1, 100),
    "eval.strengths": distinct(POSITIVE, "numbers from 1e-06 to 1000000"),
    "eval.adaptive_steps": STEPS,
    "eval.adaptive_tasks": COUNT,
    "eval.adaptive_trajectories": COUNT,
    "eval.adaptive_epochs": REPEATS,
    "eval.curve_strength": POSITIVE,
    "eval.seed": SEED,
}


def flatten(config: Any, prefix: str = "") -> dict[str, Any]:
    """Every setting by its dotted name, `train.maml.inner_lr`."""
    settings: dict[str, Any] = {}
    for item in dataclasses.fields(config):
        value = getattr(config, item.name)
        name = prefix + item.name
        if dataclasses.is_dataclass(value):
            settings |= flatten(value, name + ".")
        else:
            settings[name] = value
    return settings


def accepted(name: str) -> str:
    """What a setting, by its dotted name, accepts, in words."""
    return _CHECKS[name][1]


def task_counts(config: Config) -> dict[str, int]:
    """The settings that say how many tasks are computed together; devices must divide them all."""
    return {
        "train.maml.num_tasks": config.train.maml.num_tasks,
        "eval.num_tasks": config.eval.num_tasks,
        "eval.adaptive_tasks": config.eval.adaptive_tasks,
    }


def validate(config: Config) -> Config:
    """Returns `config` unchanged, or raises `ConfigError` at the first bad setting."""
    validate_env(config.env)
    for name, value in flatten(config).items():
        check = _CHECKS.get(name)
        if check is not None and not check[0](value):
            raise ConfigError(f"{name}: {value!r} is not accepted; accepted: {check[1]}")
    schedule, maml, adversary = config.schedule, config.train.maml, config.train.adversary
    for name in ("checkpoint_every", "snapshot_every"):
        if getattr(schedule, name) % schedule.chunk_steps:
            raise ConfigError(
                f"schedule.{name}: {getattr(schedule, name)} is not accepted; accepted: a multiple of "
                f"schedule.chunk_steps ({schedule.chunk_steps})"
            )
    for name, tasks in task_counts(config).items():
        if config.num_devices and tasks % config.num_devices:
            raise ConfigError(
                f"num_devices: {config.num_devices} is not accepted; accepted: 0 or a divisor of "
                f"{name} ({tasks})"
            )
    for name, trajectories in (
        ("train.maml.num_trajectories", maml.num_trajectories),
        ("eval.adaptive_trajectories", config.eval.adaptive_trajectories),
    ):
        if trajectories * config.env.horizon % adversary.num_minibatches:
            raise ConfigError(
                f"train.adversary.num_minibatches: {adversary.num_minibatches} is not accepted; accepted: "
                f"a divisor of {name} x env.horizon ({trajectories * config.env.horizon})"
            )
    return config


def to_dict(config: Config) -> dict[str, Any]:
    """Plain dictionaries, lists and numbers, ready for JSON."""
    tree = dataclasses.asdict(config)
    tree["env"] = {"name": config.env.name, **tree["env"]}
    return _lists(tree)


def from_dict(tree: dict[str, Any]) -> Config:
    """The inverse of `to_dict`; raises `ConfigError` on unknown or missing settings."""
    tree = dict(tree)
    env = dict(tree.get("env", {}))
    name = env.pop("name", None)
    if name not in ENV_CONFIGS:
        raise ConfigError(f"env: {name!r} is not known; accepted: {', '.join(ENV_CONFIGS)}")
    tree["env"] = _build(ENV_CONFIGS[name], env, "env.")
    return validate(_build(Config, tree, ""))


def _build(cls: type, tree: dict[str, Any], prefix: str) -> Any:
    hints = get_type_hints(cls)
    names = {item.name for item in dataclasses.fields(cls)}
    if names != set(tree):
        odd = ", ".join(prefix + name for name in sorted(names ^ set(tree)))
        raise ConfigError(f"config: unknown or missing settings: {odd}")
    values = {}
    for name, value in tree.items():
        if dataclasses.is_dataclass(hints[name]) and isinstance(value, dict):
            value = _build(hints[name], value, f"{prefix}{name}.")  # type: ignore[arg-type]
        elif isinstance(value, list):
            value = tuple(value)
        values[name] = value
    return cls(**values)


def _lists(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _lists(item) for key, item in value.items()}
    if isinstance(value, tuple):
        return [_lists(item) for item in value]
    return value
