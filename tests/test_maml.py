"""Adaptation and the meta-gradient against hand-written steps and finite differences in double precision."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import (
    assert_no_leaf_is_zero,
    assert_trees_close,
    finite_differences,
    random_experience,
    random_like,
    tiny_policy,
)
from jax.flatten_util import ravel_pytree

from admrl_jax.core.networks import PolicyConfig, make_policy
from admrl_jax.learners import maml
from admrl_jax.learners.base import Learner
from admrl_jax.learners.maml_trpo import MAMLTRPOConfig, make_maml_trpo, predict_query

POLICY = tiny_policy(hidden=(3,))
LR = 0.3


def learner(*, first_order: bool = False) -> Learner:
    """MAML, through whose interface everything below adapts."""
    return make_maml_trpo(POLICY, MAMLTRPOConfig(inner_lr=LR, first_order=first_order))


def numpy_inner_loss(params, experience) -> float:
    """The inner loss of a one-hidden-layer tanh policy with a smooth floor, written out in NumPy."""
    layers = params["mean"]["params"]
    trajectory = experience.trajectory
    x = np.asarray(trajectory.perturbed_obs)
    hidden = np.tanh(x @ layers["Dense_0"]["kernel"] + layers["Dense_0"]["bias"])
    mean = hidden @ layers["Dense_1"]["kernel"] + layers["Dense_1"]["bias"]
    log_std = np.log(0.5) + np.log1p(np.exp(np.asarray(params["log_std"])))
    z = (np.asarray(trajectory.action) - mean) / np.exp(log_std)
    log_prob = -(0.5 * z**2 + log_std + 0.5 * np.log(2 * np.pi)).sum(-1)
    mask = np.asarray(trajectory.mask)
    return -(log_prob * np.asarray(experience.advantage) * mask).sum() / mask.sum()


def test_inner_loss_matches_numpy_and_every_leaf_learns(x64: None) -> None:
    params = random_like(POLICY.init, 0, dtype=jnp.float64)
    experience = random_experience(1, (3, 4), dtype=np.float64)
    loss, gradient = jax.jit(jax.value_and_grad(functools.partial(maml.inner_loss, policy=POLICY)))(
        params, experience
    )
    np.testing.assert_allclose(loss, numpy_inner_loss(params, experience), rtol=1e-10)
    assert_no_leaf_is_zero(gradient)
    # `adapt_step` moves against that gradient, here against NumPy's finite differences of it.
    flat, unravel = ravel_pytree(params)
    slope = [
        (numpy_inner_loss(unravel(flat + e), experience) - numpy_inner_loss(unravel(flat - e), experience))
        / 2e-5
        for e in 1e-5 * np.eye(flat.size)
    ]
    adapted = maml.adapt_step(params, experience, policy=POLICY, inner_lr=LR)
    np.testing.assert_allclose(ravel_pytree(adapted)[0], flat - LR * np.array(slope), atol=1e-8)


def objective(params, support, query, *, first_order: bool = False) -> jax.Array:
    """The outer surrogate with fixed old policies."""
    adapting = learner(first_order=first_order)

    def predict(params):
        return jax.vmap(lambda task: predict_query(adapting, POLICY, params, task))((support, query))

    old = jax.tree.map(lambda x: jax.lax.stop_gradient(x) + 0.1, predict(params))
    old = old._replace(mean=jnp.zeros_like(old.mean), log_std=jnp.zeros_like(old.log_std))
    return maml.surrogate_loss(query, maml.query_weights(query))(predict(params), old)


@pytest.mark.parametrize("num_adapt_steps", [1, 2])
def test_meta_gradient_matches_finite_differences(x64: None, num_adapt_steps: int) -> None:
    params = random_like(POLICY.init, 0, dtype=jnp.float64)
    support = random_experience(2, (2, num_adapt_steps, 3, 4), dtype=np.float64)
    query = random_experience(3, (2, 3, 4), dtype=np.float64)
    flat, unravel = ravel_pytree(params)

    def loss(v: jax.Array, first_order: bool = False) -> jax.Array:
        return objective(unravel(v), support, query, first_order=first_order)

    exact, first = jax.jit(lambda v: (jax.grad(loss)(v), jax.grad(lambda v: loss(v, True))(v)))(flat)
    np.testing.assert_allclose(exact, finite_differences(loss, flat), atol=1e-8)
    assert_no_leaf_is_zero(unravel(exact))

    # First order treats the inner gradients as constants: with the total inner step of each task frozen at
    # the old parameters, finite differences give it, and it is not the exact gradient.
    frozen = jax.jit(jax.vmap(lambda s: ravel_pytree(learner().adapt(params, s))[0] - flat))(support)

    def frozen_loss(v: jax.Array) -> jax.Array:
        obs = query.trajectory.perturbed_obs.reshape(2, -1, 2)
        new = jax.vmap(lambda move, o: POLICY.apply(unravel(v + move), o))(frozen, obs)
        new = new._replace(log_std=new.log_std[:, None])
        old = jax.tree.map(jnp.zeros_like, new)
        return maml.surrogate_loss(query, maml.query_weights(query))(new, old)

    np.testing.assert_allclose(first, finite_differences(frozen_loss, flat), atol=1e-8)
    assert np.abs(first - exact).max() > 1e-3


def test_adapt_uses_each_batch_in_turn() -> None:
    params = random_like(POLICY.init, 0)
    support = random_experience(4, (2, 3, 4))
    batches = [jax.tree.map(lambda x, i=i: x[i], support) for i in range(2)]
    step = jax.jit(functools.partial(maml.adapt_step, policy=POLICY, inner_lr=LR))
    adapted = jax.jit(learner().adapt)(params, support)
    assert_trees_close(adapted, step(step(params, batches[0]), batches[1]), rtol=1e-5, atol=1e-6)


def test_vmap_over_tasks_equals_a_loop() -> None:
    params = random_like(POLICY.init, 0)
    tasks = random_experience(5, (5, 1, 3, 4)), random_experience(6, (5, 3, 4))
    predict = functools.partial(predict_query, learner(), POLICY, params)
    together = jax.jit(jax.vmap(predict))(tasks)
    assert together.mean.shape == (5, 12, 2) and together.log_std.shape == (5, 1, 2)
    in_turn = jax.jit(lambda tasks: jax.lax.map(predict, tasks))(tasks)
    assert_trees_close(together, in_turn, rtol=1e-5, atol=1e-6)


def test_permuting_tasks_leaves_the_meta_gradient_unchanged(x64: None) -> None:
    params = random_like(POLICY.init, 0, dtype=jnp.float64)
    data = (
        random_experience(7, (4, 1, 3, 4), dtype=np.float64),
        random_experience(8, (4, 3, 4), dtype=np.float64),
    )
    order = np.array([2, 0, 3, 1])
    gradient = jax.jit(jax.grad(objective))
    permuted = jax.tree.map(lambda x: x[order], data)
    assert_trees_close(gradient(params, *data), gradient(params, *permuted), rtol=1e-10, atol=1e-12)


def test_query_weights_golden() -> None:
    # Two tasks of two episodes of two steps: the first has 4 valid steps, the second 1.
    query = random_experience(9, (2, 2, 2))
    mask = jnp.array([[[1.0, 1.0], [1.0, 1.0]], [[1.0, 0.0], [0.0, 0.0]]])
    query = query._replace(trajectory=query.trajectory._replace(mask=mask))
    np.testing.assert_allclose(maml.query_weights(query), [[0.125] * 4, [0.5, 0, 0, 0]], rtol=1e-6)


def test_masked_steps_do_not_change_the_losses() -> None:
    experience = random_experience(10, (3, 4))
    gone = np.asarray(experience.trajectory.mask) == 0
    assert gone.any()
    trajectory = experience.trajectory
    dirty = experience._replace(
        trajectory=trajectory._replace(
            perturbed_obs=jnp.where(gone[..., None], 5.0, trajectory.perturbed_obs),
            action=jnp.where(gone[..., None], -5.0, trajectory.action),
        ),
        advantage=jnp.where(gone, 9.0, experience.advantage),
    )
    params = random_like(POLICY.init, 0)
    loss = jax.jit(functools.partial(maml.inner_loss, policy=POLICY))
    np.testing.assert_array_equal(loss(params, experience), loss(params, dirty))


def lengths(**options: float | str) -> tuple[float, dict]:
    """Length of one step of adaptation, and the largest move of every leaf."""
    params, experience = random_like(POLICY.init, 0), random_experience(1, (3, 4))
    adapted = make_maml_trpo(POLICY, MAMLTRPOConfig(inner_lr=LR, **options)).adapt_step(  # type: ignore[arg-type]
        params, params, experience
    )
    moved = jax.tree.map(lambda a, b: a - b, adapted, params)
    return float(jnp.linalg.norm(ravel_pytree(moved)[0])), jax.tree.map(
        lambda x: float(jnp.abs(x).max()), moved
    )


def test_a_step_of_adaptation_is_no_longer_than_allowed() -> None:
    free, _ = lengths()
    np.testing.assert_allclose(lengths(max_length=free / 3)[0], free / 3, rtol=1e-5)
    np.testing.assert_allclose(lengths(max_length=2 * free)[0], free, rtol=1e-6)


def test_only_the_head_adapts_where_it_is_told_to() -> None:
    _, moved = lengths(adapts="head")
    layers = moved["mean"]["params"]
    assert set(layers["Dense_0"].values()) == {0.0}
    assert min(layers["Dense_1"].values()) > 0 and moved["log_std"] > 0
    # As far as in a step of all.
    _, free = lengths()
    assert layers["Dense_1"] == free["mean"]["params"]["Dense_1"]


def test_a_context_adapts_alone_and_the_rest_is_meta_learned() -> None:
    policy = make_policy(2, 2, PolicyConfig(hidden_sizes=(3,), context_size=2))
    params = policy.init(jax.random.key(0))
    support, query = random_experience(1, (1, 3, 4)), random_experience(2, (3, 4))
    adapts = make_maml_trpo(policy, MAMLTRPOConfig(inner_lr=LR, adapts="context"))
    adapted = adapts.adapt(params, support)
    moved = jax.tree.map(lambda a, b: float(jnp.abs(a - b).min()), adapted, params)
    assert moved["context"] > 0 and sum(jax.tree.leaves(moved)) == moved["context"]

    def objective(params):
        return jnp.sum(predict_query(adapts, policy, params, (support, query)).mean)

    # Through the adapted context, the weights that read it have a gradient; at first they have no other.
    reads = jax.grad(objective)(params)["mean"]["params"]["Dense_0"]["kernel"][-2:]
    assert float(jnp.abs(reads).min()) > 0


def test_a_limited_step_has_a_gradient(x64: None) -> None:
    params = random_like(POLICY.init, 0, dtype=jnp.float64)
    experience = random_experience(1, (3, 4), dtype=np.float64)
    flat, unravel = ravel_pytree(params)
    direction = random_like(POLICY.init, 3, dtype=jnp.float64)
    along = ravel_pytree(direction)[0]

    def end(flat: jax.Array) -> jax.Array:
        step = functools.partial(maml.adapt_step, policy=POLICY, inner_lr=LR, max_length=0.05)
        return jnp.dot(ravel_pytree(step(unravel(flat), experience))[0], along)

    slope = finite_differences(end, flat)
    np.testing.assert_allclose(jax.grad(end)(flat), slope, rtol=1e-5, atol=1e-7)
