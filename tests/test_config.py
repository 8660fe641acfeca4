"""Settings: what is refused and how the message reads, JSON round trips, unknown keys."""

import contextlib
import dataclasses
import importlib
import io
import json
import math
import re
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

from admrl_jax import adgan as adgan_lib
from admrl_jax import envs, networks, training
from admrl_jax.attacks import Budget, fgsm, gaussian_noise, no_attack, select
from admrl_jax.checks import ConfigError
from admrl_jax.config import _CHECKS, Config, flatten, from_dict, to_dict, validate
from admrl_jax.env_config import ENV_CONFIGS
from admrl_jax.rollout import collect
from admrl_jax.training import TrainState
from experiments.arguments import OPTIONS, Arguments
from experiments.command_line import main

ROOT = Path(__file__).parent.parent
CONFIGS = {name: Config(env=env()) for name, env in ENV_CONFIGS.items()}
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


def names_of(name: str) -> list[str]:
    """Names that a setting accepts, if it accepts names."""
    head, found, names = _CHECKS[name][1].partition("one of ")
    return names.split(", ") if found and not head else []


OPEN_RANGES = {
    "a number between 0 and 1": (1e-9, 1 - 1e-9, 0.0, 1.0),
    "a number above 1, at most 10": (1 + 1e-9, 10.0, 1.0, 10.1),
}
"""Two numbers that are accepted, and two beyond them that are not."""


def ends(name: str) -> tuple[Any, Any]:
    """The least and the greatest number that a setting accepts, as it words them."""
    wording = _CHECKS[name][1]
    if wording in OPEN_RANGES:
        return OPEN_RANGES[wording][:2]
    match = re.fullmatch(r"a (whole )?number from (\S+) to (\S+)", wording)
    assert match, wording
    kind = int if match[1] else float
    return kind(match[2]), kind(match[3])


def beyond_ends(name: str) -> tuple[Any, Any]:
    """The nearest numbers that a setting does not accept any more."""
    if _CHECKS[name][1] in OPEN_RANGES:
        return OPEN_RANGES[_CHECKS[name][1]][2:]
    low, high = ends(name)
    if isinstance(low, int):
        return low - 1, high + 1
    return math.nextafter(low, -math.inf), math.nextafter(high, math.inf)


def bad_values(name: str, value: Any) -> list[Any]:
    """Values that a setting with such a name and default does not accept."""
    if isinstance(value, bool):
        return [1, 0, "True", None]
    if isinstance(value, int):
        return [*beyond_ends(name), -100, 2**40, 10**30]
    if isinstance(value, float):
        return [math.nan, math.inf, "1", True, None, *beyond_ends(name), -1e300, 1e300]
    if isinstance(value, str):
        return ["nonsense", ""]
    return [(), (-1,), (10**30,), (1e-300,)] + ([(value[0], value[0])] if len(value) == 3 else [])


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
    assert names == set(_CHECKS)


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
        if not _CHECKS[name][0](value):
            assert str(error).startswith(f"{name}: {value!r} is not accepted"), str(error)
    else:
        assert _CHECKS[name][0](value)


def good_values(name: str, default: Any) -> st.SearchStrategy[Any]:
    """Values of a size for tests that a setting accepts by itself."""
    if isinstance(default, bool):
        return st.booleans()
    if name.endswith("seed"):
        return st.integers(0, 2**31 - 1)
    if name == "seeds":
        return st.lists(st.integers(0, 2**31 - 1), min_size=1, max_size=3, unique=True).map(tuple)
    if name == "eval.strengths":
        return st.lists(st.floats(0.01, 3), min_size=1, max_size=3, unique=True).map(tuple)
    if name.endswith("hidden_sizes"):
        return st.lists(st.integers(1, 6), min_size=1, max_size=3).map(tuple)
    if names_of(name):
        return st.sampled_from(names_of(name))
    if isinstance(default, int):
        return st.integers(1, 3)
    low, high = ends(name)
    return st.floats(max(low, -2), min(high, 2))


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


ATTACKS = ("none", "random", "fgsm", "admrl")
"""Methods by the number that `first_step` takes."""


