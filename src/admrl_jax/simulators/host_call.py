"""Calls Python on the host from compiled code, without copies and without losing the compilation cache.

`jax.pure_callback` wraps every argument in a JAX array and copies every result, and JAX never stores a
program that contains one in its persistent cache, because the callback is known only by its place
in this process. Here one handler of XLA's foreign function interface, written with `ctypes`, serves
all functions: a program names the function it wants by a string, arguments and results are NumPy
views of XLA's own buffers. Where jaxlib's header does not declare the interface written down here,
and on other devices than CPUs, `pure_callback` does the work.
"""

import ctypes
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from admrl_jax.simulators.ffi_header import read_version

HostFunction = Callable[[Sequence[np.ndarray], Sequence[np.ndarray]], None]
"""`(inputs, outputs)`: reads the inputs, which it must not change, and fills the outputs."""

TARGET = "admrl_jax_host_call"
EXECUTE = 3
METADATA = 1
INTERNAL = 13
DTYPES = {1: np.dtype(np.bool_), 11: np.dtype(np.float32), 12: np.dtype(np.float64)}
CONSTANTS = {
    "XLA_FFI_ExecutionStage_EXECUTE": EXECUTE,
    "XLA_FFI_Extension_Metadata": METADATA,
    "XLA_FFI_Error_Code_INTERNAL": INTERNAL,
    "XLA_FFI_DataType_PRED": 1,
    "XLA_FFI_DataType_F32": 11,
    "XLA_FFI_DataType_F64": 12,
}

_functions: dict[str, HostFunction] = {}


# The structures of XLA's header, under its names of fields and up to the last one that is read here.
class _Extension(ctypes.Structure):
    _fields_ = (("struct_size", ctypes.c_size_t), ("type", ctypes.c_int), ("next", ctypes.c_void_p))


_HEAD = (("struct_size", ctypes.c_size_t), ("extension_start", ctypes.POINTER(_Extension)))


class _Version(ctypes.Structure):
    _fields_ = (*_HEAD, ("major_version", ctypes.c_int), ("minor_version", ctypes.c_int))


class _Metadata(ctypes.Structure):
    _fields_ = (("struct_size", ctypes.c_size_t), ("api_version", _Version), ("traits", ctypes.c_uint32))


class _MetadataExtension(ctypes.Structure):
    _anonymous_ = ("extension_base",)
    _fields_ = (("extension_base", _Extension), ("metadata", ctypes.POINTER(_Metadata)))


class _Buffer(ctypes.Structure):
    _fields_ = (
        *_HEAD,
        ("dtype", ctypes.c_int),
        ("data", ctypes.c_void_p),
        ("rank", ctypes.c_int64),
        ("dims", ctypes.POINTER(ctypes.c_int64)),
    )


_LIST = (*_HEAD, ("size", ctypes.c_int64), ("types", ctypes.c_void_p))
_BufferPointers = ctypes.POINTER(ctypes.POINTER(_Buffer))


class _Arguments(ctypes.Structure):
    _fields_ = (*_LIST, ("args", _BufferPointers))


class _Results(ctypes.Structure):
    _fields_ = (*_LIST, ("rets", _BufferPointers))


class _Span(ctypes.Structure):
    _fields_ = (("ptr", ctypes.c_void_p), ("len", ctypes.c_size_t))


class _Attributes(ctypes.Structure):
    _fields_ = (*_LIST, ("names", ctypes.c_void_p), ("attrs", ctypes.POINTER(ctypes.POINTER(_Span))))


class _ErrorArguments(ctypes.Structure):
    _fields_ = (*_HEAD, ("message", ctypes.c_char_p), ("errc", ctypes.c_int))


_CreateError = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.POINTER(_ErrorArguments))


class _Api(ctypes.Structure):
    _fields_ = (
        *_HEAD,
        ("api_version", _Version),
        ("internal_api", ctypes.c_void_p),
        ("XLA_FFI_Error_Create", ctypes.c_void_p),
    )


class _CallFrame(ctypes.Structure):
    _fields_ = (
        *_HEAD,
        ("api", ctypes.POINTER(_Api)),
        ("ctx", ctypes.c_void_p),
        ("stage", ctypes.c_int),
        ("args", _Arguments),
        ("rets", _Results),
        ("attrs", _Attributes),
    )


