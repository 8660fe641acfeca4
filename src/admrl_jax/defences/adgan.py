"""Training against adGAN, which is trained along with the policy (paper, Algorithm 1)."""

from dataclasses import dataclass, field
from typing import Annotated

import jax

from admrl_jax.attacks.base import Victim
from admrl_jax.attacks.learned.adgan import SPEC as ATTACK
from admrl_jax.attacks.learned.adgan import AdGANConfig, make_adgan_trainer
from admrl_jax.attacks.learned.trainer import AttackTrainer
from admrl_jax.attacks.threat import SIDES, Budget, Units
from admrl_jax.core.settings import POSITIVE, SHARE, STEPS_OR_ZERO, one_of
from admrl_jax.core.task_axis import TaskAxis
from admrl_jax.core.types import MetaBatch, Metrics, Params
from admrl_jax.defences.base import Defence, DefenceSpec, State, expose_all


@dataclass(frozen=True, kw_only=True)
class AdGANTrainingConfig:
    """The adversary that training faces."""

    perturbation_bound: Annotated[float, POSITIVE] = 0.2
    """c in Eq. 11: L2 bound of a perturbation."""
    warmup_steps: Annotated[int, STEPS_OR_ZERO] = 50
    """Updates of adGAN on the frozen policy, before the policy trains against it."""
    ramp_steps: Annotated[int, STEPS_OR_ZERO] = 0
    """Steps over which the bound grows; 0 starts with all of it."""
    task_share: Annotated[float, SHARE] = 1.0
    """Share of a meta-batch's tasks that are attacked."""
    side: Annotated[str, one_of(*SIDES)] = "both"
    """Data under attack: both, query (after adaptation) or support (before it)."""
    adversary: AdGANConfig = field(default_factory=lambda: AdGANConfig(num_epochs=2))
    """The adversary's networks and losses."""


def train_against(
    trainer: AttackTrainer,
    *,
    radius: float,
    attack_name: str,
    warmup_steps: int = 0,
    ramp_steps: int = 0,
    task_share: float = 1.0,
    side: str = "both",
) -> Defence:
    """Training against an attack that learns in step with the policy.

    Args:
        trainer: of the attack.
        radius: of its budget.
        attack_name: under which the attack is registered; empty if it is not.
        warmup_steps: updates of the attack on the frozen policy, before the policy trains against it.
        ramp_steps: steps over which the radius grows; 0 starts with all of it.
        task_share: share of the tasks that are attacked.
        side: data under attack, one of `SIDES`.
    """

    def update(
        state: State,
        key: jax.Array,
        meta_params: Params,
        batch: MetaBatch,
        units: Units,
        axis: TaskAxis = TaskAxis(),
    ) -> tuple[State, Metrics]:
        return trainer.update(state, key, meta_params, batch, Budget(radius, units), axis)

    return Defence(
        name=f"{trainer.name} {radius} {ramp_steps} {task_share} {side}",
        init=trainer.init,
        expose=expose_all(
            trainer.attack,
            trainer.params,
            radius=radius,
            ramp_steps=ramp_steps,
            task_share=task_share,
            side=side,
        ),
        update=update,
        warmup_steps=warmup_steps,
        attack_params=trainer.params,
        trained_attack=attack_name,
        check_batch=trainer.check_batch,
    )


def adgan_defence(config: AdGANTrainingConfig, victim: Victim) -> Defence:
    """Training against adGAN."""
    return train_against(
        make_adgan_trainer(config.adversary, victim),
        radius=config.perturbation_bound,
        attack_name=ATTACK.name,
        warmup_steps=config.warmup_steps,
        ramp_steps=config.ramp_steps,
        task_share=config.task_share,
        side=config.side,
    )


SPEC = DefenceSpec("adgan", "adGAN", AdGANTrainingConfig, adgan_defence)