def first_step(config: Config, method: Any = 3) -> tuple[TrainState, TrainState, Any]:
    """State before and after the first outer step of a config, and metrics.

    The method, a number in `ATTACKS`, may be an array, and so may every setting that is no shape.
    """
    env = envs.make(config.env, num_threads=1)
    policy = networks.make_policy(
        env.obs_size,
        env.action_size,
        hidden_sizes=config.policy.hidden_sizes,
        activation=config.policy.activation,
        init_std=config.policy.init_std,
        min_std=config.policy.min_std,
    )
    train = config.train
    adgan = adgan_lib.make_adgan(env.obs_size, train.adversary)
    attacks = (no_attack(), gaussian_noise(), fgsm(policy), adgan.attack)
    radii = (0.0, train.noise_std, train.fgsm_radius, train.adversary.perturbation_bound)
    state = training.init(jax.random.key(config.seeds[0]), policy=policy, obs_size=env.obs_size)
    state = state.replace(
        adversary=adgan_lib.init_adversary(jax.random.key(1), adgan, train.adversary),
        budget=state.budget._replace(radius=jnp.stack([jnp.float32(x) for x in radii])[method]),
    )
    attack = attacks[method] if isinstance(method, int) else select(attacks, method)
    after, metrics = training.outer_step(
        state, env=env, policy=policy, attack=attack, config=train, adgan=adgan
    )
    return state, after, metrics


def is_accepted(config: Config) -> bool:
    try:
        return validate(config) is config
    except ConfigError:
        return False


def is_finite(tree: Any) -> bool:
    return all(np.all(np.isfinite(x)) for x in jax.tree.leaves(tree))


def learned(state: TrainState) -> Any:
    """What a step changes, without the return of the strongest attacker, which starts infinite."""
    assert state.adversary is not None
    return state.policy_params, state.adversary.replace(strongest_return=jnp.zeros(()))


def assert_healthy(after: TrainState, metrics: dict[str, Any]) -> None:
    """A step was taken, nothing in it broke, and no update was left out."""
    assert after.step == 1 and metrics["train/env_steps"] > 0
    assert is_finite((learned(after), metrics))
    for name in ("train/diverged", "train/skipped", "adversary/skipped", "attack/budget_excess"):
        assert metrics[name] == 0, name


@given(accepted())
@settings(max_examples=3, deadline=None)
def test_accepted_configs_fit_together_in_an_outer_step(config: Config) -> None:
    before, after, metrics = jax.eval_shape(lambda: first_step(config))
    chex.assert_trees_all_equal_shapes_and_dtypes(before, after)
    assert all(value.shape == () for value in metrics.values())


TOY: dict[str, Any] = {
    "env.horizon": 4,
    "policy.hidden_sizes": (3,),
    "train.maml.num_tasks": 2,
    "train.maml.num_trajectories": 2,
    "train.trpo.cg_iterations": 4,
    "train.trpo.line_search_steps": 5,
    "train.adversary.hidden_sizes": (3,),
    "train.adversary.num_minibatches": 2,
}

SHAPES: dict[str, dict[str, Any]] = {
    "least": {
        "seeds": (0,),
        "env.horizon": 1,
        "policy.hidden_sizes": (1,),
        "policy.init_std": 1e-6,
        "policy.min_std": 1e-6,
        "train.maml.num_tasks": 1,
        "train.maml.num_trajectories": 1,
        "train.trpo.cg_iterations": 1,
        "train.trpo.line_search_steps": 1,
        "train.adversary.hidden_sizes": (1,),
        "train.adversary.num_epochs": 1,
        "train.adversary.num_minibatches": 1,
        "train.adversary.gan_loss": "bce_paper",
    },
    "more": {
        "seeds": (2**31 - 1,),
        "policy.hidden_sizes": (3, 2),
        "policy.activation": "relu",
        "policy.init_std": 1_000_000,
        "train.maml.num_tasks": 3,
        "train.maml.num_adapt_steps": 2,
        "train.maml.first_order": True,
        "train.maml.task_block": 2,
        "train.adversary.hidden_sizes": (2, 3),
        "train.adversary.num_epochs": 2,
        "train.adversary.num_minibatches": 4,
        "train.adversary.gan_loss": "bce",
    },
    "most": {
        "policy.min_std": 1_000_000,
        "train.maml.task_block": 10_000,
        "train.trpo.cg_iterations": 1000,
        "train.trpo.line_search_steps": 1000,
        "train.adversary.num_epochs": 1000,
    },
}
"""Settings that are compiled in, on `TOY`. Sizes of arrays stay small: above, only time and memory grow."""


@pytest.mark.parametrize("changes", SHAPES.values(), ids=SHAPES)
def test_a_step_runs_with_every_choice_and_size(changes: dict[str, Any]) -> None:
    config = validate(with_settings(NAVIGATION, TOY | changes))
    _, after, metrics = jax.jit(lambda: first_step(config))()
    assert_healthy(after, metrics)


