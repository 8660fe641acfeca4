"""Settings of adGAN."""

from dataclasses import dataclass
from typing import Annotated

from admrl_jax.core.settings import COUNT, FRACTION, NOT_NEGATIVE, REPEATS, SIZES, STEP_SIZE, one_of

GAN_LOSSES = ("lsgan", "bce", "bce_paper")


@dataclass(frozen=True, kw_only=True)
class AdGANConfig:
    """adGAN: generator, discriminator and their losses (Eq. 9 to 12)."""

    gan_weight: Annotated[float, NOT_NEGATIVE] = 0.8
    """Weight of the generator's GAN loss (alpha in Eq. 12)."""
    hinge_weight: Annotated[float, NOT_NEGATIVE] = 0.2
    """Weight of the hinge loss (beta in Eq. 12)."""
    gan_loss: Annotated[str, one_of(*GAN_LOSSES)] = "lsgan"
    """lsgan, bce (non-saturating) or bce_paper (Eq. 9 to the letter, saturating)."""
    hidden_sizes: Annotated[tuple[int, ...], SIZES] = (64, 64)
    """Layers of generator and discriminator."""
    standardise: bool = True
    """Both networks read observations in standard deviations of clean rollouts, else as they are."""
    generator_lr: Annotated[float, STEP_SIZE] = 1e-3
    """Step size of the generator's Adam."""
    discriminator_lr: Annotated[float, STEP_SIZE] = 1e-3
    """Step size of the discriminator's Adam."""
    num_epochs: Annotated[int, REPEATS] = 4
    """Passes over a meta-batch per update."""
    num_minibatches: Annotated[int, COUNT] = 8
    """Generator and discriminator steps per pass."""
    clip_ratio: Annotated[float, FRACTION] = 0.5
    """Clip of the probability ratio in the adversarial loss, which lets one meta-batch serve several
    generator steps."""
