"""Settings: what is refused and how the message reads, JSON round trips, and what every value does."""

import dataclasses
import importlib
import json
import math
import re
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import tiny_policy
from hypothesis import given, settings
from hypothesis import strategies as st

from admrl_jax import attacking, training
from admrl_jax.attacks.noise import no_attack
from admrl_jax.attacks.registry import ATTACKS
from admrl_jax.attacks.threat import Budget, Units
from admrl_jax.config import PART_GROUPS, Config, flatten, from_dict, to_dict, validate
from admrl_jax.core.networks import make_policy
from admrl_jax.core.settings import Accepts, ConfigError, fields_of
from admrl_jax.core.task_axis import TaskAxis
from admrl_jax.envs.custom import CustomConfig
from admrl_jax.envs.registry import ENVS, make_env
from admrl_jax.methods import METHODS
from admrl_jax.protocol.parts import Parts
from admrl_jax.sampling import collect
from admrl_jax.training import TrainState

ROOT = Path(__file__).parent.parent
OWN = CustomConfig(factory="my_module:make_env")
CONFIGS = {
    name: Config(env=OWN if spec.config is CustomConfig else spec.config()) for name, spec in ENVS.items()
}
BUILT_IN = {name: config for name, config in CONFIGS.items() if config.env is not OWN}
NAVIGATION = CONFIGS["navigation_2d"]


def with_setting(config: Any, name: str, value: Any) -> Any:
    """A copy of a nested config with one dotted setting replaced."""
    head, _, rest = name.partition(".")
    new = with_setting(getattr(config, head), rest, value) if rest else value
    return dataclasses.replace(config, **{head: new})


def with_settings(config: Any, changes: dict[str, Any]) -> Any:
    """A copy of a nested config with dotted settings replaced."""
    for name, value in changes.items():
        config = with_setting(config, name, value)
    return config


FIELDS: dict[tuple[str, str], tuple[Any, Accepts]] = {
    (kind, name): (value, accepts)
    for kind, config in CONFIGS.items()
    for name, value, accepts in fields_of(config)
    if accepts is not None and (config is NAVIGATION or name.startswith("env."))
}
"""Every setting once: those of an environment by its name, the others under 2D navigation."""
IDS = [f"{kind}: {name}" for kind, name in FIELDS]


def of_type(kind: type) -> list[Any]:
    """Those whose default has a type, ready for `parametrize`."""
    return [
        pytest.param(*where, id=f"{where[0]}: {where[1]}")
        for where, (value, _) in FIELDS.items()
        if type(value) is kind
    ]


def accepted_by(kind: str, name: str) -> Accepts:
    return FIELDS[kind if name.startswith("env.") else "navigation_2d", name][1]


def to_order(x: float) -> int:
    """A whole number for every float, in the same order, without gaps."""
    number = struct.unpack("<q", struct.pack("<d", x))[0]
    return number if number >= 0 else -(number & (2**63 - 1))


def from_order(number: int) -> float:
    """The inverse of `to_order`."""
    return struct.unpack("<d", struct.pack("<q", number if number >= 0 else -(2**63) - number))[0] + 0.0


def ends(value: float, accepts: Accepts) -> tuple[Any, Any]:
    """The least and the greatest number that a setting accepts, found by halving from an accepted one."""
    if isinstance(value, int):
        to_whole, back, far = int, int, 2**70
    else:
        to_whole, back, far = to_order, from_order, to_order(1e300)

    def furthest(beyond: int) -> Any:
        good = to_whole(value)
        assert accepts.test(value) and not accepts.test(back(beyond))
        while abs(beyond - good) > 1:
            middle = (good + beyond) // 2
            good, beyond = (middle, beyond) if accepts.test(back(middle)) else (good, middle)
        return back(good)

    return furthest(-far), furthest(far)


def beyond_ends(value: float, accepts: Accepts) -> tuple[Any, Any]:
    """The nearest numbers that a setting does not accept any more."""
    low, high = ends(value, accepts)
    if isinstance(value, int):
        return low - 1, high + 1
    return math.nextafter(low, -math.inf), math.nextafter(high, math.inf)


STRINGS = sorted(
    set(re.findall(r'"([a-z_0-9-]+)"', "\n".join(p.read_text() for p in ROOT.glob("src/**/*.py"))))
    | set(METHODS)
    | set(ATTACKS)
)
"""Every short text of the source, among which are the names that settings accept."""


def names_of(accepts: Accepts) -> list[str]:
    """Names that a setting accepts, or that a tuple of them may hold."""
    return [name for name in STRINGS if accepts.test(name) or accepts.test((name,))]


def bad_values(value: Any, accepts: Accepts) -> list[Any]:
    """Values that a setting with such a default does not accept."""
    if isinstance(value, bool):
        return [1, 0, "True", None]
    if isinstance(value, int):
        return [*beyond_ends(value, accepts), -100, 2**40, 10**30, 2.5, "3", True, None]
    if isinstance(value, float):
        return [math.nan, math.inf, "1", True, None, *beyond_ends(value, accepts), -1e300, 1e300]
    if isinstance(value, str):
        return ["nonsense", ""]
    bad = [(-1,), (10**30,), (1e-300,), ("nonsense",), ("1",), (True,), list(value), "maml"]
    bad += [()] if not accepts.test(()) else []
    return bad + [(value[0], value[0])] if not accepts.test((value[0], value[0])) else bad


