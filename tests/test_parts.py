"""Parts are found by name and known by nothing else: every one builds, and no code asks for its name."""

import ast
import dataclasses
import json
import pickle
from collections.abc import Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

import admrl_jax as admrl
from admrl_jax.attacks.threat import KNOWLEDGE, NORMS
from admrl_jax.config import PART_GROUPS, Config, from_dict, to_dict
from admrl_jax.envs.custom import CustomConfig
from admrl_jax.envs.navigation import NavigationConfig
from admrl_jax.protocol.parts import build_parts
from experiments import navigation_2d

ROOT = Path(__file__).parents[1]
POLICY = admrl.make_policy(3, 2, admrl.PolicyConfig(hidden_sizes=(4,)))
VICTIM = admrl.Victim(POLICY, 3, 2, adapt_step=admrl.make_maml_trpo(POLICY).adapt_step)

NAMES = {*admrl.METHODS, *admrl.ATTACKS, *admrl.DEFENCES, *admrl.LEARNERS} - {"none"}
"""`none` is also a norm, a knowledge and a device; the clean attack is known as `registry.CLEAN`."""

OWN = {"methods.py", "config.py"}
"""Where names are data: the methods, and the names that a config holds by default."""


def asks_by_name(tree: ast.AST) -> Iterator[ast.Constant]:
    """Names in comparisons, dictionary keys, subscripts and patterns: what would be control flow."""
    for node in ast.walk(tree):
        found: list[ast.AST | None] = []
        if isinstance(node, ast.Compare):
            found = [node.left, *node.comparators]
        elif isinstance(node, ast.Dict):
            found = list(node.keys)
        elif isinstance(node, ast.Subscript):
            found = [node.slice]
        elif isinstance(node, ast.MatchValue):
            found = [node.value]
        for part in found:
            for leaf in ast.walk(part) if part is not None else ():
                if isinstance(leaf, ast.Constant) and leaf.value in NAMES:
                    yield leaf


def test_the_search_finds_control_flow_by_name():
    code = "if method == 'admrl': x = {'fgsm': 1}[a]\ny = z['maml']\nw = name in ('promp', 'pgd')"
    assert {leaf.value for leaf in asks_by_name(ast.parse(code))} == {"admrl", "fgsm", "maml", "promp", "pgd"}


def test_no_code_asks_for_the_name_of_a_part():
    # Core is below all parts and cannot know them; some of its words are theirs too.
    files = [p for p in (ROOT / "src").rglob("*.py") if p.name not in OWN and p.parent.name != "core"]
    files += list((ROOT / "experiments").glob("*.py"))
    problems = [
        f"{path.relative_to(ROOT)}:{leaf.lineno}: {leaf.value!r}"
        for path in files
        for leaf in asks_by_name(ast.parse(path.read_text()))
        # A part's own file.
        if not {path.stem, path.parent.name} & {leaf.value}
    ]
    assert not problems, problems


@pytest.mark.parametrize("name", admrl.ATTACKS)
def test_attacks_build_and_keep_their_budget(name: str):
    spec = admrl.ATTACKS[name]
    assert spec.threat.label and spec.colour.startswith("#") and spec.threat.strength
    assert spec.threat.norm in NORMS and spec.threat.knowledge in KNOWLEDGE
    attack = admrl.make_attack(name, VICTIM)
    assert attack.threat.norm == spec.threat.norm
    key, obs = jax.random.key(0), jnp.array([0.3, -2.0, 1.0])
    budget = admrl.Budget(jnp.asarray(0.5), admrl.Units(jnp.zeros(3), jnp.array([1.0, 2.0, 0.0])))
    memory = attack.reset(key)
    for step in range(3):
        seen, memory = attack.perturb(
            attack.init(key),
            memory,
            jax.random.fold_in(key, step),
            obs,
            admrl.Scene(POLICY.init(key)),
            budget,
        )
        assert attack.threat.measure(obs, seen, budget).excess == 0
        # What has scale 0 cannot be moved.
        assert seen[2] == obs[2]


@pytest.mark.parametrize("name", [n for n, spec in admrl.ATTACKS.items() if spec.make_trainer])
def test_trainers_start_and_go_on(name: str):
    trainer = admrl.make_attack_trainer(name, VICTIM)
    inputs = admrl.Units(jnp.zeros(3), jnp.ones(3))
    fresh = trainer.params(trainer.init(jax.random.key(0), inputs))
    other = trainer.params(trainer.init(jax.random.key(1), inputs))
    again = trainer.params(trainer.init(jax.random.key(1), inputs, fresh))
    for a, b, c in zip(*map(jax.tree.leaves, (fresh, other, again)), strict=True):
        assert jnp.array_equal(a, c)
        assert jax.tree.structure(a) == jax.tree.structure(b)


