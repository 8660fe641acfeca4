"""The examples of README and docs run as printed; their flags are accepted and do what the tables say."""

import importlib
import re
from fnmatch import fnmatch
from pathlib import Path

import pytest

from admrl_jax.config import Config, flatten
from admrl_jax.env_config import ENV_CONFIGS
from experiments.arguments import parse

ROOT = Path(__file__).parent.parent


def definitions() -> list[tuple[str, str]]:
    """`(environment, flags)` of every row of the table "Whose definition is it?", patterns expanded."""
    text = (ROOT / "docs" / "environments.md").read_text()
    section = text.split("## Whose definition is it?\n")[1].split("\n## ")[0]
    table = [line for line in section.splitlines() if line.startswith("|")]
    assert re.match(r"\| environment \| flags \| definition \|", table[0])
    pairs = []
    for line in table[2:]:
        environments, flags, *_ = (cell.strip() for cell in line.strip("|").split("|"))
        assert flags == "none" or re.fullmatch(r"`--[^`]+`", flags), line
        patterns = re.findall(r"`([^`]+)`", environments)
        assert patterns and environments == ", ".join(f"`{pattern}`" for pattern in patterns), line
        for pattern in patterns:
            names = [name for name in ENV_CONFIGS if fnmatch(name, pattern)]
            assert names, f"{pattern} names no environment"
            pairs += [(name, "" if flags == "none" else flags.strip("`")) for name in names]
    return pairs


DEFINITIONS = definitions()


def run_examples(document: Path, count: int) -> dict:
    """Runs the Python blocks of a document one after the other and returns their names."""
    blocks = re.findall(r"```python\n(.*?)```", document.read_text(), re.S)
    assert len(blocks) == count
    namespace: dict = {}
    for block in blocks:
        exec(compile(block, str(document), "exec"), namespace)
    return namespace


def test_examples_of_the_readme() -> None:
    namespace = run_examples(ROOT / "README.md", 3)
    post = namespace["metrics"]["train/post_return"]
    assert post[-1] > post[0], "ten steps of MAML should improve the return after adaptation"
    attacked = namespace["result"].returns
    assert attacked.shape == (8, 2, 8)
    assert namespace["result"].budget_excess == 0
    moved = namespace["episode"].perturbed_obs - namespace["episode"].obs
    assert abs(moved - 0.3).max() < 1e-6


def test_examples_of_the_adapters() -> None:
    namespace = run_examples(ROOT / "docs" / "environments.md", 2)
    assert namespace["env"].obs_size == 10, "swimmer: 5 positions and 5 velocities"
    assert abs(namespace["metrics"]["train/post_return"]) < 100
    assert namespace["metrics"]["train/accepted"] in (0, 1)


@pytest.mark.parametrize(("environment", "flags"), DEFINITIONS, ids=lambda value: value or "none")
def test_flags_of_the_definitions_are_accepted(environment: str, flags: str) -> None:
    presets: dict[str, Config] = importlib.import_module(f"experiments.{environment}").PRESETS
    default, config = presets["paper"], parse("", "", presets, flags.split()).config
    assert type(config.env) is ENV_CONFIGS[environment]
    before, after = flatten(default), flatten(config)
    changed = {name for name in after if after[name] != before[name]}
    named = re.findall(r"--(?:env\.no-|env\.)([a-z-]+)", flags)
    assert len(named) == flags.count("--")
    assert changed == {"env." + name.replace("-", "_") for name in named}, "a flag that changes nothing"


def test_no_definition_stands_twice() -> None:
    assert len(set(DEFINITIONS)) == len(DEFINITIONS)
    assert {environment for environment, _ in DEFINITIONS} == set(ENV_CONFIGS)