FREE_TEXT = {"pretrained": "test_experiments"}
"""Settings that hold whatever the user writes, and where they are refused once it is read."""

CASES = [
    pytest.param(*where, bad, id=f"{where[0]}: {where[1]}={bad!r}")
    for where, (value, accepts) in FIELDS.items()
    if where[1] not in FREE_TEXT
    for bad in bad_values(value, accepts)
]


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_defaults_are_accepted_and_hashable(config: Config) -> None:
    assert validate(config) is config
    hash(config)


@pytest.mark.parametrize(("kind", "name", "bad"), CASES)
def test_bad_values_are_refused_by_name(kind: str, name: str, bad: Any) -> None:
    with pytest.raises(ConfigError) as error:
        validate(with_setting(CONFIGS[kind], name, bad))
    message = str(error.value)
    assert message.startswith(f"{name}: {bad!r} is not accepted; accepted: "), message
    assert "\n" not in message
    assert len(message.split("accepted: ")[-1]) > 3


def test_every_setting_is_checked() -> None:
    for config in CONFIGS.values():
        for name, _, accepts in fields_of(config):
            assert accepts is not None and len(accepts.words) > 3, name


@pytest.mark.parametrize(("kind", "name"), [*of_type(int), *of_type(float)])
def test_words_name_both_ends(kind: str, name: str) -> None:
    value, accepts = FIELDS[kind, name]
    said = {float(word) for word in re.findall(r"-?\d[\d.e+-]*(?<![.,])", accepts.words)}
    # The end itself, or, where it is not accepted, the first number beyond it.
    for accepted, beyond in zip(ends(value, accepts), beyond_ends(value, accepts), strict=True):
        assert said & {float(accepted), float(beyond)}, (accepted, accepts.words)


@pytest.mark.parametrize(("kind", "name"), of_type(str))
def test_words_name_every_choice(kind: str, name: str) -> None:
    value, accepts = FIELDS[kind, name]
    if CONFIGS[kind].env is OWN:
        return  # a text of the user's
    if name in FREE_TEXT:
        return
    assert set(names_of(accepts)) == set(accepts.words.removeprefix("one of ").split(", "))
    assert value in names_of(accepts) and len(names_of(accepts)) > 1


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
        ("navigation_2d", "methods", ("smooth", "promp")),
        ("navigation_2d", "eval.curve_attacks", ()),
        ("navigation_2d", "attacks.adgan.gan_loss", "bce"),
    ):
        changed = with_setting(CONFIGS[kind], name, value)
        assert validate(changed) is changed
        assert from_dict(json.loads(json.dumps(to_dict(changed)))) == changed != CONFIGS[kind]


