"""A pickle interpreter that cannot call anything: it turns a pickle into inert data.

`pickle.Unpickler` with a guarded `find_class` is not enough here. It pushes objects of the copyreg
extension cache without asking `find_class`, sets attributes through `__setstate__` and `setattr`,
needs real types for NEWOBJ, and sizes its memo by an index that the file chooses. This interpreter
takes the opcodes from `pickletools`, which only parses, and knows each one that may stand in a
checkpoint: names become `GlobalRef`, instances `Record`, tensors `TensorRecord`, and the admitted
functions have builders of our own. Its stack never holds anything that can be called.
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable
from typing import Any

from boxwright.sources.admitted import (
    GlobalRef,
    foreign_project,
    global_from_name,
    project_class,
)
from boxwright.sources.inert import Record, RefusedError, Storage
from boxwright.sources.pickle_builders import BUILDERS, checked_key

__all__ = ["inert_from_pickle"]

_SHOWN_CHARACTERS = 100

# Opcodes that push the value which pickletools parsed for them.
_PARSED = frozenset(
    {
        *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
        *("STRING", "BINSTRING", "SHORT_BINSTRING"),
        *("UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"),
        *("BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"),
    }
)
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}


def inert_from_pickle(
    stream: bytes, storage: Callable[[Any], Storage], *, projects: bool = False
) -> Any:
    """Return the inert data that a pickle describes.

    Args:
        stream: The pickle.
        storage: Turns a persistent id into a storage.
        projects: Classes of the projects that are not installed become inert records too.

    Raises:
        RefusedError: The pickle wants a class, function or operation that is not admitted.
        ValueError, KeyError, IndexError, TypeError, AttributeError, OverflowError, MemoryError:
            The pickle is damaged.
    """
    machine = _Machine(storage, projects)
    for opcode, argument, _ in pickletools.genops(stream):
        name = opcode.name
        if name in _PARSED:
            machine.stack.append(argument)
        elif name in _CONSTANTS:
            machine.stack.append(_CONSTANTS[name])
        elif name == "STOP":
            return machine.pop()
        elif name in _HANDLERS:
            _HANDLERS[name](machine, argument)
        else:
            raise RefusedError(f"uses the pickle operation {name}")
    raise ValueError("the pickle has no end")


class _Machine:
    """The stack, its marks and the memo."""

    def __init__(self, storage: Callable[[Any], Storage], projects: bool) -> None:
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}
        self.storage = storage
        self.projects = projects

    def pop(self) -> Any:
        if self.marks and len(self.stack) <= self.marks[-1]:
            raise IndexError("a value is missing before a mark")
        return self.stack.pop()

    def pop_to_mark(self) -> list[Any]:
        start = self.marks.pop()
        items = self.stack[start:]
        del self.stack[start:]
        return items

    def top(self) -> Any:
        return self.stack[-1]


def _shown(module: str, name: str) -> str:
    """Return a name of the file's own choosing, made safe for a terminal."""
    text = "".join(c if c.isprintable() else "?" for c in f"{module}.{name}")
    return text if len(text) <= _SHOWN_CHARACTERS else f"{text[:_SHOWN_CHARACTERS]}…"


def _find(machine: _Machine, module: Any, name: Any) -> GlobalRef:
    if not isinstance(module, str) or not isinstance(name, str):
        raise ValueError("a class has no name")
    ref = global_from_name(module, name)
    if ref is None and machine.projects:
        ref = project_class(module, name)
    if ref is None:
        raise RefusedError(f"wants {_shown(module, name)}", foreign_project(module))
    return ref


def _called(target: Any, args: Any, kwargs: Any = None) -> Any:
    """Return what a call would have made, as inert data."""
    if not isinstance(target, GlobalRef):
        raise RefusedError("calls something that is not a class or function")
    if not isinstance(args, tuple):
        raise ValueError("the arguments of a call are not a tuple")
    if kwargs:
        raise RefusedError(f"calls {target.path} with keyword arguments")
    if target.kind == "function" and target.name in BUILDERS:
        return BUILDERS[target.name](args)
    if target.kind == "bookkeeping":
        return Record(target, args)
    if target.kind != "network":
        raise RefusedError(f"calls {target.path}")
    if args:  # a constructor of Ultralytics evaluates text of its configuration as code
        raise RefusedError(f"calls the constructor of {target.path}, which can run code")
    return Record(target)


def _on_nothing(machine: _Machine, argument: Any) -> None:
    """PROTO and FRAME."""


def _on_mark(machine: _Machine, argument: Any) -> None:
    machine.marks.append(len(machine.stack))


def _on_pop(machine: _Machine, argument: Any) -> None:
    # POP on a mark drops the mark, as the protocol says.
    if machine.marks and machine.marks[-1] == len(machine.stack):
        machine.marks.pop()
    else:
        machine.pop()


def _on_pop_mark(machine: _Machine, argument: Any) -> None:
    machine.pop_to_mark()


def _on_dup(machine: _Machine, argument: Any) -> None:
    machine.stack.append(machine.top())


def _on_put(machine: _Machine, argument: Any) -> None:
    machine.memo[argument] = machine.top()


def _on_memoize(machine: _Machine, argument: Any) -> None:
    machine.memo[len(machine.memo)] = machine.top()


def _on_get(machine: _Machine, argument: Any) -> None:
    machine.stack.append(machine.memo[argument])


def _on_empty_list(machine: _Machine, argument: Any) -> None:
    machine.stack.append([])


def _on_empty_tuple(machine: _Machine, argument: Any) -> None:
    machine.stack.append(())


def _on_empty_dict(machine: _Machine, argument: Any) -> None:
    machine.stack.append({})


def _on_empty_set(machine: _Machine, argument: Any) -> None:
    machine.stack.append(set())


