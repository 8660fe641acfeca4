"""The architecture: no import points upwards or in a circle, and only the host level does I/O."""

import ast
from pathlib import Path

import pytest

import admrl_jax.types

PACKAGE = "admrl_jax"
ROOT = Path(admrl_jax.types.__file__).parent

LEVELS = {
    **dict.fromkeys(("types", "checks", "config", "env_config", "gaussian", "blocks", "mapped_axis"), 0),
    **dict.fromkeys(("returns", "networks", "trpo"), 1),
    **dict.fromkeys(("simulators", "envs", "attacks"), 2),
    **dict.fromkeys(("rollout", "maml", "adgan"), 3),
    **dict.fromkeys(("training", "evaluation", "statistics"), 4),
    **dict.fromkeys(("files", "checkpoint", "run_log", "hosts", "memory", "sharding"), 5),
    **dict.fromkeys(("results", "figures", "report"), 5),
    "": 6,  # the package itself may gather names from everywhere; no module imports from it
}
HOST_LEVEL = 5

MODULES = {
    str(path.relative_to(ROOT).with_suffix(""))
    .replace("/", ".")
    .removesuffix("__init__")
    .removesuffix("."): path
    for path in sorted(ROOT.rglob("*.py"))
}


def level(module: str) -> int:
    """Level of a module, by its first name."""
    room = module.split(".")[0]
    assert room in LEVELS, f"{room!r} has no level: add it to the table of the architecture"
    return LEVELS[room]


def imports(module: str) -> set[str]:
    """The modules of this package that a module imports, wherever in its text."""
    found = set()
    for node in ast.walk(ast.parse(MODULES[module].read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: relative import"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            if name.split(".")[0] != PACKAGE:
                continue
            # The longest prefix that is a module: the rest is a name inside it.
            inner = name.split(".")[1:]
            while ".".join(inner) not in MODULES and inner:
                inner.pop()
            found.add(".".join(inner))
    return found


def test_the_walk_sees_the_package() -> None:
    assert {"types", "trpo", "maml", "training", "simulators.mujoco", "attacks"} <= set(MODULES)
    assert {"gaussian", "types"} <= imports("trpo")
    assert "adgan" in imports("training")


@pytest.mark.parametrize("module", [name for name in MODULES if name])
def test_imports_do_not_point_upwards(module: str) -> None:
    for target in imports(module):
        assert level(target) <= level(module), f"{module} (level {level(module)}) imports {target}"


def test_imports_have_no_cycles() -> None:
    done: set[str] = set()

    def visit(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, " -> ".join((*path, module))
        if module in done:
            return
        for target in imports(module) - {module}:
            # A package's own `__init__` gathers its files, which may in turn name each other.
            visit(target, (*path, module))
        done.add(module)

    for module in MODULES:
        visit(module, ())


@pytest.mark.parametrize("module", [name for name in MODULES if name and level(name) < HOST_LEVEL])
def test_only_the_host_level_touches_the_outside(module: str) -> None:
    for node in ast.walk(ast.parse(MODULES[module].read_text())):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            used = f"{node.value.id}.{node.attr}"
            assert used not in ("os.environ", "os.getenv", "os.putenv", "jax.config"), f"{module}: {used}"
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            assert node.func.id not in ("print", "open", "input"), f"{module}: {node.func.id}()"
        if isinstance(node, ast.Import):
            names = {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names = {(node.module or "").split(".")[0]}
        else:
            continue
        assert not names & {"time", "datetime", "logging", "sys", "subprocess", "shutil"}, (
            f"{module}: {names}"
        )