@pytest.mark.parametrize(
    ("kind", "changes", "message"),
    [
        (
            "halfcheetah_vel",
            {"env.min_velocity": 2.0},  # equal to the upper end: nothing to draw from
            "env.min_velocity: 2.0 is not accepted; accepted: a number below env.max_velocity (2.0)",
        ),
        (
            "halfcheetah_vel",
            {"env.max_velocity": -1.0},
            "env.min_velocity: 0.0 is not accepted; accepted: a number below env.max_velocity (-1.0)",
        ),
        (
            "ant_goal",
            {"env.min_height": 1.5},
            "env.min_height: 1.5 is not accepted; accepted: a number below env.max_height (1.0)",
        ),
        (
            "ant_dir",
            {"env.max_height": 0.2},
            "env.min_height: 0.2 is not accepted; accepted: a number below env.max_height (0.2)",
        ),
        (
            "ant_vel",
            {"env.max_velocity": 0.0},
            "env.max_velocity: 0.0 is not accepted; accepted: a number from 1e-06 to 1000000",
        ),
        (
            "ant_vel",
            {"env.max_velocity": -3.0},
            "env.max_velocity: -3.0 is not accepted; accepted: a number from 1e-06 to 1000000",
        ),
        (
            "navigation_2d",
            {"policy.min_std": 1.0},  # a smooth floor is only ever approached
            "policy.min_std: 1.0 is not accepted; accepted: a number below policy.init_std (1.0)",
        ),
        (
            "navigation_2d",
            {"learners.maml_trpo.adapts": "context"},
            "policy.context_size: 0 is not accepted; accepted: 1 or more where learners.maml_trpo.adapts is "
            "context",
        ),
        (
            "navigation_2d",
            {"policy.context_std": 1.0},
            "policy.context_size: 0 is not accepted; accepted: 1 or more where policy.context_std is above 0",
        ),
        (
            "navigation_2d",
            {"policy.context_std": 1.0, "policy.context_size": 2},
            "learners.maml_trpo.adapts: 'all' is not accepted; accepted: context where policy.context_std is "
            "above 0",
        ),
        (
            "navigation_2d",
            {
                "policy.context_std": 1.0,
                "policy.context_size": 2,
                "learners.maml_trpo.adapts": "context",
                "methods": ("maml", "promp"),
            },
            "methods: 'promp' is not accepted; accepted: methods of maml_trpo where policy.context_std is "
            "above 0",
        ),
        (
            "navigation_2d",
            {
                "policy.context_std": 1.0,
                "policy.context_size": 2,
                "learners.maml_trpo.adapts": "context",
                "sampling.support_discount": 0.5,
            },
            "sampling.support_discount: 0.5 is not accepted; accepted: 0 where policy.context_std is above 0",
        ),
        (
            "navigation_2d",
            {"sampling.num_tasks": 1, "methods": ("maml", "population")},
            "sampling.num_tasks: 1 is not accepted; accepted: 2 or more where "
            "defences.population.fit.target is other_task",
        ),
        (
            "navigation_2d",
            {
                "eval.attacker.num_tasks": 1,
                "eval.attacks": ("counter_action",),
                "attacks.counter_action.target": "other_task",
            },
            "eval.attacker.num_tasks: 1 is not accepted; accepted: 2 or more where "
            "attacks.counter_action.target is other_task",
        ),
        (
            "navigation_2d",
            {"num_devices": 3},
            "num_devices: 3 is not accepted; accepted: 0 or a divisor of sampling.num_tasks (40)",
        ),
        (
            "navigation_2d",
            {"schedule.checkpoint_every": 7},
            "schedule.checkpoint_every: 7 is not accepted; accepted: a multiple of schedule.chunk_steps (5)",
        ),
        (
            "navigation_2d",
            {"schedule.snapshot_every": 12},
            "schedule.snapshot_every: 12 is not accepted; accepted: a multiple of schedule.chunk_steps (5)",
        ),
        (
            "custom",
            {"env.factory": "my_module"},
            "env.factory: 'my_module' is not accepted; accepted: module:function, a function without "
            "arguments that returns an environment",
        ),
    ],
)
def test_settings_that_do_not_fit_each_other(kind: str, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        validate(with_settings(CONFIGS[kind], changes))
    assert str(error.value) == message


def test_one_task_is_accepted_where_nothing_needs_another() -> None:
    for changes in (
        {"sampling.num_tasks": 1, "eval.attacker.num_tasks": 1},
        {"sampling.num_tasks": 1, "methods": ("population",), "defences.population.fit.target": "opposite"},
        {"eval.attacker.num_tasks": 1, "attacks.counter_action.target": "other_task"},
    ):
        validate(with_settings(NAVIGATION, changes))


def test_a_hard_floor_may_be_touched() -> None:
    validate(with_settings(NAVIGATION, {"policy.min_std": 1.0, "policy.std_floor": "hard"}))


@pytest.mark.parametrize(
    "name", ["defences.adgan.adversary.num_minibatches", "attacks.adgan.num_minibatches"]
)
def test_minibatches_divide_the_batch(name: str) -> None:
    from admrl_jax.protocol.parts import build_parts

    # 20 episodes of 100 steps.
    group = name.rpartition(".")[0].removesuffix(".adversary")
    message = (
        f"{group}: num_minibatches: 3 is not accepted; accepted: a divisor of num_trajectories x horizon "
        "(2000)"
    )
    with pytest.raises(ConfigError) as error:
        build_parts(with_setting(NAVIGATION, name, 3))
    assert str(error.value) == message


@pytest.mark.parametrize("name", ["seeds", "policy.hidden_sizes"])
@pytest.mark.parametrize("value", [2.5, "3"])
def test_whole_numbers_in_tuples_are_whole(name: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=f"^{name}: "):
        validate(with_setting(NAVIGATION, name, (value,)))


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_json_round_trip(config: Config) -> None:
    changed = with_settings(config, {"seeds": (4, 7), "learners.maml_trpo.inner_lr": 0.05})
    again = from_dict(json.loads(json.dumps(to_dict(changed))))
    assert again == changed and hash(again) == hash(changed)
    assert type(again.env) is type(config.env)


@given(
    inner_lr=st.floats(1e-6, 10),
    discount=st.floats(0, 1),
    hidden=st.lists(st.integers(1, 512), min_size=1, max_size=3),
    strengths=st.lists(st.floats(0.01, 5), min_size=1, max_size=4, unique=True),
    seeds=st.lists(st.integers(0, 2**31 - 1), min_size=1, max_size=4, unique=True),
    methods=st.lists(st.sampled_from(sorted(METHODS)), min_size=1, unique=True),
    scale=st.floats(0.1, 100),
)
@settings(max_examples=30, deadline=None)
def test_any_accepted_config_round_trips(
    inner_lr, discount, hidden, strengths, seeds, methods, scale
) -> None:
    changes = {
        "learners.promp.inner_lr": inner_lr,
        "sampling.discount": discount,
        "policy.hidden_sizes": tuple(hidden),
        "eval.strengths": tuple(strengths),
        "seeds": tuple(seeds),
        "methods": tuple(methods),
        "env.action_scale": scale,
    }
    config = with_settings(NAVIGATION, changes)
    assert from_dict(json.loads(json.dumps(to_dict(validate(config))))) == config


PATHS = [
    "",
    "env",
    "policy",
    "sampling",
    "learners.maml_trpo.trpo",
    "defences.adgan.adversary",
    "eval",
    "eval.attacker",
]


def branch(tree: dict, path: str) -> dict:
    for part in filter(None, path.split(".")):
        tree = tree[part]
    return tree


@pytest.mark.parametrize("path", PATHS)
def test_unknown_and_missing_settings_are_refused_by_name(path: str) -> None:
    prefix = f"{path}." if path else ""
    tree = to_dict(NAVIGATION)
    branch(tree, path)["surprise"] = 1
    with pytest.raises(ConfigError, match=rf"unknown or missing settings: {prefix}surprise$"):
        from_dict(tree)

    tree = to_dict(NAVIGATION)
    gone = next(name for name in branch(tree, path) if name not in ("name", "env"))
    del branch(tree, path)[gone]
    if path.split(".")[0] in (*PART_GROUPS, "eval", "env", "policy", "sampling"):
        # Newer than the file: it has its default.
        assert (
            branch(to_dict(from_dict(tree)), path)[gone]
            == branch(to_dict(Config(env=type(NAVIGATION.env)())), path)[gone]
        )
        return
    with pytest.raises(ConfigError, match=rf"unknown or missing settings: {prefix}{gone}$"):
        from_dict(tree)


@pytest.mark.parametrize("env", [{}, {"name": "walker"}])
def test_unknown_environments_are_refused(env: dict) -> None:
    with pytest.raises(ConfigError, match="accepted: navigation_2d, halfcheetah_dir"):
        from_dict({**to_dict(NAVIGATION), "env": env})


def test_from_dict_validates() -> None:
    tree = to_dict(NAVIGATION)
    tree["learners"]["maml_trpo"]["inner_lr"] = -1.0
    with pytest.raises(ConfigError, match=r"^learners.maml_trpo.inner_lr: -1.0 is not accepted"):
        from_dict(tree)


JUNK = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=5)
    | st.sampled_from(["1", "paper", "auto", b"bytes", 1j, ..., "a:b", "maml", "adgan"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(st.text(), inner)
    ),
    max_leaves=4,
)