STRUCTURES: dict[str, type[ctypes.Structure]] = {
    # Its name up to version 0.3 and since.
    "XLA_FFI_Extension_Base|XLA_FFI_InternalExtension": _Extension,
    "XLA_FFI_Api_Version": _Version,
    "XLA_FFI_Metadata": _Metadata,
    "XLA_FFI_Metadata_Extension": _MetadataExtension,
    "XLA_FFI_Buffer": _Buffer,
    "XLA_FFI_Args": _Arguments,
    "XLA_FFI_Rets": _Results,
    "XLA_FFI_ByteSpan": _Span,
    "XLA_FFI_Attrs": _Attributes,
    "XLA_FFI_Error_Create_Args": _ErrorArguments,
    "XLA_FFI_Api": _Api,
    "XLA_FFI_CallFrame": _CallFrame,
}


@functools.cache
def _api_version() -> tuple[int, int]:
    """The version of the installed interface, after a check that it is the one written down above.

    A handler reports the version of its header; XLA takes those from 0.1 up to its own.

    Returns:
        The major and the minor version.
    """
    return read_version(STRUCTURES, CONSTANTS)


@functools.cache
def _least_size(structure: type[ctypes.Structure]) -> int:
    """The bytes up to the end of the last field that is read; XLA does not count padding either."""
    last = getattr(structure, structure._fields_[-1][0])
    return last.offset + last.size


def _check_sizes(*structures: Any) -> None:
    """Raises `ValueError` where XLA's structure ends before the last field that is read here."""
    for structure in structures:
        least = _least_size(type(structure))
        if structure.struct_size < least:
            raise ValueError(f"{structure} of XLA has {structure.struct_size} bytes, not {least} or more")


def _arrays(buffers: Sequence[Any]) -> list[np.ndarray]:
    """Views of XLA's buffers, given pointers to `_Buffer`."""
    arrays = []
    for pointer in buffers:
        buffer = pointer.contents
        _check_sizes(buffer)
        shape = tuple(buffer.dims[: buffer.rank])
        dtype = DTYPES[buffer.dtype]
        size = dtype.itemsize * int(np.prod(shape, dtype=np.int64))
        memory = (ctypes.c_char * size).from_address(buffer.data)
        arrays.append(np.frombuffer(memory, dtype).reshape(shape))
    return arrays


def _report_version(frame: _CallFrame) -> None:
    """Answers XLA's question for which version of the interface the handler was written."""
    extension = ctypes.cast(frame.extension_start, ctypes.POINTER(_MetadataExtension)).contents
    metadata = extension.metadata.contents
    _check_sizes(extension, metadata)
    version = metadata.api_version
    version.major_version, version.minor_version = _api_version()
    metadata.traits = 0


def _execute(frame: _CallFrame) -> None:
    """Calls the function that the program names."""
    name = frame.attrs.attrs[0].contents
    function = _functions[ctypes.string_at(name.ptr, name.len).decode()]
    args, rets = frame.args, frame.rets
    function(_arrays(args.args[: args.size]), _arrays(rets.rets[: rets.size]))


@ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.POINTER(_CallFrame))
def _handler(pointer: Any) -> int | None:
    """What XLA calls; no exception may leave it."""
    frame = pointer.contents
    try:
        _check_sizes(frame, frame.args, frame.rets, frame.attrs)
        if frame.extension_start and frame.extension_start.contents.type == METADATA:
            _report_version(frame)
        elif frame.stage == EXECUTE:
            _execute(frame)
        return None
    except BaseException as error:
        message = f"{type(error).__name__}: {error}".encode()
        arguments = _ErrorArguments(ctypes.sizeof(_ErrorArguments), None, message, INTERNAL)
        return _CreateError(frame.api.contents.XLA_FFI_Error_Create)(ctypes.byref(arguments))


@functools.cache
def _is_registered() -> bool:
    """Registers the handler, once.

    Returns:
        False where jaxlib's header does not declare this interface, or XLA refuses the handler.
    """
    new_capsule = ctypes.pythonapi.PyCapsule_New
    new_capsule.restype = ctypes.py_object
    new_capsule.argtypes = (ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p)
    capsule = new_capsule(ctypes.cast(_handler, ctypes.c_void_p).value, None, None)
    try:
        _api_version()
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
        name: identifies the function in compiled programs, also those of other processes: two
            functions of one name must do the same.
        shapes: shapes and dtypes of the results, without batch axes.
        inputs: bool, float32 or float64 arrays.

    Returns:
        The outputs, one array for each of `shapes`.
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
