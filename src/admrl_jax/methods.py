"""Methods: a learner with a defence. A new one is a line here."""

from typing import NamedTuple


class Method(NamedTuple):
    """A training method.

    Attributes:
        label: name for people.
        learner: registered name of its learner.
        defence: registered name of its defence.
        colour: in figures.
        paper_row: its row in the paper's Table I; empty where there is none.
        paper_clean: its clean return in the paper, by environment.
        paper_attacked: its return under adGAN in the paper, by environment.
    """

    label: str
    learner: str
    defence: str
    colour: str
    paper_row: str = ""
    paper_clean: dict[str, float] = {}  # noqa: RUF012 - nobody changes it
    paper_attacked: dict[str, float] = {}  # noqa: RUF012


# The paper's numbers are printed in arXiv:2104.13302: clean ones in section V-D ("Normal case"), those under
# adGAN in Table I. Neither states seeds or spread, and Table I no strength either.
METHODS: dict[str, Method] = {
    "maml": Method(
        "MAML",
        "maml_trpo",
        "none",
        "#0072B2",
        "MAML 'Baseline'",
        {"navigation_2d": -12.18},
        {
            "navigation_2d": -50.2,
            "halfcheetah_dir": 50.3,
            "halfcheetah_vel": -30.8,
            "reacher": -561.0,
            "ant_vel": -18.7,
        },
    ),
    "random": Method(
        "Random",
        "maml_trpo",
        "noise",
        "#E69F00",
        "Random",
        {"navigation_2d": -13.37},
        {
            "navigation_2d": -47.8,
            "halfcheetah_dir": 24.3,
            "halfcheetah_vel": -30.9,
            "reacher": -516.0,
            "ant_vel": -18.4,
        },
    ),
    "fgsm": Method(
        "FGSM",
        "maml_trpo",
        "fgsm",
        "#CC3D6B",
        "FGSM",
        {"navigation_2d": -21.15},
        {
            "navigation_2d": -54.1,
            "halfcheetah_dir": 0.03,
            "halfcheetah_vel": -31.4,
            "reacher": -572.0,
            "ant_vel": -22.1,
        },
    ),
    "admrl": Method(
        "adMRL",
        "maml_trpo",
        "adgan",
        "#009E73",
        "adMRL 'GAN'",
        {"navigation_2d": -12.50},
        {
            "navigation_2d": -47.7,
            "halfcheetah_dir": 53.4,
            "halfcheetah_vel": -30.2,
            "reacher": -483.0,
            "ant_vel": -17.8,
        },
    ),
    "promp": Method("ProMP", "promp", "none", "#7B4FA3"),
    "population": Method("MAML, population", "maml_trpo", "population", "#882255"),
    "smooth": Method("MAML, smooth", "maml_trpo", "smooth", "#56B4E9"),
}

PAPER_METHODS = tuple(name for name, method in METHODS.items() if method.paper_row)
"""The paper's four, in the order of its text."""