@given(st.sampled_from(list(FIELDS)), JUNK)
@settings(max_examples=300, deadline=None)
def test_any_value_is_taken_as_it_is_or_refused_in_one_line(where: tuple[str, str], value: Any) -> None:
    kind, name = where
    accepts = FIELDS[where][1]
    changed = with_setting(CONFIGS[kind], name, value)
    try:
        assert validate(changed) is changed
    except ConfigError as error:
        # Where two settings do not fit each other the other one may be named.
        assert re.match(r"^[a-z_0-9.]+: .* is not accepted; accepted: .{4,}$", str(error)), str(error)
        if not accepts.test(value):
            assert str(error).startswith(f"{name}: {value!r} is not accepted"), str(error)
    else:
        assert accepts.test(value)


def good_values(name: str, default: Any, accepts: Accepts) -> st.SearchStrategy[Any]:
    """Values of a size for tests that a setting accepts by itself."""
    if isinstance(default, bool):
        return st.booleans()
    if isinstance(default, str):
        return st.just(default) if accepts.test("any text") else st.sampled_from(names_of(accepts))
    if isinstance(default, tuple):
        if names_of(accepts):
            each = st.sampled_from(names_of(accepts))
        elif isinstance(default[0], float):
            each = st.floats(0.01, 3)
        else:
            each = st.integers(1, 6)
        return st.lists(each, min_size=1, max_size=3, unique=True).map(tuple)
    if isinstance(default, int):
        low, high = ends(default, accepts)
        return st.integers(low, high) if name.endswith("seed") else st.integers(1, 3)
    low, high = ends(default, accepts)
    return st.floats(max(low, -2), min(high, 2))


@st.composite
def accepted(draw: st.DrawFn, kinds: tuple[str, ...] = tuple(CONFIGS)) -> Config:
    """A config of small sizes in which every single setting was drawn, and which fits together."""
    config = CONFIGS[draw(st.sampled_from(kinds))]
    for name, default, accepts in fields_of(config):
        assert accepts is not None
        config = with_setting(config, name, draw(good_values(name, default, accepts), label=name))
    repairs: dict[str, Any] = {"num_devices": 1, "policy.min_std": config.policy.init_std / 2}
    if config.policy.init_std < 1e-5:
        repairs["policy.init_std"], repairs["policy.min_std"] = 1e-5, 1e-6
    repairs |= {name: 1 for name in flatten(config) if name.endswith("num_minibatches")}
    if 1 in (config.sampling.num_tasks, config.eval.attacker.num_tasks):
        repairs |= {name: "opposite" for name, value in flatten(config).items() if value == "other_task"}
    others = {METHODS[name].learner for name in config.methods} - {"maml_trpo"}
    adapts = config.learners.maml_trpo.adapts
    if not config.policy.context_size and adapts == "context":
        repairs["policy.context_size"] = 1
    if others or not config.policy.context_size or adapts != "context":
        repairs["policy.context_std"] = 0.0
    elif config.policy.context_std:
        repairs["sampling.support_discount"] = 0.0
    for name in ("checkpoint_every", "snapshot_every"):
        repairs[f"schedule.{name}"] = getattr(config.schedule, name) * config.schedule.chunk_steps
    for low, high in (("min_velocity", "max_velocity"), ("min_height", "max_height")):
        if hasattr(config.env, low):
            repairs |= {f"env.{low}": -2.5, f"env.{high}": abs(getattr(config.env, high)) + 0.1}
        elif hasattr(config.env, high):
            repairs[f"env.{high}"] = abs(getattr(config.env, high)) + 0.1
    return with_settings(config, repairs)


@given(accepted())
@settings(max_examples=60, deadline=None)
def test_configs_with_every_setting_changed_round_trip(config: Config) -> None:
    assert validate(config) is config
    again = from_dict(json.loads(json.dumps(to_dict(config))))
    assert again == config and hash(again) == hash(config)


def parts_of(config: Config) -> Parts:
    """The parts of a config, on this machine's default engine."""
    env = make_env(config.env, num_threads=1)
    policy = make_policy(env.obs_size, env.action_size, config.policy)
    return Parts(config, env, policy)