def test_unknown_parts_are_refused_by_name():
    with pytest.raises(admrl.ConfigError, match="'nope' is not known; accepted: none, gaussian"):
        admrl.make_attack("nope", VICTIM)
    with pytest.raises(admrl.ConfigError, match="'fgsm' learns nothing; accepted: critic"):
        admrl.make_attack_trainer("fgsm", VICTIM)
    with pytest.raises(admrl.ConfigError, match="'nope' is not known"):
        admrl.make_env("nope")


@pytest.mark.parametrize("name", admrl.LEARNERS)
def test_learners_build(name: str):
    spec = admrl.LEARNERS[name]
    learner = spec.make(spec.config(), POLICY)
    state = learner.init(jax.random.key(0))
    params = learner.policy_params(state.meta_params)
    assert spec.label and POLICY.apply(params, jnp.zeros(3)).mean.shape == (2,)


@pytest.mark.parametrize("name", admrl.DEFENCES)
def test_defences_build_and_expose_every_task(name: str):
    spec = admrl.DEFENCES[name]
    defence = spec.make(spec.config(), VICTIM)
    units = admrl.Units(jnp.zeros(3), jnp.ones(3))
    state = defence.init(jax.random.key(0), units)
    exposure = defence.expose(state, jnp.int32(0), units, 4)
    assert spec.label and exposure.support.radius.shape == (4,) == exposure.query.radius.shape


def test_methods_are_made_of_registered_parts():
    for method in admrl.METHODS.values():
        assert method.learner in admrl.LEARNERS and method.defence in admrl.DEFENCES
        assert method.label and method.colour.startswith("#")
    assert len({method.colour for method in admrl.METHODS.values()}) == len(admrl.METHODS)


@pytest.mark.parametrize("name", admrl.ENVS)
def test_configs_round_trip(name: str):
    spec = admrl.ENVS[name]
    env = spec.config(factory="a:b") if spec.config is CustomConfig else spec.config()
    config = Config(env=env)
    assert from_dict(json.loads(json.dumps(to_dict(config)))) == config
    assert pickle.loads(pickle.dumps(config)) == config
    assert spec.label


@pytest.mark.parametrize("group", PART_GROUPS)
def test_a_config_older_than_a_part_still_loads(group: str):
    tree = to_dict(Config(env=NavigationConfig()))
    newest = list(tree[group])[-1]
    del tree[group][newest]
    assert from_dict(tree) == Config(env=NavigationConfig())
    tree[group]["never_heard_of"] = {}
    with pytest.raises(admrl.ConfigError, match=f"{group}.never_heard_of"):
        from_dict(tree)


def test_clean_pretraining_has_a_trust_region_of_its_own_if_asked() -> None:
    quick = navigation_2d.QUICK
    parts = build_parts(quick)
    assert parts.pretraining_setup("maml").learner.name == parts.setup("maml").learner.name
    asked = dataclasses.replace(quick.learners.maml_trpo, pretrain_max_kl=0.03)
    learners = dataclasses.replace(quick.learners, maml_trpo=asked)
    parts = build_parts(dataclasses.replace(quick, learners=learners))
    wider = dataclasses.replace(asked, trpo=dataclasses.replace(asked.trpo, max_kl=0.03))
    setup = parts.pretraining_setup("maml")
    assert setup.learner.name == admrl.make_maml_trpo(parts.policy, wider).name
    assert parts.setup("maml").learner.name == admrl.make_maml_trpo(parts.policy, asked).name
    assert setup.sampling == parts.setup("maml").sampling
    # Other learners have no such setting.
    assert parts.pretraining_setup("promp").learner.name == parts.setup("promp").learner.name


def test_fresh_attackers_meet_policies_that_adapt_as_in_the_meta_test() -> None:
    parts = build_parts(navigation_2d.QUICK)
    longer = dataclasses.replace(navigation_2d.QUICK.eval, num_adapt_steps=3)
    parts = parts._replace(config=dataclasses.replace(navigation_2d.QUICK, eval=longer))
    assert parts.attack_sampling.num_adapt_steps == parts.test_sampling.num_adapt_steps == 3