NUMBERS = {
    name: value
    for name, value in flatten(with_settings(NAVIGATION, TOY)).items()
    if name.startswith(("env.", "train.")) and isinstance(value, float)
}
"""Settings that a compiled step can take as arguments, so that all their values share one program."""


@pytest.fixture(scope="module")
def step_of_numbers() -> Any:
    """`(numbers, method) -> (state before, after, metrics)` of the first outer step on 2D navigation."""
    toy = with_settings(NAVIGATION, TOY)
    program = jax.jit(lambda numbers, method: first_step(with_settings(toy, numbers), method))
    # Always 32 bits, as where a setting is a constant of the program.
    return lambda numbers, method: program(jax.tree.map(jnp.float32, NUMBERS | numbers), jnp.int32(method))


@pytest.mark.parametrize("name", NUMBERS)
def test_a_step_runs_with_both_ends_of_every_number(name: str, step_of_numbers: Any) -> None:
    method = {"train.noise_std": 1, "train.fgsm_radius": 2}.get(name, 3)
    found = []
    for value in (NUMBERS[name], *ends(name)):
        _, after, metrics = step_of_numbers({name: value}, method)
        assert_healthy(after, metrics)
        found.append((learned(after), metrics))
    same = jax.tree.map(lambda *x: np.array_equal(x[0], x[1]) and np.array_equal(x[0], x[2]), *found)
    assert not all(jax.tree.leaves(same)), "the setting does nothing"


@given(
    st.fixed_dictionaries({name: st.floats(*ends(name)) for name in NUMBERS}),
    st.integers(0, len(ATTACKS) - 1),
)
@settings(max_examples=50, deadline=None)
def test_no_numbers_together_break_what_is_learned(
    step_of_numbers: Any, numbers: dict[str, float], method: int
) -> None:
    validate(with_settings(NAVIGATION, numbers))
    _, after, metrics = step_of_numbers(numbers, method)
    assert after.step == 1 and is_finite(learned(after)) and metrics["attack/budget_excess"] == 0


FLIPPED = {
    name: other
    for config in CONFIGS.values()
    for name, value in flatten(config).items()
    if name.startswith("env.") and isinstance(value, bool | str)
    for other in ([not value] if isinstance(value, bool) else names_of(name))
    if other != value
}
"""The other value of every setting of an environment that has two."""


def episodes(config: Config) -> Any:
    """A program that takes the numbers of an environment and collects two short episodes of a task."""
    numbers = {n: v for n, v in flatten(config).items() if n.startswith("env.") and isinstance(v, float)}

    @jax.jit
    def program(numbers: dict[str, jax.Array]) -> Any:
        env = envs.make(with_settings(config, numbers).env, num_threads=1)
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
        )

    return lambda changes: program(jax.tree.map(jnp.float32, numbers | changes))