def start(config: Config, method: str) -> tuple[TrainState, dict[str, Any]]:
    """A fresh state of a method, and what its steps need.

    Every setting that is no shape may be an array.
    """
    parts = parts_of(config)
    setup, defence = parts.setup(method), parts.defence(method)
    state = training.init_train_state(jax.random.key(config.seeds[0]), setup, defence)
    return state, {"setup": setup, "defence": defence, "axis": axis_of(config)}


def first_step(config: Config, method: str) -> tuple[TrainState, TrainState, Any]:
    """State before and after a method's first outer step, and metrics."""
    state, fixed = start(config, method)
    return state, *training.outer_step(state, **fixed)


def axis_of(config: Config) -> TaskAxis:
    return TaskAxis(config.task_block)


def is_accepted(config: Config) -> bool:
    try:
        return validate(config) is config
    except ConfigError:
        return False


def is_finite(tree: Any) -> bool:
    return all(np.all(np.isfinite(x)) for x in jax.tree.leaves(tree))


def assert_healthy(learned: Any, metrics: dict[str, Any]) -> None:
    """A step was taken, nothing in it broke, and no update was left out."""
    assert metrics["train/env_steps"] > 0
    assert is_finite((learned, metrics))
    for name in ("train/diverged", "train/skipped", "adversary/skipped", "attack/budget_excess"):
        assert metrics.get(name, 0) == 0, name


@given(accepted(tuple(BUILT_IN)), st.sampled_from(sorted(METHODS)))
@settings(max_examples=6, deadline=None)
def test_accepted_configs_fit_together_in_an_outer_step(config: Config, method: str) -> None:
    before, after, metrics = jax.eval_shape(lambda: first_step(config, method))
    chex.assert_trees_all_equal_shapes_and_dtypes(before, after)
    assert all(value.shape == () for value in metrics.values())


TOY: dict[str, Any] = {
    "seeds": (0,),
    "env.horizon": 4,
    "policy.hidden_sizes": (3,),
    "sampling.num_tasks": 2,
    "sampling.num_trajectories": 2,
    # Neither 0 nor a million shortens a step.
    "learners.maml_trpo.max_length": 0.1,
    "learners.maml_trpo.trpo.cg_iterations": 4,
    "learners.maml_trpo.trpo.line_search_steps": 5,
    "learners.promp.num_epochs": 2,
    "defences.adgan.adversary.hidden_sizes": (3,),
    "defences.adgan.adversary.num_minibatches": 2,
    "defences.population.num_generators": 2,
    "defences.population.fit.hidden_sizes": (3,),
    "defences.population.fit.num_steps": 2,
    "defences.population.fit.num_samples": 4,
    "attacks.adgan.hidden_sizes": (3,),
    "attacks.adgan.num_epochs": 2,
    "attacks.adgan.num_minibatches": 2,
    # Loops cost little at their longest.
    "defences.noise.ramp_steps": 1_000_000,
    "defences.fgsm.ramp_steps": 1_000_000,
    "defences.smooth.ascent_steps": 1000,
    "attacks.pgd.steps": 1000,
    "attacks.stuck_sensor.duration": 1000,
    "attacks.counter_action.hidden_sizes": (2, 3),
    "attacks.counter_action.num_steps": 1000,
    "attacks.black_box.population": 1,
}

SHAPES: dict[str, tuple[str, dict[str, Any]]] = {
    "least": (
        "admrl",
        {
            "env.horizon": 1,
            "policy.hidden_sizes": (1,),
            "policy.init_std": 1e-6,
            "policy.min_std": 1e-6,
            "policy.std_floor": "hard",
            "sampling.num_tasks": 1,
            "sampling.num_trajectories": 1,
            "learners.maml_trpo.trpo.cg_iterations": 1,
            "learners.maml_trpo.trpo.line_search_steps": 1,
            "defences.adgan.adversary.hidden_sizes": (1,),
            "defences.adgan.adversary.num_epochs": 1,
            "defences.adgan.adversary.num_minibatches": 1,
            "defences.adgan.adversary.gan_loss": "bce_paper",
            "defences.adgan.side": "support",
        },
    ),
    "more": (
        "admrl",
        {
            "seeds": (2**31 - 1,),
            "policy.hidden_sizes": (3, 2),
            "policy.activation": "relu",
            "policy.init_std": 1_000_000,
            "sampling.num_tasks": 3,
            "sampling.num_adapt_steps": 2,
            "learners.maml_trpo.first_order": True,
            "learners.maml_trpo.adapts": "head",
            "env.remembers_actions": True,
            "task_block": 2,
            "defences.adgan.ramp_steps": 1_000_000,
            "defences.adgan.side": "query",
            "defences.adgan.adversary.hidden_sizes": (2, 3),
            "defences.adgan.adversary.num_epochs": 2,
            "defences.adgan.adversary.num_minibatches": 4,
            "defences.adgan.adversary.gan_loss": "bce",
            "defences.adgan.adversary.standardise": False,
        },
    ),
    "most": (
        "admrl",
        {
            "policy.init_std": 1_000_000,
            "policy.min_std": 999_999,
            "task_block": 10_000,
            "learners.maml_trpo.trpo.cg_iterations": 1000,
            "learners.maml_trpo.trpo.line_search_steps": 1000,
            "defences.adgan.adversary.num_epochs": 1000,
        },
    ),
    "promp": ("promp", {"learners.promp.num_epochs": 1000}),
    "population": (
        "population",
        {
            "defences.population.all_radii": True,
            "defences.population.noise_share": 1,
            "defences.population.ramp_steps": 1_000_000,
            "defences.population.renew_every": 1,
            "defences.population.num_generators": 1,
            "defences.population.fit.through": "both",
            "defences.population.fit.under_attack": False,
            "defences.population.fit.target": "opposite",
            "defences.population.fit.knows_task": False,
        },
    ),
    "smooth": (
        "smooth",
        {
            "defences.smooth.is_bounded": True,
            "defences.smooth.holds_std": False,
            "defences.smooth.num_episodes": 1,
        },
    ),
    "context": ("maml", {"policy.context_size": 10_000, "learners.maml_trpo.adapts": "context"}),
    "exploring": (
        "smooth",
        {
            "policy.context_size": 2,
            "policy.context_std": 1_000_000,
            "learners.maml_trpo.adapts": "context",
            "sampling.support_spread": 1_000_000,
        },
    ),
    "population query": ("population", {"defences.population.fit.through": "query"}),
}
"""Settings that are compiled in, on `TOY`. Sizes of arrays stay small: above, only time and memory grow."""


