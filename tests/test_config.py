"""Settings: what is refused and how the message reads, JSON round trips, unknown keys."""

import dataclasses
import json
import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from admrl_jax import config as config_module
from admrl_jax.checks import ConfigError
from admrl_jax.config import (
    Config,
    flatten,
    from_dict,
    to_dict,
    validate,
)
from admrl_jax.env_config import ENV_CONFIGS

CONFIGS = {name: Config(env=env()) for name, env in ENV_CONFIGS.items()}
NAVIGATION = CONFIGS["navigation_2d"]

ANY_NUMBER = {
    f"env.{name}"
    for name in ("min_velocity", "max_velocity", "alive_bonus", "task_bonus", "min_height", "max_height")
}
"""Settings that may be negative."""
ABOVE_ONE = {"env.body_scale_base", "env.damping_scale_base"}


def with_setting(config: Any, name: str, value: Any) -> Any:
    """A copy of a nested config with one dotted setting replaced."""
    head, _, rest = name.partition(".")
    new = with_setting(getattr(config, head), rest, value) if rest else value
    return dataclasses.replace(config, **{head: new})


def bad_values(name: str, value: Any) -> list[Any]:
    """Values that a setting with such a name and default does not accept."""
    if isinstance(value, bool):
        return [1, 0, "True", None]
    if isinstance(value, int):
        return [-1, -100]
    if isinstance(value, float):
        negative = [] if name in ANY_NUMBER else [-0.5]
        return [math.nan, math.inf, "1", True, None, *negative, *([0.9, 1.0] if name in ABOVE_ONE else [])]
    if isinstance(value, str):
        return ["nonsense", ""]
    return [(), (-1,)] + ([(value[0], value[0])] if len(value) == 3 else [])


CASES = [
    (kind, name, bad)
    for kind, config in CONFIGS.items()
    for name, value in flatten(config).items()
    if config is NAVIGATION or name.startswith("env.")
    for bad in bad_values(name, value)
]


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_defaults_are_accepted_and_hashable(config: Config) -> None:
    assert validate(config) is config
    hash(config)


@pytest.mark.parametrize(("kind", "name", "bad"), CASES, ids=lambda x: str(x))
def test_bad_values_are_refused_by_name(kind: str, name: str, bad: Any) -> None:
    with pytest.raises(ConfigError) as error:
        validate(with_setting(CONFIGS[kind], name, bad))
    message = str(error.value)
    assert message.startswith(f"{name}: {bad!r} is not accepted; accepted: "), message
    assert "\n" not in message
    assert len(message.split("accepted: ")[-1]) > 3


def test_every_setting_is_checked() -> None:
    names = {name for config in CONFIGS.values() for name in flatten(config)}
    assert names == set(config_module._CHECKS)


def test_choices_and_flags_are_accepted() -> None:
    for kind, name, value in (
        ("ant_dir", "env.directions", "circle"),
        ("ant_goal", "env.goal_shape", "disk"),
        ("ant_vel", "env.ends_early", False),
        ("ant_vel", "env.observe_xy", False),
        ("ant_vel", "env.torso_frame", False),
        ("ant_vel", "env.alive_bonus", -1.0),
        ("halfcheetah_vel", "env.min_velocity", -2.0),
        ("halfcheetah_dir", "env.torso_position", False),
        ("reacher", "env.visible_target", True),
        ("hopper_params", "env.log_scale_limit", 0.0),
        ("walker2d_params", "simulator", "mjx"),
    ):
        changed = with_setting(CONFIGS[kind], name, value)
        assert validate(changed) is changed
        assert from_dict(json.loads(json.dumps(to_dict(changed)))) == changed != CONFIGS[kind]


@pytest.mark.parametrize(
    ("kind", "changes", "message"),
    [
        (
            "halfcheetah_vel",
            {"min_velocity": 2.0},  # equal to the upper end: nothing to draw from
            "env.min_velocity: 2.0 is not accepted; accepted: a number below env.max_velocity (2.0)",
        ),
        (
            "halfcheetah_vel",
            {"max_velocity": -1.0},
            "env.min_velocity: 0.0 is not accepted; accepted: a number below env.max_velocity (-1.0)",
        ),
        (
            "ant_goal",
            {"min_height": 1.5},
            "env.min_height: 1.5 is not accepted; accepted: a number below env.max_height (1.0)",
        ),
        (
            "ant_dir",
            {"max_height": 0.2},
            "env.min_height: 0.2 is not accepted; accepted: a number below env.max_height (0.2)",
        ),
        (
            "ant_vel",
            {"max_velocity": 0.0},
            "env.max_velocity: 0.0 is not accepted; accepted: a number above 0",
        ),
        (
            "ant_vel",
            {"max_velocity": -3.0},
            "env.max_velocity: -3.0 is not accepted; accepted: a number above 0",
        ),
    ],
)
def test_empty_ranges_are_refused(kind: str, changes: dict[str, float], message: str) -> None:
    config = CONFIGS[kind]
    for name, value in changes.items():
        config = with_setting(config, f"env.{name}", value)
    with pytest.raises(ConfigError) as error:
        validate(config)
    assert str(error.value) == message


