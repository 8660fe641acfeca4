"""Numbers of every environment; `docs/environments.md` says which give which project's definition."""

import dataclasses
from dataclasses import dataclass
from typing import ClassVar

from jax.core import Tracer

from admrl_jax.checks import (
    ABOVE_ONE,
    FLAG,
    NOT_NEGATIVE,
    NUMBER,
    POSITIVE,
    REPEATS,
    STEPS,
    UNIT,
    Check,
    ConfigError,
    number_from,
    one_of,
)


@dataclass(frozen=True, kw_only=True)
class EnvConfig:
    """Numbers of an environment; subclasses add their own."""

    name: ClassVar[str] = ""

    horizon: int = 100
    """Steps per episode."""
    action_scale: float = 10.0
    """Raw actions are divided by this before they are clipped. It sets how much a policy of unit
    standard deviation explores, so every report states it."""


@dataclass(frozen=True, kw_only=True)
class NavigationConfig(EnvConfig):
    """2D navigation. Defaults: MAML's definition (goals in a unit square, moves up to 0.1)."""

    name: ClassVar[str] = "navigation_2d"

    goal_range: float = 0.5
    """Goals are uniform in [-goal_range, goal_range]^2."""
    max_move: float = 0.1
    """Longest move per axis and step."""
    goal_radius: float = 0.01
    """The episode ends when both coordinates are this close to the goal."""


@dataclass(frozen=True, kw_only=True)
class PhysicsConfig(EnvConfig):
    """Numbers of an environment on a physics engine."""

    frame_skip: int = 5
    """Physics steps per control step."""
    reset_noise: float = 0.1
    """Half width of the uniform noise on positions at reset; see the family for velocities."""
    control_cost: float = 0.05
    """Weight of the sum of squared controls, after scaling and clipping."""


@dataclass(frozen=True, kw_only=True)
class HalfCheetahConfig(PhysicsConfig):
    """HalfCheetah. Defaults: pytorch-maml-rl's definition."""

    torso_position: bool = True
    """Add the torso's position to the observation (20 numbers, with absolute x) or not (17)."""


@dataclass(frozen=True, kw_only=True)
class HalfCheetahDirConfig(HalfCheetahConfig):
    """HalfCheetah running forwards or backwards."""

    name: ClassVar[str] = "halfcheetah_dir"


@dataclass(frozen=True, kw_only=True)
class HalfCheetahVelConfig(HalfCheetahConfig):
    """HalfCheetah running at a given velocity."""

    name: ClassVar[str] = "halfcheetah_vel"

    min_velocity: float = 0.0
    """Lowest target (m/s)."""
    max_velocity: float = 2.0
    """Highest target (m/s)."""


@dataclass(frozen=True, kw_only=True)
class AntConfig(PhysicsConfig):
    """Ant. Defaults: pytorch-maml-rl's definition without contact forces (zero since MuJoCo 2)."""

    control_cost: float = 0.005
    alive_bonus: float = 0.05
    """Reward of every step in which the ant has not fallen."""
    task_bonus: float = 0.0
    """Constant added to the task's reward in every step."""
    ends_early: bool = True
    """End the episode when the torso leaves the height range."""
    min_height: float = 0.2
    """Lowest healthy height of the torso (m)."""
    max_height: float = 1.0
    """Greatest healthy height of the torso (m)."""
    observe_xy: bool = True
    """Observe the root's x and y as part of the positions."""
    torso_frame: bool = True
    """Add rotation matrix (9) and position (3) of the torso to the observation."""


@dataclass(frozen=True, kw_only=True)
class AntVelConfig(AntConfig):
    """Ant running at a given forward velocity."""

    name: ClassVar[str] = "ant_vel"

    task_bonus: float = 1.0
    max_velocity: float = 3.0
    """Targets are uniform from 0 to this (m/s)."""


@dataclass(frozen=True, kw_only=True)
class AntDirConfig(AntConfig):
    """Ant running in a given direction."""

    name: ClassVar[str] = "ant_dir"

    directions: str = "forward_backward"
    """forward_backward: along the x axis. circle: any direction in the plane."""


@dataclass(frozen=True, kw_only=True)
class AntGoalConfig(AntConfig):
    """Ant walking to a goal it cannot see."""

    name: ClassVar[str] = "ant_goal"

    task_bonus: float = 4.0
    goal_range: float = 3.0
    """Half width of the square, or radius of the disk, of goals (m)."""
    goal_shape: str = "square"
    """square or disk, uniform in either."""