@pytest.mark.parametrize(("method", "changes"), SHAPES.values(), ids=SHAPES)
def test_a_step_runs_with_every_choice_and_size(method: str, changes: dict[str, Any]) -> None:
    config = validate(with_settings(NAVIGATION, TOY | changes))
    _, after, metrics = jax.jit(lambda: first_step(config, method))()
    assert after.step == 1
    assert_healthy((after.learner, after.opponent), metrics)


ATTACK_SHAPES: dict[str, tuple[str, dict[str, Any]]] = {
    "pgd": ("pgd", {"attacks.pgd.restarts": 3}),
    "pgd_linf": ("pgd_linf", {"attacks.pgd_linf.steps": 1, "attacks.pgd_linf.restarts": 2}),
    "pgd_counter": ("pgd_counter", {"attacks.pgd_counter.steps": 1, "attacks.pgd_counter.restarts": 2}),
    "sensor_delay": ("sensor_delay", {"attacks.sensor_delay.steps": 50}),
    "critic": (
        "critic",
        {
            "attacks.critic.hidden_sizes": (1,),
            "attacks.critic.num_steps": 1,
            "attacks.critic.num_samples": 1,
            "attacks.critic.steps": 1,
        },
    ),
    "snoop": (
        "snoop",
        {
            "attacks.snoop.hidden_sizes": (1,),
            "attacks.snoop.num_steps": 1,
            "attacks.snoop.num_samples": 1,
            "attacks.snoop.steps": 1,
        },
    ),
    "adgan_all_radii": (
        "adgan_all_radii",
        {
            "attacks.adgan_all_radii.hidden_sizes": (1,),
            "attacks.adgan_all_radii.gan_loss": "bce",
            "attacks.adgan_all_radii.standardise": False,
            "attacks.adgan_all_radii.num_epochs": 1,
            "attacks.adgan_all_radii.num_minibatches": 1,
        },
    ),
    "actor": (
        "actor",
        {
            "attacks.actor.hidden_sizes": (1,),
            "attacks.actor.knows_task": False,
            "attacks.actor.num_epochs": 1,
        },
    ),
    "director": (
        "director",
        {
            "attacks.director.hidden_sizes": (1,),
            "attacks.director.knows_task": False,
            "attacks.director.num_epochs": 1,
            "attacks.director.steps": 1,
        },
    ),
    "pipeline query": (
        "pipeline",
        {
            "attacks.pipeline.hidden_sizes": (1,),
            "attacks.pipeline.knows_task": False,
            "attacks.pipeline.side": "query",
            "attacks.pipeline.num_steps": 1,
        },
    ),
    "pipeline both": ("pipeline", {"attacks.pipeline.side": "both"}),
    "counter_action both": (
        "counter_action",
        {
            "attacks.counter_action.through": "both",
            "attacks.counter_action.num_samples": 1,
            "attacks.counter_action.knows_task": True,
        },
    ),
    "counter_action under attack": (
        "counter_action",
        {"attacks.counter_action.through": "adaptation", "attacks.counter_action.under_attack": True},
    ),
    "misstep": ("misstep", {"attacks.misstep.num_policies": 1, "attacks.misstep.steps": 1}),
    "counter_action other task": ("counter_action", {"attacks.counter_action.target": "other_task"}),
    "black_box": ("black_box", {"attacks.black_box.population": 2, "attacks.black_box.num_elites": 1}),
}
"""Settings of attacks that are compiled in, on `TOY`."""


@pytest.mark.parametrize(("attack", "changes"), ATTACK_SHAPES.values(), ids=ATTACK_SHAPES)
def test_an_attack_runs_with_every_choice_and_size(attack: str, changes: dict[str, Any]) -> None:
    config = validate(with_settings(NAVIGATION, TOY | changes))
    learned, metrics = jax.jit(lambda: attacked_step(config, attack))()
    assert is_finite((learned, metrics)) and metrics["attack/budget_excess"] == 0
    assert metrics.get("adversary/skipped", 0) == 0


