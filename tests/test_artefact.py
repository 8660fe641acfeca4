"""The artefact of a run: written, read by NumPy alone, loaded, and refused where it is damaged."""

import dataclasses
import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest

import admrl_jax as admrl
from admrl_jax.config import to_dict
from admrl_jax.runs.artefact import POLICIES, load_attacker, load_policy, read_policies, save_policies
from tests.helpers import assert_trees_equal

RUNS = sorted(path.parent for path in (Path(__file__).parents[1] / "results").rglob(POLICIES))
NAVIGATION = Path(__file__).parents[1] / "results" / "navigation_2d"


@pytest.mark.parametrize("run", RUNS, ids=lambda path: path.name)
def test_committed_artefacts_are_whole(run: Path):
    trained = load_policy(run, "pretrain")
    leaves = jax.tree.leaves(trained.params)
    assert {x.shape[0] for x in leaves} == {len(trained.config.seeds)}
    assert all(np.all(np.isfinite(x)) for x in leaves)


def test_what_is_saved_is_loaded(tmp_path: Path):
    trained = load_policy(NAVIGATION, "admrl")
    save_policies(
        tmp_path / POLICIES, trained.config, {"admrl": trained.params}, trained.inputs, trained.config.seeds
    )
    again = load_policy(tmp_path, "admrl")
    assert again.config == trained.config
    assert_trees_equal(again.params, trained.params)
    one = load_policy(tmp_path / POLICIES, "admrl", seed=1)
    assert_trees_equal(one.params, jax.tree.map(lambda x: x[1], trained.params))
    assert one.inputs.scale.shape == (2,)
    with np.load(tmp_path / POLICIES, allow_pickle=False) as saved:
        kernel = saved["policy/admrl/mean/params/Dense_0/kernel"]
    np.testing.assert_array_equal(kernel, trained.params["mean"]["params"]["Dense_0"]["kernel"])


def test_a_loaded_policy_acts():
    trained = load_policy(NAVIGATION, "maml", seed=0)
    dist = trained.policy.apply(trained.learner.policy_params(trained.params), np.zeros(2))
    assert dist.mean.shape == (2,) and float(dist.log_std.min()) >= np.log(0.5) - 1e-6


def test_a_trained_attack_is_loaded():
    trained = load_policy(NAVIGATION, "maml", seed=0)
    params = load_attacker(NAVIGATION, trained, "adgan", "0.2", seed=2)
    attack = admrl.make_attack("adgan", admrl.Victim(trained.policy, 2, 2), trained.config.attacks.adgan)
    budget = admrl.Budget(0.2)
    seen, _ = attack.perturb(params, (), jax.random.key(0), np.ones(2, np.float32), admrl.Scene(()), budget)
    assert 0 < np.linalg.norm(seen - 1) <= 0.2 + 1e-6
    with pytest.raises(admrl.ArtefactError, match=r"accepted: admrl/adgan/trained, maml/adgan/0\.2"):
        load_attacker(NAVIGATION, trained, "adgan", "0.3")
    with pytest.raises(admrl.ArtefactError, match="there is no"):
        load_attacker(NAVIGATION / "figures", trained, "adgan", "0.2")
    with pytest.raises(admrl.ConfigError, match="seed: 99 is not accepted; accepted: 0, 1, "):
        load_attacker(NAVIGATION, trained, "adgan", "0.2", seed=99)


def test_the_artefact_of_a_toy_run_is_its_config_and_policies(finished: Path):
    config = json.loads((finished / "config.json").read_text())
    params = {}
    for method in ("pretrain", *config["methods"]):
        trained = load_policy(finished, method)
        assert to_dict(trained.config) == config
        params[method] = trained.params["log_std"].tobytes()
    assert len(set(params.values())) == len(params), "every method went its own way"
    trained = load_policy(finished, "maml", seed=0)
    own, strong = (
        load_attacker(finished, trained, "adgan", label, victim="admrl", seed=0)
        for label in ("trained", "0.2")
    )
    assert jax.tree.structure(own) == jax.tree.structure(strong)
    with pytest.raises(admrl.ArtefactError, match=r"^attacker: maml/adgan/trained is not in "):
        load_attacker(finished, trained, "adgan", "trained")


def test_a_policy_of_another_size_is_refused(tmp_path: Path):
    trained = load_policy(NAVIGATION, "maml")
    smaller = dataclasses.replace(
        trained.config, policy=dataclasses.replace(trained.config.policy, hidden_sizes=(8,))
    )
    save_policies(
        tmp_path / POLICIES, smaller, {"maml": trained.params}, trained.inputs, trained.config.seeds
    )
    with pytest.raises(admrl.ArtefactError) as error:
        load_policy(tmp_path, "maml")
    message = str(error.value)
    assert message.startswith("policy/maml/mean/params/Dense_0/") and "\n" not in message
    assert "(2, 8)" in message or "(8,)" in message


def test_refusals_name_what_is_there(tmp_path: Path):
    with pytest.raises(admrl.ArtefactError, match="accepted: admrl, fgsm, maml, pretrain, random"):
        load_policy(NAVIGATION, "promp")
    with pytest.raises(admrl.ArtefactError, match="accepted: 0, 1, 2"):
        load_policy(NAVIGATION, seed=17)
    with pytest.raises(admrl.ArtefactError, match="there is no"):
        load_policy(tmp_path)


def test_damage_is_noticed(tmp_path: Path):
    content = bytearray((NAVIGATION / POLICIES).read_bytes())
    content[len(content) // 2] ^= 1
    (tmp_path / POLICIES).write_bytes(content)
    with pytest.raises(admrl.ArtefactError, match=r"damaged|not as it was written"):
        read_policies(tmp_path)
    shutil.copy(NAVIGATION / POLICIES, tmp_path / POLICIES)
    arrays = dict(np.load(tmp_path / POLICIES))
    arrays["seeds"] = arrays["seeds"] + 1
    np.savez_compressed(tmp_path / POLICIES, **arrays)
    with pytest.raises(admrl.ArtefactError, match="not as it was written"):
        read_policies(tmp_path)