@pytest.mark.parametrize(
    ("kind", "is_flipped"),
    [
        (kind, is_flipped)
        for kind, config in CONFIGS.items()
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
    numbers = [name for name, value in flatten(config.env, "env.").items() if isinstance(value, float)]
    for change in [{}, *({name: end} for name in numbers for end in ends(name))]:
        if not is_accepted(with_settings(config, change)):
            continue  # The ends of two settings need not fit each other.
        trajectory = run(change)
        assert is_finite(trajectory) and trajectory.diverged.sum() == 0, change
        assert np.all(trajectory.mask[:, 0] == 1), change


@pytest.mark.parametrize("threads", [0, 1000])
def test_an_engine_runs_with_most_threads_and_physics_steps(threads: int) -> None:
    changes = {"num_threads": threads, "env.frame_skip": 1000}
    config = validate(with_settings(CONFIGS["reacher"], changes))
    env = envs.make(config.env, simulator=config.simulator, num_threads=config.num_threads)
    task = env.sample_task(jax.random.key(0))
    state, _ = env.reset(jax.random.key(1), task)
    assert is_finite(env.step(state, jnp.ones(env.action_size), task))


ELSEWHERE = {
    "schedule": "test_experiments",
    "eval": "test_experiments",
    "units": "test_experiments",
    "lanes": "test_experiments",
    "num_devices": "test_sharding",
    "simulator": "test_simulators",
}
"""Settings that no outer step reads, by their beginning, and where they are run."""


def test_every_setting_is_run() -> None:
    run = {"seeds", "num_threads", "env.frame_skip"} | TOY.keys() | NUMBERS.keys() | FLIPPED.keys()
    for changes in SHAPES.values():
        run |= changes.keys()
    for config in CONFIGS.values():
        for name, value in flatten(config).items():
            is_number = name.startswith("env.") and isinstance(value, float)
            assert (name in run or is_number) != (name.split(".")[0] in ELSEWHERE), name
    chosen = flatten(NAVIGATION)
    for name in ("policy.activation", "train.adversary.gan_loss", "train.maml.first_order"):
        values = {chosen[name], *(changes.get(name, chosen[name]) for changes in SHAPES.values())}
        assert values == (set(names_of(name)) or {False, True}), name


def test_presets_and_results_are_accepted() -> None:
    for name in ENV_CONFIGS:
        for preset in importlib.import_module(f"experiments.{name}").PRESETS.values():
            assert validate(preset) is preset
    for path in ROOT.glob("results/**/config.json"):
        from_dict(json.loads(path.read_text()))


REFUSED = {
    "--train.maml.num-tasks=abc": "train.maml.num_tasks: 'abc' is not accepted; accepted: "
    "a whole number from 1 to 10000",
    "--train.maml.num_tasks 2.5": "train.maml.num_tasks: '2.5' is not accepted; accepted: a whole number ",
    "--env.horizon 3 4": "env.horizon: '3 4' is not accepted; accepted: a whole number from 1 to 1000000",
    "--env.action-scale --resume": "env.action_scale: no value is not accepted; accepted: a number from ",
    "--env.action-scale -1 --env.horizon=x": "env.horizon: 'x' is not accepted; accepted: a whole number ",
    "--env.torso-position=maybe": "env.torso_position: 'maybe' is not accepted; accepted: "
    "--env.torso-position or --env.no-torso-position, without a value",
    "--env.no-torso-position maybe": "env.torso_position: 'maybe' is not accepted; accepted: --env.torso-pos",
    "--no-resume=1": "resume: '1' is not accepted; accepted: --resume or --no-resume, without a value",
    "--seeds 1 b": "seeds: '1 b' is not accepted; accepted: one or more different whole numbers from 0 ",
    "--seeds": "seeds: () is not accepted; accepted: one or more different whole numbers from 0 ",
    "--process-id=first": "process_id: 'first' is not accepted; accepted: a whole number of at least 0",
    "--run-dir": "run_dir: no value is not accepted; accepted: one directory",
    "--preset": "preset: '' is not known; accepted: paper",
    "--num-devices=-1": "num_devices: -1 is not accepted; accepted: a whole number from 0 to 10000",
    "--train.maml.num-task=3": "command line: '--train.maml.num-task' is not known; accepted: what --help "
    "lists, such as --train.maml.num-tasks, ",
    "--num-tasks 3": "command line: '--num-tasks' is not known; accepted: what --help lists, such as "
    "--eval.num-tasks, ",
    "-x": "command line: '-x' is not known; accepted: what --help lists, such as --",
    "walk": "command line: 'walk' is not known; accepted: what --help lists, such as --",
}
"""Command lines and the beginnings of what is said of them."""


@pytest.mark.parametrize(("line", "message"), REFUSED.items(), ids=REFUSED)
def test_refused_command_lines_end_in_one_line(line: str, message: str, capsys) -> None:
    assert main("experiments.any", "", {"paper": CONFIGS["halfcheetah_dir"]}, line.split()) == 2
    out, err = capsys.readouterr()
    assert err.startswith(f"error: {message}") and err.count("\n") == 1 and not out, err


def test_every_option_says_what_it_accepts() -> None:
    config = {"config", "resume"}
    assert {field.name for field in dataclasses.fields(Arguments)} == config | OPTIONS.keys()


WORDS = st.text(max_size=8) | st.sampled_from(["nan", "-1", "1e-300", "True", "None", "--seeds", "a\nb"])


@given(st.sampled_from([name for kind, name in NAMES if kind == "halfcheetah_dir"]), WORDS)
@settings(max_examples=20, deadline=None)
def test_any_word_on_the_command_line_is_read_or_refused_in_one_line(name: str, word: str) -> None:
    error = io.StringIO()
    argv = [f"--{name.replace('_', '-')}={word}", "--until=nothing"]
    with contextlib.redirect_stderr(error):
        assert main("experiments.any", "", {"paper": CONFIGS["halfcheetah_dir"]}, argv) == 2
    assert re.match(r"error: [a-z_.]+: .*accepted: .*\n\Z", error.getvalue()), error.getvalue()
