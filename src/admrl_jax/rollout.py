"""Collects episodes: one by `lax.scan`, many by `vmap`."""

import functools

import chex
import jax
import jax.numpy as jnp

from admrl_jax import gaussian
from admrl_jax.attacks import Attack, Budget
from admrl_jax.envs.base import Env
from admrl_jax.networks import Policy
from admrl_jax.types import Params, Task, Trajectory


def rollout(
    policy_params: Params,
    attack_params: Params,
    key: jax.Array,
    task: Task,
    *,
    env: Env,
    policy: Policy,
    attack: Attack,
    budget: Budget,
    horizon: int | None = None,
) -> Trajectory:
    """Runs one episode under attack.

    The policy acts on the perturbed observation; dynamics and reward use the true state. Steps
    after the episode's end are masked, carry no reward and leave the state where it was. A simulator,
    policy or attack that returns something not finite ends the episode there; nothing that is not
    finite is recorded, because a mask of zero does not make NaN vanish.

    Args:
        policy_params: parameters of `policy`.
        attack_params: parameters of `attack`.
        key: randomness of reset, actions and attack.
        task: one task of `env`.
        env: task family.
        policy: Gaussian policy.
        attack: observation attack.
        budget: bound on the perturbation.
        horizon: steps, `env.horizon` by default.

    Returns:
        A trajectory with fields `[H, ...]`.
    """
    horizon = env.horizon if horizon is None else horizon
    key_reset, key_action, key_attack = jax.random.split(key, 3)
    state, obs = env.reset(key_reset, task)
    obs = jnp.where(jnp.isfinite(obs), obs, 0.0)
    noise = jax.random.normal(key_action, (horizon, env.action_size), obs.dtype)
    attack_keys = jax.random.split(key_attack, horizon)

    def step(carry, inputs):
        state, obs, alive = carry
        noise_t, attack_key = inputs
        perturbed = attack.perturb(attack_params, attack_key, obs, policy_params, budget)
        action = gaussian.from_noise(policy.apply(policy_params, perturbed), noise_t)
        new_state, new = env.step(state, action, task)
        clean_input = jnp.all(jnp.isfinite(perturbed)) & jnp.all(jnp.isfinite(action))
        finite = clean_input & jnp.all(jnp.isfinite(new.obs)) & jnp.isfinite(new.reward)
        valid = alive & finite
        perturbed = jnp.where(clean_input, perturbed, obs)
        action = jnp.where(clean_input, action, 0.0)
        reward = jnp.where(valid, new.reward, 0.0)
        mask, diverged = (x.astype(obs.dtype) for x in (valid, alive & ~finite))
        record = Trajectory(obs, perturbed, action, reward, mask, diverged)
        state, obs = jax.tree.map(lambda a, b: jnp.where(valid, a, b), (new_state, new.obs), (state, obs))
        return (state, obs, valid & ~new.terminated), record

    _, trajectory = jax.lax.scan(step, (state, obs, jnp.array(True)), (noise, attack_keys))
    return trajectory


def collect(
    policy_params: Params,
    attack_params: Params,
    key: jax.Array,
    task: Task,
    *,
    num_trajectories: int,
    env: Env,
    policy: Policy,
    attack: Attack,
    budget: Budget,
    horizon: int | None = None,
) -> Trajectory:
    """Runs `num_trajectories` independent episodes of one task: fields `[K, H, ...]`."""
    run = functools.partial(rollout, env=env, policy=policy, attack=attack, budget=budget, horizon=horizon)
    keys = jax.random.split(key, num_trajectories)
    return jax.vmap(run, in_axes=(None, None, 0, None))(policy_params, attack_params, keys, task)


def episode_returns(trajectory: Trajectory) -> jax.Array:
    """Undiscounted return `[...]` of each episode `[..., H]`."""
    chex.assert_equal_shape([trajectory.reward, trajectory.mask])
    return jnp.sum(trajectory.reward, axis=-1)
