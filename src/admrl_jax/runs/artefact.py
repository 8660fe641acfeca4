"""`policies.npz`, the artefact of a run: every method's meta-parameters, self-contained.

NumPy alone reads it: `policy/<method>/<leaf>` `[S, ...]` per seed, `normaliser/centre` and
`normaliser/scale` `[S, O]` of clean observations, `seeds` `[S]`, `config` (the run's settings in JSON, among
them the engine that trained), `jax` (settings of JAX that decide numbers), and `sha256` of all of that.
`attackers.npz` beside it holds `attacker/<victim>/<attack>/<label>/<leaf>`.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from admrl_jax.attacks.registry import make_attack
from admrl_jax.attacks.threat import Units
from admrl_jax.config import Config, from_dict, to_dict
from admrl_jax.core.networks import Policy, make_policy
from admrl_jax.core.settings import ConfigError, refusal
from admrl_jax.core.types import Params
from admrl_jax.envs.base import Env
from admrl_jax.envs.registry import make_env
from admrl_jax.learners.base import Learner
from admrl_jax.learners.registry import LEARNERS
from admrl_jax.methods import METHODS
from admrl_jax.runs.files import DamagedFileError, read_arrays, write_arrays
from admrl_jax.runs.numerics import settings_of_jax
from admrl_jax.victims import make_victim

POLICIES = "policies.npz"
ATTACKERS = "attackers.npz"
KEPT_ATTACKERS = "kept_attackers.npz"
"""`attackers.npz` of the run that this one goes on from; those are not trained again."""
TRAINED = "trained"
"""Label of the opponent that a method was trained with."""


class ArtefactError(ValueError):
    """An artefact that is not there, damaged, or without what was asked for."""


class Trained(NamedTuple):
    """A policy out of a run.

    Attributes:
        config: the run's settings.
        env: its environment.
        policy: the Gaussian policy.
        learner: adapts it.
        params: meta-parameters, leading axis the run's seeds, or none where one seed was asked for.
        inputs: units of clean observations, likewise.
        learner_name: under which the learner is registered.
    """

    config: Config
    env: Env
    policy: Policy
    learner: Learner
    params: Params
    inputs: Units
    learner_name: str = ""


def flatten_params(params: Params, prefix: str = "") -> dict[str, np.ndarray]:
    """Leaves of nested dictionaries and tuples by their path, joined by `/`."""
    flat = jax.tree_util.tree_flatten_with_path(params)[0]

    def name(entry: Any) -> str:
        return str(next(getattr(entry, k) for k in ("key", "name", "idx") if hasattr(entry, k)))

    return {prefix + "/".join(map(name, path)): np.asarray(leaf) for path, leaf in flat}


def unflatten_params(arrays: Mapping[str, np.ndarray], prefix: str, like: Params) -> Params:
    """The inverse of `flatten_params`, with the structure of `like`.

    Raises:
        ArtefactError: leaves are missing or of another shape beyond their leading axes.
    """
    wanted = flatten_params(like, prefix)
    for name, leaf in wanted.items():
        shape = arrays[name].shape if name in arrays else None
        if shape is None or shape[len(shape) - leaf.ndim :] != leaf.shape:
            raise ArtefactError(f"{name}: wanted an array [..., {leaf.shape}], found {shape}")
    structure = jax.tree.structure(like)
    return jax.tree.unflatten(structure, [jnp.asarray(arrays[name]) for name in wanted])


def save_policies(
    path: Path, config: Config, policies: Mapping[str, Params], inputs: Units, seeds: tuple[int, ...]
) -> None:
    """Writes `policies.npz`.

    Args:
        path: of the file.
        config: the run's settings.
        policies: meta-parameters `[S, ...]` by method.
        inputs: units of clean observations, `[S, O]`.
        seeds: of the leading axis.
    """
    arrays: dict[str, np.ndarray] = {}
    for method, params in policies.items():
        arrays |= flatten_params(params, f"policy/{method}/")
    arrays |= {
        "normaliser/centre": np.asarray(inputs.centre),
        "normaliser/scale": np.asarray(inputs.scale),
        "seeds": np.asarray(seeds, np.int32),
        "config": np.array(json.dumps(to_dict(config))),
        "jax": np.array(json.dumps(settings_of_jax())),
    }
    write_arrays(path, **arrays, sha256=np.array(digest(arrays)))


def save_attackers(path: Path, attackers: Mapping[tuple[str, str, str], Params]) -> None:
    """Writes `attackers.npz`: parameters `[S, ...]` by victim, attack and label, a strength or `TRAINED`."""
    arrays: dict[str, np.ndarray] = {}
    for (victim, attack, label), params in attackers.items():
        arrays |= flatten_params(params, f"attacker/{victim}/{attack}/{label}/")
    write_arrays(path, **arrays)


def read_attackers(path: Path) -> dict[str, np.ndarray]:
    """The arrays of `attackers.npz`.

    Raises:
        ArtefactError: it is damaged.
    """
    try:
        return read_arrays(path)
    except DamagedFileError as error:
        raise ArtefactError(f"attacker: {path} is damaged") from error


def read_kept_attackers(directory: Path, victim: str, attack: str, like: Params) -> dict[str, Params]:
    """Attackers that were trained before this run was begun.

    Args:
        directory: of the run.
        victim: method that they attack.
        attack: its name.
        like: parameters of one.

    Returns:
        Parameters `[S, ...]` by label; empty where there are none.

    Raises:
        ArtefactError: the file is damaged.
    """
    path = directory / KEPT_ATTACKERS
    arrays = read_attackers(path) if path.is_file() else {}
    prefix = f"attacker/{victim}/{attack}/"
    labels = {name.removeprefix(prefix).split("/")[0] for name in arrays if name.startswith(prefix)}
    return {label: unflatten_params(arrays, f"{prefix}{label}/", like) for label in labels - {TRAINED}}


def digest(arrays: Mapping[str, np.ndarray]) -> str:
    """SHA-256 of arrays and their names."""
    digest = hashlib.sha256()
    for name in sorted(arrays):
        value = np.ascontiguousarray(arrays[name])
        digest.update(f"{name} {value.dtype.str} {value.shape}".encode())
        digest.update(value.tobytes())
    return digest.hexdigest()


def read_policies(path: str | Path) -> dict[str, np.ndarray]:
    """The checked arrays of an artefact.

    Args:
        path: `policies.npz`, or the run directory that holds it.

    Raises:
        ArtefactError: it is not there, or not as it was written.
    """
    path = Path(path)
    path = path / POLICIES if path.is_dir() else path
    if not path.is_file():
        raise ArtefactError(f"policy: there is no {path}; a run writes it once it is fine-tuned")
    try:
        arrays = read_arrays(path, "config", "sha256", "seeds", "normaliser/centre", "normaliser/scale")
    except DamagedFileError as error:
        raise ArtefactError(f"policy: {path} is damaged, or no artefact of this project") from error
    said = str(arrays.pop("sha256"))
    if said != digest(arrays):
        raise ArtefactError(f"policy: {path} is not as it was written")
    return arrays


def check_known(name: str, values: Iterable[Any], accepted: Iterable[Any]) -> None:
    """Refuses what is not among the names of an artefact.

    Raises:
        ConfigError: naming the first value that is not, and what is accepted.
    """
    accepted = tuple(accepted)
    for value in values:
        if value not in accepted:
            raise refusal(name, value, ", ".join(map(str, accepted)))


def load_policy(
    path: str | Path, method: str = "maml", *, seed: int | None = None, simulator: str = ""
) -> Trained:
    """A trained policy, ready to adapt, attack and evaluate.

    Args:
        path: `policies.npz`, or the run directory that holds it.
        method: one of the run's, or `pretrain`.
        seed: one of the run's; all of them, as a leading axis, if None.
        simulator: another engine than the run's.

    Raises:
        ArtefactError: there is no such artefact, method or seed, or the artefact is damaged.
    """
    arrays = read_policies(path)
    try:
        config = from_dict(json.loads(str(arrays["config"])))
    except (ConfigError, ValueError) as error:
        raise ArtefactError(f"policy: {path} is of another version of the code: {error}") from error
    methods = sorted({name.split("/")[1] for name in arrays if name.startswith("policy/")})
    if method not in methods:
        raise ArtefactError(f"method: {method!r} is not in {path}; accepted: {', '.join(methods)}")
    seeds = [int(x) for x in arrays["seeds"]]
    if seed is not None and seed not in seeds:
        raise ArtefactError(f"seed: {seed} is not in {path}; accepted: {', '.join(map(str, seeds))}")
    env = make_env(config.env, simulator=simulator or config.simulator, num_threads=config.num_threads)
    policy = make_policy(env.obs_size, env.action_size, config.policy)
    known = METHODS.get(method) or METHODS[config.methods[0]]
    spec = LEARNERS[known.learner]
    learner = spec.make(getattr(config.learners, spec.name), policy)
    like = jax.eval_shape(learner.init, jax.random.key(0)).meta_params
    like = jax.tree.map(lambda x: np.empty(x.shape, x.dtype), like)
    params = unflatten_params(arrays, f"policy/{method}/", like)
    inputs = Units(*(jnp.asarray(arrays[f"normaliser/{name}"]) for name in Units._fields))
    if seed is not None:
        params, inputs = jax.tree.map(lambda x: x[seeds.index(seed)], (params, inputs))
    return Trained(config, env, policy, learner, params, inputs, spec.name)


def load_attacker(
    path: str | Path,
    trained: Trained,
    attack: str,
    label: str,
    *,
    victim: str = "maml",
    seed: int | None = None,
) -> Params:
    """Parameters of an attack that a run has trained, to use against `trained.policy` or one of its size.

    Args:
        path: run directory that holds `attackers.npz`.
        trained: a policy of that run, see `load_policy`.
        attack: registered name of the attack.
        label: a strength, as in `0.2`, or `trained` for the opponent that a method was trained with.
        victim: the method that it was trained against.
        seed: one of the run's; all of them, as a leading axis, if None.

    Raises:
        ArtefactError: there is no such attacker, or the file is damaged.
        ConfigError: the run does not have the seed.
    """
    path = Path(path)
    path = path / ATTACKERS if path.is_dir() else path
    if not path.is_file():
        raise ArtefactError(f"attacker: there is no {path}; a run writes it once attackers are trained")
    seeds = trained.config.seeds
    if seed is not None:
        check_known("seed", (seed,), seeds)
    arrays = read_attackers(path)
    prefix = f"attacker/{victim}/{attack}/{label}/"
    if not any(name.startswith(prefix) for name in arrays):
        found = sorted({"/".join(name.split("/")[1:4]) for name in arrays})
        raise ArtefactError(f"attacker: {prefix[9:-1]} is not in {path}; accepted: {', '.join(found)}")
    env, config = trained.env, getattr(trained.config.attacks, attack)
    built = make_attack(attack, make_victim(env, trained.policy, trained.learner), config)
    like = empty_params(built.init, env.obs_size)
    params = unflatten_params(arrays, prefix, like)
    if seed is not None:
        params = jax.tree.map(lambda x: x[seeds.index(seed)], params)
    return params


def empty_params(init: Callable[[jax.Array], Params], obs_size: int) -> Params:
    """Empty arrays like an attack's fresh parameters, for `unflatten_params`.

    Units that are one number for all dimensions have one for each.

    Args:
        init: of the attack.
        obs_size: length of an observation.
    """
    shapes = jax.eval_shape(init, jax.random.key(0))
    empty = jax.tree.map(lambda x: np.empty(x.shape, x.dtype), shapes)
    return jax.tree.map(
        lambda x: Units._make((np.empty(obs_size),) * 2) if isinstance(x, Units) else x,
        empty,
        is_leaf=lambda x: isinstance(x, Units),
    )