def _on_list(machine: _Machine, argument: Any) -> None:
    machine.stack.append(machine.pop_to_mark())


def _on_tuple(machine: _Machine, argument: Any) -> None:
    machine.stack.append(tuple(machine.pop_to_mark()))


def _on_tuple1(machine: _Machine, argument: Any) -> None:
    machine.stack.append((machine.pop(),))


def _on_tuple2(machine: _Machine, argument: Any) -> None:
    second, first = machine.pop(), machine.pop()
    machine.stack.append((first, second))


def _on_tuple3(machine: _Machine, argument: Any) -> None:
    third, second, first = machine.pop(), machine.pop(), machine.pop()
    machine.stack.append((first, second, third))


def _on_frozenset(machine: _Machine, argument: Any) -> None:
    machine.stack.append(frozenset(checked_key(v) for v in machine.pop_to_mark()))


def _append(machine: _Machine, values: list[Any]) -> None:
    target = machine.top()
    if isinstance(target, Record):
        target.items.extend(values)
    elif type(target) is list:
        target.extend(values)
    else:
        raise ValueError("values are appended to something that is not a list")


def _on_append(machine: _Machine, argument: Any) -> None:
    value = machine.pop()
    _append(machine, [value])


def _on_appends(machine: _Machine, argument: Any) -> None:
    values = machine.pop_to_mark()
    _append(machine, values)


def _on_additems(machine: _Machine, argument: Any) -> None:
    values = machine.pop_to_mark()
    target = machine.top()
    if type(target) is not set:
        raise ValueError("values are added to something that is not a set")
    target.update(checked_key(v) for v in values)


def _set_pairs(target: Any, flat: list[Any]) -> Any:
    """Put key, value, key, value … into a dictionary or record and return it."""
    pairs = list(zip(flat[::2], flat[1::2], strict=True))
    if isinstance(target, Record):
        target.items.extend(pairs)
    elif isinstance(target, dict):
        for key, value in pairs:
            target[checked_key(key)] = value
    else:
        raise ValueError("pairs are set in something that is not a dictionary")
    return target


def _on_dict(machine: _Machine, argument: Any) -> None:
    machine.stack.append(_set_pairs({}, machine.pop_to_mark()))


def _on_setitem(machine: _Machine, argument: Any) -> None:
    value, key = machine.pop(), machine.pop()
    _set_pairs(machine.top(), [key, value])


def _on_setitems(machine: _Machine, argument: Any) -> None:
    flat = machine.pop_to_mark()
    _set_pairs(machine.top(), flat)


def _on_global(machine: _Machine, argument: Any) -> None:
    module, _, name = argument.partition(" ")
    machine.stack.append(_find(machine, module, name))


def _on_stack_global(machine: _Machine, argument: Any) -> None:
    name, module = machine.pop(), machine.pop()
    machine.stack.append(_find(machine, module, name))


def _on_reduce(machine: _Machine, argument: Any) -> None:
    args, target = machine.pop(), machine.pop()
    machine.stack.append(_called(target, args))


def _on_newobj_ex(machine: _Machine, argument: Any) -> None:
    kwargs, args, target = machine.pop(), machine.pop(), machine.pop()
    machine.stack.append(_called(target, args, kwargs))


def _on_inst(machine: _Machine, argument: Any) -> None:
    module, _, name = argument.partition(" ")
    target = _find(machine, module, name)
    machine.stack.append(_called(target, tuple(machine.pop_to_mark())))


def _on_obj(machine: _Machine, argument: Any) -> None:
    target, *args = machine.pop_to_mark()
    machine.stack.append(_called(target, tuple(args)))


def _on_build(machine: _Machine, argument: Any) -> None:
    state, target = machine.pop(), machine.top()
    if isinstance(target, Record):
        target.set_state(state)
    elif isinstance(target, GlobalRef):
        raise RefusedError(f"sets attributes of {target.path}")
    elif not isinstance(target, dict):  # a state_dict carries attributes that nothing reads
        raise ValueError("attributes are set on plain data")


def _on_persistent_id(machine: _Machine, argument: Any) -> None:
    machine.stack.append(machine.storage(machine.pop()))


_HANDLERS: dict[str, Callable[[_Machine, Any], None]] = {
    "PROTO": _on_nothing,
    "FRAME": _on_nothing,
    "MARK": _on_mark,
    "POP": _on_pop,
    "POP_MARK": _on_pop_mark,
    "DUP": _on_dup,
    "PUT": _on_put,
    "BINPUT": _on_put,
    "LONG_BINPUT": _on_put,
    "MEMOIZE": _on_memoize,
    "GET": _on_get,
    "BINGET": _on_get,
    "LONG_BINGET": _on_get,
    "EMPTY_LIST": _on_empty_list,
    "EMPTY_TUPLE": _on_empty_tuple,
    "EMPTY_DICT": _on_empty_dict,
    "EMPTY_SET": _on_empty_set,
    "LIST": _on_list,
    "TUPLE": _on_tuple,
    "TUPLE1": _on_tuple1,
    "TUPLE2": _on_tuple2,
    "TUPLE3": _on_tuple3,
    "FROZENSET": _on_frozenset,
    "DICT": _on_dict,
    "APPEND": _on_append,
    "APPENDS": _on_appends,
    "ADDITEMS": _on_additems,
    "SETITEM": _on_setitem,
    "SETITEMS": _on_setitems,
    "GLOBAL": _on_global,
    "STACK_GLOBAL": _on_stack_global,
    "REDUCE": _on_reduce,
    "NEWOBJ": _on_reduce,
    "NEWOBJ_EX": _on_newobj_ex,
    "INST": _on_inst,
    "OBJ": _on_obj,
    "BUILD": _on_build,
    "BINPERSID": _on_persistent_id,
}