@dataclass(frozen=True, kw_only=True)
class ReacherConfig(PhysicsConfig):
    """A two-link arm reaching for a target it cannot see. Defaults: this project's definition."""

    name: ClassVar[str] = "reacher"

    horizon: int = 200
    action_scale: float = 1.0
    frame_skip: int = 2
    control_cost: float = 1.0
    """Weight of the sum of squared raw actions: neither scaled nor clipped, as in Gymnasium."""
    target_range: float = 0.2
    """Targets are uniform in [-target_range, target_range]^2 (m)."""
    visible_target: bool = False
    """Show target and fingertip's offset from it: then no adaptation is needed."""


@dataclass(frozen=True, kw_only=True)
class RandomDynamicsConfig(PhysicsConfig):
    """A walking robot whose body differs from task to task. Defaults: ProMP's definition."""

    horizon: int = 200
    frame_skip: int = 8
    """Physics steps of 0.002 s: ProMP's control step of 0.016 s on Gymnasium's model."""
    reset_noise: float = 0.005
    control_cost: float = 0.001
    alive_bonus: float = 1.0
    """Reward of every step."""
    log_scale_limit: float = 3.0
    """Every scaled number of the model is multiplied by base^u, u uniform in +- this."""
    body_scale_base: float = 1.5
    """Base for masses, inertias and friction coefficients."""
    damping_scale_base: float = 1.3
    """Base for joint damping."""


@dataclass(frozen=True, kw_only=True)
class Walker2dParamsConfig(RandomDynamicsConfig):
    """Walker2d with random masses, inertias, friction and damping."""

    name: ClassVar[str] = "walker2d_params"


@dataclass(frozen=True, kw_only=True)
class HopperParamsConfig(RandomDynamicsConfig):
    """Hopper with random masses, inertias, friction and damping."""

    name: ClassVar[str] = "hopper_params"


ENV_CONFIGS: dict[str, type[EnvConfig]] = {
    cls.name: cls
    for cls in (
        NavigationConfig,
        HalfCheetahDirConfig,
        HalfCheetahVelConfig,
        AntVelConfig,
        AntDirConfig,
        AntGoalConfig,
        ReacherConfig,
        Walker2dParamsConfig,
        HopperParamsConfig,
    )
}

ENV_CHECKS: dict[str, Check] = {
    "horizon": STEPS,
    "action_scale": POSITIVE,
    "goal_range": POSITIVE,
    "max_move": POSITIVE,
    "goal_radius": NOT_NEGATIVE,
    "frame_skip": REPEATS,
    "reset_noise": UNIT,
    "control_cost": NOT_NEGATIVE,
    "min_velocity": NUMBER,
    "max_velocity": NUMBER,
    "alive_bonus": NUMBER,
    "task_bonus": NUMBER,
    "min_height": NUMBER,
    "max_height": NUMBER,
    "directions": one_of("forward_backward", "circle"),
    "goal_shape": one_of("square", "disk"),
    "target_range": POSITIVE,
    "log_scale_limit": number_from(0, 10),
    "body_scale_base": ABOVE_ONE,
    "damping_scale_base": ABOVE_ONE,
    "torso_position": FLAG,
    "torso_frame": FLAG,
    "observe_xy": FLAG,
    "ends_early": FLAG,
    "visible_target": FLAG,
}


def validate_env(env: EnvConfig) -> None:
    """Refuses numbers that no environment can be built from, and ranges that are empty.

    Raises:
        ConfigError: names the first such number.
    """
    numbers = {setting.name: getattr(env, setting.name) for setting in dataclasses.fields(env)}
    # What is not known yet, because a program is traced over it, passes.
    known = {name: value for name, value in numbers.items() if not isinstance(value, Tracer)}
    for name, value in known.items():
        check = ENV_CHECKS.get(name)
        if check is not None and not check[0](value):
            raise ConfigError(f"env.{name}: {value!r} is not accepted; accepted: {check[1]}")
    if isinstance(env, AntVelConfig) and known.get("max_velocity", 1.0) <= 0:
        raise ConfigError(
            f"env.max_velocity: {env.max_velocity!r} is not accepted; accepted: a number above 0"
        )
    for low, high in (("min_velocity", "max_velocity"), ("min_height", "max_height")):
        if {low, high} <= known.keys() and not known[low] < known[high]:
            raise ConfigError(
                f"env.{low}: {known[low]!r} is not accepted; accepted: a number below "
                f"env.{high} ({known[high]!r})"
            )
