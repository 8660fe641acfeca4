"""Calls Python on the host from compiled code, without copies and without losing the compilation cache.

`jax.pure_callback` wraps every argument in a JAX array and copies every result, and JAX never stores a
program that contains one in its persistent cache, because the callback is known only by its place
in this process. Here one handler of XLA's foreign function interface, written with `ctypes`, serves
all functions: a program names the function it wants by a string, arguments and results are NumPy
views of XLA's own buffers. Where the interface is not the one written down here, and on other
devices than CPUs, `pure_callback` does the work.
"""

import ctypes
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

HostFunction = Callable[[Sequence[np.ndarray], Sequence[np.ndarray]], None]
"""`(inputs, outputs)`: reads the inputs, which it must not change, and fills the outputs."""

TARGET = "admrl_jax_host_call"
EXECUTE = 3
METADATA = 1
INTERNAL = 13
DTYPES = {1: np.dtype(np.bool_), 11: np.dtype(np.float32), 12: np.dtype(np.float64)}

_functions: dict[str, HostFunction] = {}


# The structures of XLA's `c_api.h`, version 0.x, as far as they are read here.
class _Extension(ctypes.Structure):
    _fields_ = (("size", ctypes.c_size_t), ("type", ctypes.c_int), ("next", ctypes.c_void_p))


class _Version(ctypes.Structure):
    _fields_ = (
        ("size", ctypes.c_size_t),
        ("extension", ctypes.c_void_p),
        ("major", ctypes.c_int),
        ("minor", ctypes.c_int),
    )


class _Metadata(ctypes.Structure):
    _fields_ = (("size", ctypes.c_size_t), ("version", _Version), ("traits", ctypes.c_uint32))


class _MetadataExtension(ctypes.Structure):
    _fields_ = (("base", _Extension), ("metadata", ctypes.POINTER(_Metadata)))


class _Buffer(ctypes.Structure):
    _fields_ = (
        ("size", ctypes.c_size_t),
        ("extension", ctypes.c_void_p),
        ("dtype", ctypes.c_int),
        ("data", ctypes.c_void_p),
        ("rank", ctypes.c_int64),
        ("dims", ctypes.POINTER(ctypes.c_int64)),
    )


class _Buffers(ctypes.Structure):
    _fields_ = (
        ("struct_size", ctypes.c_size_t),
        ("extension", ctypes.c_void_p),
        ("count", ctypes.c_int64),
        ("types", ctypes.c_void_p),
        ("items", ctypes.POINTER(ctypes.POINTER(_Buffer))),
    )


class _Span(ctypes.Structure):
    _fields_ = (("data", ctypes.c_void_p), ("length", ctypes.c_size_t))


class _Attributes(ctypes.Structure):
    _fields_ = (
        ("struct_size", ctypes.c_size_t),
        ("extension", ctypes.c_void_p),
        ("count", ctypes.c_int64),
        ("types", ctypes.c_void_p),
        ("names", ctypes.c_void_p),
        ("items", ctypes.POINTER(ctypes.POINTER(_Span))),
    )


class _ErrorArguments(ctypes.Structure):
    _fields_ = (
        ("size", ctypes.c_size_t),
        ("extension", ctypes.c_void_p),
        ("message", ctypes.c_char_p),
        ("code", ctypes.c_int),
    )


_CreateError = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.POINTER(_ErrorArguments))


class _Api(ctypes.Structure):
    _fields_ = (
        ("size", ctypes.c_size_t),
        ("extension", ctypes.c_void_p),
        ("version", _Version),
        ("internal", ctypes.c_void_p),
        ("create_error", ctypes.c_void_p),
    )


class _CallFrame(ctypes.Structure):
    _fields_ = (
        ("size", ctypes.c_size_t),
        ("extension", ctypes.POINTER(_Extension)),
        ("api", ctypes.POINTER(_Api)),
        ("context", ctypes.c_void_p),
        ("stage", ctypes.c_int),
        ("inputs", _Buffers),
        ("outputs", _Buffers),
        ("attributes", _Attributes),
    )


def _arrays(buffers: _Buffers) -> list[np.ndarray]:
    """Views of XLA's buffers."""
    arrays = []
    for i in range(buffers.count):
        buffer = buffers.items[i].contents
        shape = tuple(buffer.dims[: buffer.rank])
        dtype = DTYPES[buffer.dtype]
        size = dtype.itemsize * int(np.prod(shape, dtype=np.int64))
        memory = (ctypes.c_char * size).from_address(buffer.data)
        arrays.append(np.frombuffer(memory, dtype).reshape(shape))
    return arrays


@ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.POINTER(_CallFrame))
def _handler(pointer: Any) -> int | None:
    """What XLA calls; no exception may leave it."""
    frame = pointer.contents
    if frame.extension and frame.extension.contents.type == METADATA:
        extension = ctypes.cast(frame.extension, ctypes.POINTER(_MetadataExtension))
        metadata = extension.contents.metadata.contents
        metadata.version.major, metadata.version.minor, metadata.traits = 0, 1, 0
        return None
    if frame.stage != EXECUTE:
        return None
    try:
        name = frame.attributes.items[0].contents
        function = _functions[ctypes.string_at(name.data, name.length).decode()]
        function(_arrays(frame.inputs), _arrays(frame.outputs))
        return None
    except BaseException as error:
        message = f"{type(error).__name__}: {error}".encode()
        arguments = _ErrorArguments(ctypes.sizeof(_ErrorArguments), None, message, INTERNAL)
        return _CreateError(frame.api.contents.create_error)(ctypes.byref(arguments))


@functools.cache
def _is_registered() -> bool:
    """Registers the handler, once; False where this XLA does not take it."""
    new_capsule = ctypes.pythonapi.PyCapsule_New
    new_capsule.restype = ctypes.py_object
    new_capsule.argtypes = (ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p)
    capsule = new_capsule(ctypes.cast(_handler, ctypes.c_void_p).value, None, None)
    try:
        jax.ffi.register_ffi_target(TARGET, capsule, platform="cpu", api_version=1)
    except Exception:
        return False
    return True


def host_call(
    function: HostFunction, name: str, shapes: Sequence[jax.ShapeDtypeStruct], *inputs: jax.Array
) -> list[jax.Array]:
    """Calls `function` when the program runs; under `vmap` it gets the whole batch in one call.

    Args:
        function: see `HostFunction`; it must not call JAX.
        name: stands for the function in compiled programs, also those of other processes: two
            functions of one name must do the same.
        shapes: shapes and dtypes of the results, without batch axes.
        inputs: bool, float32 or float64 arrays.
    """
    if jax.default_backend() == "cpu" and _is_registered():
        _functions[name] = function
        call = jax.ffi.ffi_call(TARGET, tuple(shapes), vmap_method="broadcast_all")
        return list(call(*inputs, function=name))

    def callback(*inputs: Any) -> tuple[np.ndarray, ...]:
        arrays = [np.asarray(x) for x in inputs]
        # Results are batched like the first input.
        batch = arrays[0].shape[: arrays[0].ndim - rank]
        outputs = tuple(np.empty((*batch, *s.shape), s.dtype) for s in shapes)
        function(arrays, outputs)
        return outputs

    rank = inputs[0].ndim
    return list(jax.pure_callback(callback, tuple(shapes), *inputs, vmap_method="broadcast_all"))
