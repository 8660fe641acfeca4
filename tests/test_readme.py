"""The examples of README and docs run as printed; their flags are accepted and do what the tables say."""

import importlib
import re
from fnmatch import fnmatch
from pathlib import Path

import pytest

from admrl_jax.commands.arguments import parse
from admrl_jax.config import Config, flatten
from admrl_jax.envs.base import BuiltInConfig
from admrl_jax.envs.registry import ENVS

ROOT = Path(__file__).parent.parent
BUILT_IN = {name for name, spec in ENVS.items() if issubclass(spec.config, BuiltInConfig)}


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
            names = [name for name in sorted(BUILT_IN) if fnmatch(name, pattern)]
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


def test_examples_of_the_readme(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.chdir(ROOT)
    namespace = run_examples(ROOT / "README.md", 2)
    printed = re.findall(r"-\d+\.\d+", capsys.readouterr().out)
    training, (_, clean, _, attacked) = printed[:10], map(float, printed[10:])
    assert float(training[-1]) > float(training[1]) + 10, "five steps improve the return after adaptation"
    metrics = namespace["metrics"]
    assert 0 < metrics["attack/size"] <= 0.2 + 1e-6 and metrics["attack/budget_excess"] == 0
    assert namespace["history"].returns.shape == (1, 1, 3)
    assert clean > -25, "the committed policy adapts"
    assert attacked < clean - 3, "the attacker takes some of that away"
    assert namespace["result"].budget_excess == 0


def test_examples_of_the_adapters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    namespace = run_examples(ROOT / "docs" / "environments.md", 3)
    assert namespace["press"].obs_size == 3 and namespace["press"].simulator.sensors == (("pressure", 0, 1),)
    assert namespace["env"].obs_size == 10, "swimmer: 5 positions and 5 velocities"
    assert abs(namespace["metrics"]["train/post_return"]) < 100
    assert namespace["metrics"]["train/accepted"] in (0, 1)


@pytest.mark.parametrize(("environment", "flags"), DEFINITIONS, ids=lambda value: value or "none")
def test_flags_of_the_definitions_are_accepted(environment: str, flags: str) -> None:
    presets: dict[str, Config] = importlib.import_module(f"experiments.{environment}").PRESETS
    default, config = presets["paper"], parse("", "", presets, flags.split()).config
    assert type(config.env) is ENVS[environment].config
    before, after = flatten(default), flatten(config)
    changed = {name for name in after if after[name] != before[name]}
    named = re.findall(r"--(?:env\.no-|env\.)([a-z-]+)", flags)
    assert len(named) == flags.count("--")
    assert changed == {"env." + name.replace("-", "_") for name in named}, "a flag that changes nothing"


def test_no_definition_stands_twice() -> None:
    assert len(set(DEFINITIONS)) == len(DEFINITIONS)
    assert {environment for environment, _ in DEFINITIONS} == BUILT_IN


def test_readme_names_every_environment_and_extra() -> None:
    text = (ROOT / "README.md").read_text()
    assert all(f"`{name}`" in text or f"experiments.{name}" in text for name in BUILT_IN)
    section = (
        (ROOT / "pyproject.toml").read_text().split("[project.optional-dependencies]")[1].split("\n[")[0]
    )
    extras = re.findall(r"^(\w+) = \[", section, re.M)
    assert len(extras) == 7
    for page in (text, (ROOT / "docs" / "index.md").read_text()):
        assert all(f"`{extra}`" in page for extra in extras)


@pytest.mark.parametrize(
    "page", ["README.md", *(str(p.relative_to(ROOT)) for p in (ROOT / "docs").rglob("*.md"))]
)
def test_lines_of_prose_fit_a_screen(page: str) -> None:
    code = False
    for number, line in enumerate((ROOT / page).read_text().splitlines(), 1):
        code ^= line.startswith("```")
        free = line.startswith("|") or "](" in line
        assert len(line) <= 120 or free, f"{page}:{number} has {len(line)} columns"
