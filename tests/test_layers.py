"""The architecture: imports only point downwards, and only the upper levels touch the machine."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import admrl_jax

PACKAGE = "admrl_jax"
ROOT = Path(admrl_jax.__file__).parent

LEVELS = (
    ("core", "stats"),
    ("simulators", "attacks"),
    ("envs",),
    ("learners",),
    ("sampling", "victims"),
    ("defences",),
    ("training",),
    ("attacking", "evaluation", "truth"),
    ("suites",),
    ("judging",),
    ("suite",),
    ("methods",),
    ("config",),
    ("runs",),
    ("report",),
    ("saved",),
    ("protocol",),
    ("commands",),
    ("",),  # the package itself may gather names from everywhere; no module imports from it
)
"""Rooms, the lowest first. Those of one level do not know each other."""
LEVEL_OF = {room: number for number, rooms in enumerate(LEVELS) for room in rooms}
HOST_LEVEL = LEVEL_OF["runs"]
ENGINES = "simulators"
"""Below the host's level and yet no pure code: engines read model files and ask for the machine's cores."""

MODULES = {
    str(path.relative_to(ROOT).with_suffix(""))
    .replace("/", ".")
    .removesuffix("__init__")
    .removesuffix("."): path
    for path in sorted(ROOT.rglob("*.py"))
}


def room_of(module: str) -> str:
    """Folder or file of a module in the package."""
    room = module.split(".")[0]
    assert room in LEVEL_OF, f"{room!r} has no level: add it to the table of the architecture"
    return room


PURE = [
    name for name in MODULES if name and room_of(name) != ENGINES and LEVEL_OF[room_of(name)] < HOST_LEVEL
]


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
    assert {"core.types", "learners.trpo", "training", "simulators.mujoco", "attacks.pgd"} <= set(MODULES)
    assert {"core.linalg", "core.settings"} <= imports("learners.trpo")
    assert "sampling" in imports("training")
    assert {"training", "core.settings", "attacks.learned.adgan.steps"} <= set(PURE)
    assert {room_of(name) for name in MODULES} == set(LEVEL_OF), "a level without a module"


@pytest.mark.parametrize("module", [name for name in MODULES if name])
def test_imports_do_not_point_upwards(module: str) -> None:
    mine = room_of(module)
    for target in imports(module):
        theirs = room_of(target)
        assert theirs == mine or LEVEL_OF[theirs] < LEVEL_OF[mine], f"{module} ({mine}) imports {target}"


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


FORBIDDEN = {
    *("os.environ", "os.getenv", "os.putenv", "os.sched_getaffinity", "os.cpu_count"),
    *("jax.config", "jax.default_backend", "jax.devices", "jax.local_devices", "jax.device_count"),
    *("jax.local_device_count", "jax.process_index", "jax.process_count", "jax.distributed"),
    *("Path.cwd", "Path.home", "np.load", "np.save", "np.savez", "np.random"),
}
"""What would make the same arguments give something else on another machine or day."""
FORBIDDEN_CALLS = {"print", "open", "input"}
FORBIDDEN_METHODS = {"read_text", "read_bytes", "write_text", "write_bytes", "is_file", "exists", "mkdir"}
FORBIDDEN_MODULES = {
    *("time", "datetime", "logging", "sys", "subprocess", "shutil", "os", "socket", "random", "tempfile"),
    *("rich", "orbax", "tyro", "matplotlib"),
}


@pytest.mark.parametrize("module", PURE)
def test_pure_modules_do_not_touch_the_machine(module: str) -> None:
    for node in ast.walk(ast.parse(MODULES[module].read_text())):
        if isinstance(node, ast.Attribute):
            assert node.attr not in FORBIDDEN_METHODS, f"{module}: .{node.attr}"
            used = f"{node.value.id}.{node.attr}" if isinstance(node.value, ast.Name) else ""
            is_statistics = room_of(module) == "stats" and used == "np.random"  # seeded resampling
            assert used not in FORBIDDEN or is_statistics, f"{module}: {used}"
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            assert node.func.id not in FORBIDDEN_CALLS, f"{module}: {node.func.id}()"
        if isinstance(node, ast.Import):
            names = {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names = {(node.module or "").split(".")[0]}
        else:
            continue
        assert not names & FORBIDDEN_MODULES, f"{module}: {names & FORBIDDEN_MODULES}"


LATE = {
    "brax": "an optional engine",
    "warp": "an optional engine",
    "mujoco_warp": "an optional engine",
    "tensorboardX": "an optional log",
    "mujoco": "engines come when an environment asks for them",
    "gymnasium": "only its model files are read",
    "matplotlib": "half a second that the start of a run need not wait",
}
"""Packages that importing the library must not need, or not wait for."""


def test_importing_takes_no_optional_package() -> None:
    missing = "\n".join(f"sys.modules[{name!r}] = None" for name in LATE)
    modules = "\n".join(f"import {PACKAGE}.{name}" for name in ("commands.experiment", "report.write"))
    done = subprocess.run(
        [sys.executable, "-c", f"import sys\n{missing}\nimport {PACKAGE}\n{modules}"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
