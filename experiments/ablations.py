"""Ablations of adMRL, one thing changed at a time: `python -m experiments.ablations --env navigation_2d`.

MAML pre-trains and goes on clean; every variant goes on from its pre-training, unless it changes that. Then a
suite attacks all of them, and `report.md` compares them with MAML, paired by seed. Stopped, the same command
goes on.
"""

import sys

from admrl_jax.commands.ablations import Ablation, Ablations, ablations_main
from admrl_jax.config import Config
from experiments import halfcheetah_dir, navigation_2d

PRESETS = {"navigation_2d": navigation_2d.PRESETS, "halfcheetah_dir": halfcheetah_dir.PRESETS}
OBS_SIZES = {"navigation_2d": 2, "halfcheetah_dir": 20}
STRONGER = {"navigation_2d": (0.1, 0.5), "halfcheetah_dir": (0.5, 0.8)}
"""Radii to train at beside the paper's 0.2."""
BOUND = 0.2
ADGAN = "defences.adgan"


def ablations_of(env: str, preset: Config) -> Ablations:
    """The variants on an environment; the first is MAML.

    Args:
        env: its name.
        preset: its settings.
    """
    schedule = preset.schedule
    steps = schedule.pretrain_steps + schedule.finetune_steps
    # A Gaussian's mean square norm is its variance times the dimensions.
    noise = round(BOUND / OBS_SIZES[env] ** 0.5, 4)
    return {
        "clean": Ablation("MAML, never attacked", "maml", pretrains=True),
        "paper": Ablation("adMRL as in the paper", "admrl"),
        "no_gan_loss": Ablation("weight of the GAN loss 0", "admrl", {f"{ADGAN}.adversary.gan_weight": 0.0}),
        "no_hinge": Ablation("weight of the hinge 0", "admrl", {f"{ADGAN}.adversary.hinge_weight": 0.0}),
        "no_warmup": Ablation("the generator is not warmed up", "admrl", {f"{ADGAN}.warmup_steps": 0}),
        "support_only": Ablation("only support data attacked", "admrl", {f"{ADGAN}.side": "support"}),
        "query_only": Ablation("only query data attacked", "admrl", {f"{ADGAN}.side": "query"}),
        "equal_noise": Ablation(
            f"Gaussian noise of equal mean square size ({noise:g} per dimension)",
            "random",
            {"defences.noise.radius": noise},
        ),
        "normalised": Ablation("radius in standard deviations", "admrl", {"units": "normalised"}),
        **{
            f"radius_{radius:g}": Ablation(
                f"trained at radius {radius:g}", "admrl", {f"{ADGAN}.perturbation_bound": radius}
            )
            for radius in STRONGER[env]
        },
        "from_the_start": Ablation(
            "attacked from the first steps on",
            "admrl",
            {
                "schedule.pretrain_steps": schedule.chunk_steps,
                "schedule.finetune_steps": steps - schedule.chunk_steps,
            },
            pretrains=True,
        ),
    }


if __name__ == "__main__":
    sys.exit(ablations_main("experiments.ablations", __doc__ or "", PRESETS, ablations_of))
