"""Compares structures written down with `ctypes` to the C header of XLA's foreign function interface.

The header comes with jaxlib, so code that mirrors it can find out before the first call whether the
two still agree. Only what that header needs is understood: integers, enumerations, pointers and
structures. Anything else is refused.
"""

import ctypes
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

HEADER = "xla/ffi/api/c_api.h"
MAJOR_VERSION = 0
INTEGERS: dict[str, Any] = {
    "int": ctypes.c_int,
    "int32_t": ctypes.c_int32,
    "int64_t": ctypes.c_int64,
    "size_t": ctypes.c_size_t,
    "uint32_t": ctypes.c_uint32,
}


def read_version(
    structures: Mapping[str, type[ctypes.Structure]], constants: Mapping[str, int]
) -> tuple[int, int]:
    """Reads the version of the interface and checks that jaxlib's header declares what is given.

    Args:
        structures: what is mirrored, by its name in C, or by several with `|` between them. Fields have
            their names in C; the last ones may be left out.
        constants: values of enumerations, by their names in C.

    Returns:
        The major and the minor version.

    Raises:
        OSError: there is no header.
        ValueError: it is of another major version, declares something else, or is not understood.
    """
    text = Path(jax.ffi.include_dir(), HEADER).read_text(encoding="utf-8")
    text = re.sub(r"/\*.*?\*/|//[^\n]*", "", text, flags=re.DOTALL)
    # The only macro inside a structure.
    text = re.sub(r"\b_XLA_FFI_API_STRUCT_FIELD\((\w+)\)", r"\1* \1", text)
    version = [_find(rf"#define XLA_FFI_API_{part} (\d+)\s", text) for part in ("MAJOR", "MINOR")]
    major, minor = map(int, version)
    if major != MAJOR_VERSION:
        raise ValueError(f"the major version is {major}, not {MAJOR_VERSION}")
    for name, structure in structures.items():
        declared = _structure(name, text)
        for field, *_ in structure._fields_:
            ours, theirs = getattr(structure, field), getattr(declared, field, None)
            if theirs is None or (ours.offset, ours.size) != (theirs.offset, theirs.size):
                raise ValueError(f"{name}.{field} is not where it is expected")
    for name, value in constants.items():
        if _find(rf"\b{name}\s*=\s*(\d+)\s*[,}}]", text) != str(value):
            raise ValueError(f"{name} is not {value}")
    return major, minor


def _find(pattern: str, text: str) -> str:
    """The group of a pattern that must occur."""
    match = re.search(pattern, text)
    if match is None:
        raise ValueError(f"the header has no {pattern}")
    return match[1]


def _structure(name: str, text: str) -> type[ctypes.Structure]:
    """A structure as the header declares it."""
    *declarations, _ = _find(rf"\bstruct (?:{name}) {{([^}}]*)}}", text).split(";")
    fields = []
    for declaration in declarations:
        kind, _, field = declaration.strip().rpartition(" ")
        if not field.isidentifier():
            raise ValueError(f"{name} has a field of an unknown form: {field}")
        fields.append((field, _type(kind, text)))
    return type(name, (ctypes.Structure,), {"_fields_": fields})


def _type(kind: str, text: str) -> Any:
    """The `ctypes` type of a field, from what stands before its name; all pointers are alike."""
    if kind.endswith("*"):
        return ctypes.c_void_p
    if kind in INTEGERS:
        return INTEGERS[kind]
    if not kind.isidentifier():
        raise ValueError(f"unknown type: {kind}")
    if re.search(rf"\btypedef enum \w* ?{{[^}}]*}} {kind};", text):
        return ctypes.c_int
    if alias := re.search(rf"\btypedef (\w+) {kind};", text):
        return _type(alias[1], text)
    return _structure(kind, text)