@pytest.mark.parametrize("name", ["train.maml.num_tasks", "env.horizon", "eval.seed", "seeds"])
@pytest.mark.parametrize("value", [2.5, "3"])
def test_whole_numbers_are_whole(name: str, value: Any) -> None:
    config = NAVIGATION
    with pytest.raises(ConfigError, match=f"^{name}: "):
        validate(with_setting(config, name, (value,) if name == "seeds" else value))


@pytest.mark.parametrize(
    ("name", "value", "field"),
    [
        ("schedule.checkpoint_every", 7, "schedule.checkpoint_every"),  # chunks are 5 steps
        ("schedule.snapshot_every", 12, "schedule.snapshot_every"),
        ("train.maml.task_block", 7, "train.maml.task_block"),  # 40 tasks
        ("train.adversary.num_minibatches", 3, "train.adversary.num_minibatches"),  # 20 x 100 steps
    ],
)
def test_settings_that_do_not_fit_each_other(name: str, value: int, field: str) -> None:
    with pytest.raises(ConfigError, match=f"^{field}: {value} is not accepted; accepted: "):
        validate(with_setting(NAVIGATION, name, value))


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_json_round_trip(config: Config) -> None:
    changed = with_setting(with_setting(config, "seeds", (4, 7)), "train.maml.inner_lr", 0.05)
    again = from_dict(json.loads(json.dumps(to_dict(changed))))
    assert again == changed and hash(again) == hash(changed)
    assert type(again.env) is type(config.env)


@given(
    inner_lr=st.floats(1e-6, 10),
    discount=st.floats(0, 1),
    hidden=st.lists(st.integers(1, 512), min_size=1, max_size=3),
    strengths=st.lists(st.floats(0.01, 5), min_size=1, max_size=4, unique=True),
    seeds=st.lists(st.integers(0, 2**31 - 1), min_size=1, max_size=4, unique=True),
    scale=st.floats(0.1, 100),
)
@settings(max_examples=30, deadline=None)
def test_any_accepted_config_round_trips(inner_lr, discount, hidden, strengths, seeds, scale) -> None:
    config = NAVIGATION
    for name, value in {
        "train.maml.inner_lr": inner_lr,
        "train.maml.discount": discount,
        "policy.hidden_sizes": tuple(hidden),
        "eval.strengths": tuple(strengths),
        "seeds": tuple(seeds),
        "env.action_scale": scale,
    }.items():
        config = with_setting(config, name, value)
    assert from_dict(json.loads(json.dumps(to_dict(validate(config))))) == config


@pytest.mark.parametrize("path", ["", "env", "train", "train.maml", "eval"])
def test_unknown_and_missing_settings_are_refused_by_name(path: str) -> None:
    prefix = f"{path}." if path else ""

    def branch(tree: dict) -> dict:
        for part in filter(None, path.split(".")):
            tree = tree[part]
        return tree

    tree = to_dict(NAVIGATION)
    branch(tree)["surprise"] = 1
    with pytest.raises(ConfigError, match=rf"unknown or missing settings: {prefix}surprise$"):
        from_dict(tree)

    tree = to_dict(NAVIGATION)
    gone = next(name for name in branch(tree) if name not in ("name", "env"))
    del branch(tree)[gone]
    with pytest.raises(ConfigError, match=rf"unknown or missing settings: {prefix}{gone}$"):
        from_dict(tree)


@pytest.mark.parametrize("env", [{}, {"name": "walker"}])
def test_unknown_environments_are_refused(env: dict) -> None:
    with pytest.raises(ConfigError, match="accepted: navigation_2d, halfcheetah_dir"):
        from_dict({**to_dict(NAVIGATION), "env": env})


def test_from_dict_validates() -> None:
    tree = to_dict(NAVIGATION)
    tree["train"]["maml"]["inner_lr"] = -1.0
    with pytest.raises(ConfigError, match=r"^train.maml.inner_lr: -1.0 is not accepted"):
        from_dict(tree)
