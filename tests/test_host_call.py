"""Python called from compiled code: values, precision, errors, XLA's header, the compilation cache."""

import ctypes
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from admrl_jax.simulators import ffi_header
from admrl_jax.simulators import host_call as module
from admrl_jax.simulators.host_call import host_call

ROOT = Path(__file__).parent.parent
needs_cpu = pytest.mark.skipif(jax.default_backend() != "cpu", reason="other devices use pure_callback")


def sum_and_scale(inputs: Sequence[np.ndarray], outputs: Sequence[np.ndarray]) -> None:
    """`(a [3], b [2]) -> (2 a [3], sum of b [1])`, batches in front."""
    a, b = inputs
    outputs[0][:] = 2 * a
    outputs[1][:] = b.sum(axis=-1, keepdims=True)


def call(a: jax.Array, b: jax.Array) -> list[jax.Array]:
    shapes = (jax.ShapeDtypeStruct((3,), a.dtype), jax.ShapeDtypeStruct((1,), a.dtype))
    return host_call(sum_and_scale, "test-sum-and-scale", shapes, a, b)


def jit_call() -> Callable[..., list[jax.Array]]:
    """A new function each time: JAX would take the program of the other route for an old one."""
    return jax.jit(lambda a, b: call(a, b))


@pytest.fixture(params=["foreign function", "pure_callback"])
def route(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both ways to the host."""
    if request.param == "pure_callback":
        monkeypatch.setattr(module, "_is_registered", lambda: False)
    elif jax.default_backend() == "cpu":
        assert module._is_registered(), "this jaxlib refuses the handler"
    return request.param


def test_nested_batches_come_in_one_call(route: str) -> None:
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(4, 5, 3)).astype(np.float32), rng.normal(size=(4, 5, 2)).astype(np.float32)
    doubled, total = jax.jit(jax.vmap(jax.vmap(call)))(a, b)
    np.testing.assert_array_equal(doubled, 2 * a)
    np.testing.assert_array_equal(total, b.sum(-1, keepdims=True))
    # What is not batched is repeated.
    shared = jax.jit(jax.vmap(call, in_axes=(0, None)))(a[0], b[0, 0])[1]
    np.testing.assert_array_equal(shared, np.full((5, 1), b[0, 0].sum()))


def test_double_precision(route: str, x64: None) -> None:
    a, b = jnp.full(3, 1 / 3), jnp.array([1.0, 1e-12])
    doubled, total = jit_call()(a, b)
    assert doubled.dtype == jnp.float64
    assert total[0] == 1 + 1e-12


def test_works_inside_scan_and_cond(route: str) -> None:
    def step(a: jax.Array, on: jax.Array):
        a = jax.lax.cond(on, lambda: call(a, jnp.ones(2))[0], lambda: a)
        return a, a

    last, _ = jax.jit(lambda: jax.lax.scan(step, jnp.ones(3), jnp.array([True, False, True, True])))()
    np.testing.assert_array_equal(last, 8)


def test_errors_reach_the_caller(route: str) -> None:
    def broken(inputs: Sequence[np.ndarray], outputs: Sequence[np.ndarray]) -> None:
        raise ValueError("the knee is not finite")

    run = jax.jit(lambda x: host_call(broken, "test-broken", (jax.ShapeDtypeStruct((1,), x.dtype),), x))
    with pytest.raises(jax.errors.JaxRuntimeError, match="the knee is not finite"):
        jax.block_until_ready(run(jnp.ones(1)))
    # The program, and the process, go on.
    np.testing.assert_array_equal(jit_call()(jnp.ones(3), jnp.ones(2))[1], 2)


Doctor = Callable[[str, str], None]


@pytest.fixture
def doctor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Doctor]:
    """Puts a copy of XLA's header, with a text replaced, in the place of the header."""
    original = Path(jax.ffi.include_dir(), ffi_header.HEADER).read_text()

    def forget() -> None:
        module._api_version.cache_clear()
        module._is_registered.cache_clear()

    def replace(old: str, new: str) -> None:
        assert original.count(old) == 1
        path = tmp_path / ffi_header.HEADER
        path.parent.mkdir(parents=True)
        path.write_text(original.replace(old, new))

    monkeypatch.setattr(jax.ffi, "include_dir", lambda: str(tmp_path))
    forget()
    yield replace
    forget()


def is_foreign_function() -> bool:
    """Whether a program calls the handler; its numbers are right in any case."""
    run, a, b = jit_call(), jnp.arange(3.0), jnp.arange(2.0)
    doubled, total = run(a, b)
    np.testing.assert_array_equal(doubled, [0, 2, 4])
    np.testing.assert_array_equal(total, [1])
    return module.TARGET in run.lower(a, b).as_text()


@needs_cpu
def test_the_installed_header_is_the_one_written_down() -> None:
    assert is_foreign_function()
    text = Path(jax.ffi.include_dir(), ffi_header.HEADER).read_text()
    major, minor = module._api_version()
    assert f"XLA_FFI_API_MAJOR {major}\n" in text and f"XLA_FFI_API_MINOR {minor}\n" in text


# What differs, what stands in the header, what takes its place.
DIFFERENCES = {
    "major version": ("XLA_FFI_API_MAJOR 0", "XLA_FFI_API_MAJOR 1"),
    "field inserted": ("  int64_t rank;", "  int64_t layout;\n  int64_t rank;"),
    "field renamed": ("  int64_t rank;", "  int64_t order;"),
    "fields swapped": ("  const char* ptr;\n  size_t len;", "  size_t len;\n  const char* ptr;"),
    "another size at the same place": (
        "  XLA_FFI_DataType dtype;\n  void* data;\n  int64_t",
        "  int64_t dtype;\n  void* data;\n  int64_t",
    ),
    "another size through an alias": (
        "typedef uint32_t XLA_FFI_Handler_Traits",
        "typedef size_t XLA_FFI_Handler_Traits",
    ),
    "larger structure within another": ("  void** args;", "  void** args;\n  size_t more;"),
    "structure renamed": ("struct XLA_FFI_CallFrame {", "struct XLA_FFI_Frame {"),
    "unknown type": ("  int64_t rank;", "  XLA_FFI_Rank rank;"),
    "array": ("  int64_t rank;", "  int64_t rank;\n  int strides[2];"),
    "condition": ("  int64_t rank;", "#ifdef A\n  int64_t rank;\n#endif"),
    "stage": ("XLA_FFI_ExecutionStage_EXECUTE = 3", "XLA_FFI_ExecutionStage_EXECUTE = 4"),
    "dtype": ("XLA_FFI_DataType_F32 = 11", "XLA_FFI_DataType_F32 = 12"),
}


@needs_cpu
@pytest.mark.parametrize("name", DIFFERENCES)
def test_another_header_leaves_it_to_pure_callback(name: str, doctor: Doctor) -> None:
    doctor(*DIFFERENCES[name])
    with pytest.raises(ValueError):
        module._api_version()
    assert not is_foreign_function()


@needs_cpu
def test_no_header_leaves_it_to_pure_callback(doctor: Doctor) -> None:
    with pytest.raises(OSError):
        module._api_version()
    assert not is_foreign_function()


@needs_cpu
def test_fields_may_follow_those_that_are_read(doctor: Doctor) -> None:
    doctor(
        "  XLA_FFI_Future* future;  // out\n};\n\nXLA_FFI_DEFINE_STRUCT_TRAITS(XLA_FFI_CallFrame",
        "  void* a;\n  size_t b;  /* c; */\n};\n\nXLA_FFI_DEFINE_STRUCT_TRAITS(XLA_FFI_CallFrame",
    )
    assert is_foreign_function()


@needs_cpu
def test_xla_refuses_a_newer_version_than_its_own(doctor: Doctor) -> None:
    doctor("#define XLA_FFI_API_MINOR ", "#define XLA_FFI_API_MINOR 100")
    assert module._api_version() >= (0, 1000)
    assert not is_foreign_function()


def whole(structure: type[ctypes.Structure], **fields: object) -> ctypes.Structure:
    """A structure with its size at its head, as XLA fills them in."""
    return structure(struct_size=module._least_size(structure), **fields)


def answer(**fields: object) -> str:
    """The error with which the handler answers a frame with these fields; empty if there is none."""
    messages = []

    @module._CreateError
    def create_error(arguments) -> int:
        messages.append(arguments.contents.message.decode())
        return 1

    api = module._Api(XLA_FFI_Error_Create=ctypes.cast(create_error, ctypes.c_void_p))
    parts = {"args": module._Arguments, "rets": module._Results, "attrs": module._Attributes}
    given = {name: whole(structure) for name, structure in parts.items()} | fields
    frame = module._CallFrame(api=ctypes.pointer(api), **given)
    frame.struct_size = fields.get("struct_size", module._least_size(module._CallFrame))
    returned = module._handler(ctypes.byref(frame))
    assert bool(returned) == bool(messages)
    return "".join(messages)


def test_short_structures_are_errors() -> None:
    assert answer() == ""
    assert "_CallFrame" in answer(struct_size=module._least_size(module._CallFrame) - 1)
    for name, structure in (
        ("args", module._Arguments),
        ("rets", module._Results),
        ("attrs", module._Attributes),
    ):
        assert structure.__name__ in answer(**{name: structure(struct_size=8)})
    buffer = module._Buffer(struct_size=8)
    with pytest.raises(ValueError, match="_Buffer"):
        module._arrays([ctypes.pointer(buffer)])


@needs_cpu
def test_the_handler_reports_the_version_of_the_header() -> None:
    metadata = whole(module._Metadata)
    extension = whole(module._MetadataExtension, type=module.METADATA, metadata=ctypes.pointer(metadata))
    start = ctypes.cast(ctypes.pointer(extension), ctypes.POINTER(module._Extension))
    assert answer(extension_start=start) == ""
    version = metadata.api_version
    assert (version.major_version, version.minor_version) == module._api_version()
    metadata.struct_size -= 1
    assert "_Metadata" in answer(extension_start=start)


PROGRAM = """
import jax, jax.numpy as jnp
from admrl_jax import make_env
hits = []
jax.monitoring.register_event_listener(lambda name, **_: name.endswith("cache_hits") and hits.append(name))
env = make_env("halfcheetah_dir", simulator="mujoco", num_threads=1)
def run(key):
    state, _ = env.reset(key, jnp.float32(1))
    return env.step(state, jnp.ones(6), jnp.float32(1))[1].reward
key = jax.random.key(0)
before = len(hits)
print(jax.jit(run)(key), len(hits) - before)
"""


@needs_cpu
def test_another_process_finds_the_compiled_program(tmp_path: Path) -> None:
    environment = os.environ | {
        "JAX_COMPILATION_CACHE_DIR": str(tmp_path),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }
    outputs = [
        subprocess.run(
            [sys.executable, "-c", PROGRAM],
            cwd=ROOT,
            env=environment,
            capture_output=True,
            text=True,
            check=True,
        ).stdout.split()
        for _ in range(2)
    ]
    assert outputs[0][1] == "0" and outputs[1][1] == "1", outputs
    assert outputs[0][0] == outputs[1][0], "the same bits"