def attacked_step(config: Config, attack: str) -> tuple[Any, dict[str, Any]]:
    """What the first update of an attacker of the meta-test learns, and metrics.

    One that learns nothing only collects.
    """
    parts = parts_of(config)
    key, setup = jax.random.key(config.seeds[0]), parts.setup("maml")
    units = Units(jnp.zeros(parts.env.obs_size), jnp.ones(parts.env.obs_size))
    params = setup.learner.init(key).meta_params
    if ATTACKS[attack].make_trainer is None:
        exposure = attacking.expose(
            parts.attack(attack, "maml"), (), Budget(0.2, units), num_tasks=config.sampling.num_tasks
        )
        keys = training.step_keys(key, jnp.int32(0))
        return training.sample_and_collect(params, keys, exposure, setup, axis_of(config))
    trainer = parts.attack_trainer(attack, "maml")
    state = attacking.init_attacker(key, trainer.init(key, units), trainer=trainer, budget=Budget(0.2, units))
    state, metrics = attacking.attack_step(state, params, setup=setup, trainer=trainer, axis=axis_of(config))
    return state.trainer, metrics


Program = Callable[[dict[str, float]], tuple[Any, dict[str, Any]]]
"""`(numbers) -> (what is learned, metrics)`; numbers that are left out have their defaults."""

OWNERS = {
    "env.": "admrl",
    "sampling.": "admrl",
    "learners.maml_trpo.": "admrl",
    "defences.adgan.": "admrl",
    "learners.promp.": "promp",
    "defences.smooth.": "smooth",
    "defences.population.": "population",
    "defences.noise.": "random",
    "defences.fgsm.": "fgsm",
    **{f"attacks.{name}.": f"attacks.{name}" for name in ATTACKS},
}
"""The method, or the attack, whose first step reads the settings of a beginning."""

COLLECTS_ONLY = ("random", "fgsm")
"""Methods that differ from another in what they collect alone."""

ALIKE = {"attacks.adgan_no_gan.": "attacks.adgan."}
"""Settings of the same program: one is run with the values of both."""


ELSEWHERE = {
    "learners.maml_trpo.pretrain_max_kl": "test_parts",
    "schedule": "test_experiments",
    "eval": "test_experiments",
    "eval.suite": "test_suite",
    "units": "test_experiments",
    "lanes": "test_experiments",
    "methods": "test_experiments",
    "defences.adgan.warmup_steps": "test_experiments",
    "defences.population.warmup_steps": "test_experiments",
    "defences.noise.side": "test_defences",
    "defences.fgsm.side": "test_defences",
    **FREE_TEXT,
    "num_devices": "test_devices",
    "simulator": "test_simulators",
    "env.factory": "test_custom",
    "attacks.misstep.against": "test_misstep",
    "attacks.misstep.spread": "test_misstep",
    "attacks.misstep.step_share": "test_misstep",
}
"""Settings that no step above reads, by their beginning, and where they are run."""


def numbers_of(owner: str) -> dict[str, float]:
    """The numbers that the owner's compiled step takes as arguments."""
    toy = with_settings(NAVIGATION, TOY)
    return {
        name: value
        for name, value in flatten(toy).items()
        if isinstance(value, float) and name not in ELSEWHERE
        if any(name.startswith(k) for k, v in OWNERS.items() if v == owner)
    }


NUMBERS = [
    pytest.param(owner, name, id=name)
    for owner in dict.fromkeys(OWNERS.values())
    if f"{owner}." not in ALIKE
    for name in numbers_of(owner)
]
"""Settings that a compiled step can take as arguments, so that all their values share one program."""


@pytest.fixture(scope="module")
def programs() -> dict[str, Program]:
    """The first step of every method and attacker on 2D navigation, compiled when it is first called."""
    toy = with_settings(NAVIGATION, TOY)

    def program(owner: str) -> Program:
        def step(numbers: dict[str, jax.Array]) -> tuple[Any, dict[str, Any]]:
            config = with_settings(toy, numbers)
            if owner.startswith("attacks."):
                return attacked_step(config, owner.removeprefix("attacks."))
            if owner in COLLECTS_ONLY:
                state, fixed = start(config, owner)
                return training.collect_step(state, **fixed)
            _, after, metrics = first_step(config, owner)
            return (after.learner, after.opponent), metrics

        compiled = jax.jit(step)
        # Always 32 bits, as where a setting is a constant of the program.
        return lambda numbers: compiled(jax.tree.map(jnp.float32, numbers_of(owner) | numbers))

    return {owner: program(owner) for owner in OWNERS.values()}


@pytest.mark.parametrize(("owner", "name"), NUMBERS)
def test_a_step_runs_with_both_ends_of_every_number(owner: str, name: str, programs: Any) -> None:
    default = numbers_of(owner)[name]
    found = []
    for value in (default, *ends(default, accepted_by("navigation_2d", name))):
        learned, metrics = programs[owner]({name: value})
        assert_healthy(learned, metrics)
        found.append((learned, metrics))
    same = jax.tree.map(lambda *x: np.array_equal(x[0], x[1]) and np.array_equal(x[0], x[2]), *found)
    assert not all(jax.tree.leaves(same)), "the setting does nothing"


def test_settings_that_are_alike_accept_the_same() -> None:
    for beginning, other in ALIKE.items():
        for (kind, name), (_, accepts) in FIELDS.items():
            if name.startswith(beginning):
                assert FIELDS[kind, name.replace(beginning, other)][1] is accepts


