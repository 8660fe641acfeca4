"""Settings: what is refused and how the message reads, JSON round trips, unknown keys."""

import dataclasses
import functools
import json
import math
import re
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from admrl_jax import adgan as adgan_lib
from admrl_jax import config as config_module
from admrl_jax import envs, networks, training
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


NAMES = [(kind, name) for kind, config in CONFIGS.items() for name in flatten(config)]
JUNK = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=5)
    | st.sampled_from(["1", "paper", "auto", b"bytes", 1j, ...]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(st.text(), inner)
    ),
    max_leaves=4,
)


@given(st.sampled_from(NAMES), JUNK)
@settings(max_examples=300, deadline=None)
def test_any_value_is_taken_as_it_is_or_refused_in_one_line(where: tuple[str, str], value: Any) -> None:
    kind, name = where
    changed = with_setting(CONFIGS[kind], name, value)
    try:
        assert validate(changed) is changed
    except ConfigError as error:
        # Where two settings do not fit each other the other one may be named.
        assert re.match(r"^[a-z_.]+: .* is not accepted; accepted: .{4,}$", str(error)), str(error)
        if not config_module._CHECKS[name][0](value):
            assert str(error).startswith(f"{name}: {value!r} is not accepted"), str(error)
    else:
        assert config_module._CHECKS[name][0](value)


def good_values(name: str, default: Any) -> st.SearchStrategy[Any]:
    """Values of a size for tests that a setting accepts by itself."""
    if isinstance(default, bool):
        return st.booleans()
    if name in ("train.maml.discount", "train.maml.gae_lambda"):
        return st.floats(0, 1)
    if name in ("train.trpo.backtrack_ratio", "train.adversary.clip_ratio"):
        return st.floats(0.1, 0.9)
    if name in ABOVE_ONE:
        return st.floats(1.01, 2)
    if name.endswith("seed"):
        return st.integers(0, 2**31 - 1)
    if name == "seeds":
        return st.lists(st.integers(0, 2**31 - 1), min_size=1, max_size=3, unique=True).map(tuple)
    if name == "eval.strengths":
        return st.lists(st.floats(0.01, 3), min_size=1, max_size=3, unique=True).map(tuple)
    if name.endswith("hidden_sizes"):
        return st.lists(st.integers(1, 6), min_size=1, max_size=3).map(tuple)
    choices = config_module._CHECKS[name][1]
    if choices.startswith("one of "):
        return st.sampled_from(choices.removeprefix("one of ").split(", "))
    if isinstance(default, int):
        return st.integers(1, 3)
    return st.floats(-2, 2) if name in ANY_NUMBER else st.floats(0.01, 2)


@st.composite
def accepted(draw: st.DrawFn, kinds: tuple[str, ...] = tuple(CONFIGS)) -> Config:
    """A config of small sizes in which every single setting was drawn, and which fits together."""
    config = CONFIGS[draw(st.sampled_from(kinds))]
    for name, default in flatten(config).items():
        config = with_setting(config, name, draw(good_values(name, default), label=name))
    repairs: dict[str, Any] = {
        "num_devices": 1,
        "train.adversary.num_minibatches": 1,
    }
    for name in ("checkpoint_every", "snapshot_every"):
        repairs[f"schedule.{name}"] = getattr(config.schedule, name) * config.schedule.chunk_steps
    for low, high in (("min_velocity", "max_velocity"), ("min_height", "max_height")):
        if hasattr(config.env, low):
            repairs |= {f"env.{low}": -2.5, f"env.{high}": abs(getattr(config.env, high)) + 0.1}
        elif hasattr(config.env, high):
            repairs[f"env.{high}"] = abs(getattr(config.env, high)) + 0.1
    for name, value in repairs.items():
        config = with_setting(config, name, value)
    return config


@given(accepted())
@settings(max_examples=60, deadline=None)
def test_configs_with_every_setting_changed_round_trip(config: Config) -> None:
    assert validate(config) is config
    again = from_dict(json.loads(json.dumps(to_dict(config))))
    assert again == config and hash(again) == hash(config)


def one_step(config: Config) -> tuple[training.TrainState, Any]:
    """The first outer step of a config, as a function without arguments, and its first state."""
    env = envs.make(config.env, num_threads=1)
    policy = networks.make_policy(
        env.obs_size,
        env.action_size,
        hidden_sizes=config.policy.hidden_sizes,
        activation=config.policy.activation,
        init_std=config.policy.init_std,
        min_std=config.policy.min_std,
    )
    adgan = adgan_lib.make_adgan(env.obs_size, config.train.adversary)
    state = training.init(jax.random.key(config.seeds[0]), policy=policy, obs_size=env.obs_size)
    adversary = adgan_lib.init_adversary(jax.random.key(1), adgan, config.train.adversary)
    radius = jnp.float32(config.train.adversary.perturbation_bound)
    state = state.replace(adversary=adversary, budget=state.budget._replace(radius=radius))
    step = functools.partial(
        training.outer_step, env=env, policy=policy, attack=adgan.attack, config=config.train, adgan=adgan
    )
    return state, step


@given(accepted())
@settings(max_examples=4, deadline=None)
def test_accepted_configs_fit_together_in_an_outer_step(config: Config) -> None:
    state, step = one_step(config)
    after, metrics = jax.eval_shape(step, state)
    chex.assert_trees_all_equal_shapes_and_dtypes(jax.eval_shape(lambda: state), after)
    assert all(value.shape == () for value in metrics.values())


@given(accepted(("navigation_2d",)))
@settings(max_examples=2, deadline=None)
def test_accepted_configs_run_a_step(config: Config) -> None:
    state, step = one_step(config)
    after, metrics = jax.jit(step)(state)
    assert after.step == 1 and metrics["train/env_steps"] > 0
    assert np.isfinite(metrics["train/post_return"]) and metrics["train/diverged"] == 0
    assert all(np.all(np.isfinite(x)) for x in jax.tree.leaves(after.policy_params))