@given(st.data())
@settings(max_examples=20, deadline=None)
def test_no_numbers_together_break_what_is_learned(programs: Any, data: st.DataObject) -> None:
    owner = data.draw(st.sampled_from([x for x in programs if f"{x}." not in ALIKE]))
    numbers = {
        name: data.draw(st.floats(*ends(value, accepted_by("navigation_2d", name))), label=name)
        for name, value in numbers_of(owner).items()
    }
    validate(with_settings(NAVIGATION, numbers))
    learned, metrics = programs[owner](numbers)
    assert is_finite(learned) and metrics["attack/budget_excess"] == 0


FLIPPED = {
    name: other
    for (kind, name), (value, accepts) in FIELDS.items()
    if name.startswith("env.") and isinstance(value, bool | str) and kind in BUILT_IN
    for other in ([not value] if isinstance(value, bool) else names_of(accepts))
    if other != value
}
"""The other value of every setting of an environment that has two."""


def episodes(config: Config) -> Any:
    """A program that takes the numbers of an environment and collects two short episodes of a task."""
    numbers = {n: v for n, v in flatten(config).items() if n.startswith("env.") and isinstance(v, float)}

    @jax.jit
    def program(numbers: dict[str, jax.Array]) -> Any:
        env = make_env(with_settings(config, numbers).env, num_threads=1)
        policy = tiny_policy(env.obs_size, env.action_size)
        keys = jax.random.split(jax.random.key(config.seeds[0]), 3)
        task = env.sample_task(keys[0])
        return collect(
            policy.init(keys[1]),
            (),
            keys[2],
            task,
            num_trajectories=2,
            env=env,
            policy=policy,
            attack=no_attack(),
            budget=Budget(0.0),
            is_query=True,
        )

    return lambda changes: program(jax.tree.map(jnp.float32, numbers | changes))


@pytest.mark.parametrize(
    ("kind", "is_flipped"),
    [
        (kind, is_flipped)
        for kind, config in BUILT_IN.items()
        if kind != "navigation_2d"
        for is_flipped in ((False, True) if FLIPPED.keys() & flatten(config).keys() else (False,))
    ],
)
def test_episodes_run_with_every_setting_of_an_environment(kind: str, is_flipped: bool) -> None:
    config = with_setting(CONFIGS[kind], "env.horizon", 2)
    if is_flipped:
        others = {name: FLIPPED[name] for name in FLIPPED.keys() & flatten(config).keys()}
        config = with_settings(config, {"env.frame_skip": 1, **others})
    run = episodes(config)
    numbers = {name: x for name, x in flatten(config).items() if name.startswith("env.")}
    numbers = {name: ends(x, accepted_by(kind, name)) for name, x in numbers.items() if type(x) is float}
    for change in [{}, *({name: end} for name, both in numbers.items() for end in both)]:
        if not is_accepted(with_settings(config, change)):
            continue  # The ends of two settings need not fit each other.
        trajectory = run(change)
        assert is_finite(trajectory) and trajectory.diverged.sum() == 0, change
        assert np.all(trajectory.mask[:, 0] == 1), change


@pytest.mark.parametrize("threads", [0, 1000])
def test_an_engine_runs_with_most_threads_and_physics_steps(threads: int) -> None:
    changes = {"num_threads": threads, "env.frame_skip": 1000}
    config = validate(with_settings(CONFIGS["reacher"], changes))
    env = make_env(config.env, simulator=config.simulator, num_threads=config.num_threads)
    task = env.sample_task(jax.random.key(0))
    state, _ = env.reset(jax.random.key(1), task)
    assert is_finite(env.step(state, jnp.ones(env.action_size), task))


def test_every_setting_is_run() -> None:
    run = {"num_threads", "env.frame_skip"} | TOY.keys() | FLIPPED.keys()
    run |= {case.id for case in NUMBERS if case.id}
    shapes = [changes for _, changes in (*SHAPES.values(), *ATTACK_SHAPES.values())]
    for changes in shapes:
        run |= changes.keys()
    # adGAN as a defence's opponent and as an attack of the meta-test has the same settings.
    run |= {x.replace("defences.adgan.adversary", "attacks.adgan") for x in run}
    run |= {x.replace(other, beginning) for x in run for beginning, other in ALIKE.items()}
    for config in CONFIGS.values():
        for name, value in flatten(config).items():
            is_number = name.startswith("env.") and isinstance(value, float)
            is_elsewhere = any(name == x or name.startswith(f"{x}.") for x in ELSEWHERE)
            assert (name in run or is_number) != is_elsewhere, name
    for path in set(ELSEWHERE.values()):
        assert (ROOT / "tests" / f"{path}.py").exists(), path
    chosen = flatten(NAVIGATION)
    for name, value in chosen.items():
        accepts = FIELDS["navigation_2d", name][1]
        if not isinstance(value, bool | str) or name in ELSEWHERE or name.startswith("attacks.adgan"):
            continue
        if name.removeprefix("attacks.").startswith("adgan"):
            continue  # the losses of adGAN as an opponent
        values = {value, *(changes.get(name, value) for changes in shapes)}
        assert values == ({False, True} if isinstance(value, bool) else set(names_of(accepts))), name


def test_presets_and_results_are_accepted() -> None:
    for name in BUILT_IN:
        for preset in importlib.import_module(f"experiments.{name}").PRESETS.values():
            assert validate(preset) is preset and preset.env.name == name
    saved = list(ROOT.glob("results/**/config.json"))
    assert len(saved) >= 9
    for path in saved:
        from_dict(json.loads(path.read_text()))
