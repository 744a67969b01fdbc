"""Turns the inert data of an Ultralytics checkpoint into the real torch network.

Why not `torch.load`: a pickle may call any admitted class, and Ultralytics' own constructors
evaluate text of their configuration as code (`parse_model` runs `eval` on `activation`), so even
torch's `weights_only` with a list of these classes runs what a hostile file says. Here no
constructor of a layer ever sees data of the file and nothing is called by a name of the file: real
classes come from an explicit table, are made empty, and get their attributes as data.
"""

from __future__ import annotations

import atexit
import contextlib
import inspect
import os
import pickle
import shutil
import tempfile
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from boxwright.errors import MissingExtraError, SourceError, UnsafeCheckpointError
from boxwright.sources.admitted import ADMITTED, NETWORK_MODELS, RENAMED
from boxwright.sources.inert import MemberRef, Record, RefusedError, Storage, TensorRecord
from boxwright.sources.pickles import (
    DAMAGE,
    TRUST_ADVICE,
    check_not_quantised,
    class_names_from,
    damaged,
    input_size_from,
    network_record,
    no_network,
    open_checkpoint,
    task_from_head,
)

if TYPE_CHECKING:
    import torch

__all__ = ["Network", "load_network", "prepare_ultralytics", "rebuild"]

_DEFAULT_SIDE_PX = 640  # Ultralytics' own default
_DROPPED = object()  # stands for a value that has no real counterpart
_PLAIN = (bool, int, float, complex, str, bytes)
_CHILDREN = ("_parameters", "_buffers", "_modules")
# Attributes that torch's own Module keeps beside its children; hooks are never taken from a file.
_KEPT = frozenset({"training", "_non_persistent_buffers_set"})
# Ultralytics writes the text of a layer's class here, over the method `Module.type`.
_TEXT_OVER_METHOD = "type"
_FUSED_FORWARDS = frozenset({"forward", "forward_fuse"})


@dataclass(frozen=True)
class Network:
    """A network that is ready to run, and what its checkpoint says of it.

    Attributes:
        model: In float32 and evaluation mode, on the CPU.
        task: `detect`, `segment`, `pose`, `obb` or `classify`.
        class_names: One per class id.
        strides: Of the levels, in pixels; empty for a classifier.
        input_size: (height, width) in pixels that it was trained with, or 640.
        head_class: Simple name of the last layer's class.
    """

    model: torch.nn.Module
    task: str
    class_names: tuple[str, ...]
    strides: tuple[int, ...]
    input_size: tuple[int, int]
    head_class: str


def prepare_ultralytics() -> None:
    """Import torch and ultralytics so that they neither install anything nor go online.

    Sets environment variables of the process: `YOLO_AUTOINSTALL`, `YOLO_OFFLINE`, `YOLO_VERBOSE`,
    and `YOLO_CONFIG_DIR` to a folder that is removed at exit, unless it is set already.

    Raises:
        MissingExtraError: One of them, or what they need, is not installed.
    """
    os.environ["YOLO_AUTOINSTALL"] = "false"
    os.environ["YOLO_OFFLINE"] = "true"
    os.environ["YOLO_VERBOSE"] = "false"
    if not os.environ.get("YOLO_CONFIG_DIR"):
        folder = tempfile.mkdtemp(prefix="boxwright-ultralytics-")
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
        os.environ["YOLO_CONFIG_DIR"] = folder
    try:
        import torch  # noqa: F401
        import ultralytics.nn.tasks  # noqa: F401
    except ModuleNotFoundError as error:
        raise MissingExtraError(error.name or "ultralytics", "export") from error


def load_network(path: Path, *, trust: bool = False) -> Network:
    """Load the network of an Ultralytics checkpoint; the averaged weights where it has them.

    Args:
        path: The `.pt` file.
        trust: Unpickle it with `torch.load`, which runs whatever code the file holds.

    Raises:
        SourceError: The file is missing, damaged or holds no supported network.
        UnsafeCheckpointError: It wants a class or function that is not admitted.
        MissingExtraError: torch or ultralytics is not installed.
    """
    prepare_ultralytics()
    try:
        model, train_args = _trusted_model(path) if trust else _safe_model(path)
        return _finished(model, train_args, path)
    except RefusedError as error:
        raise UnsafeCheckpointError(str(path), f"it {error}", TRUST_ADVICE) from error
    except (RuntimeError, *DAMAGE) as error:
        raise damaged(path, error) from error


def rebuild(record_tree: Record) -> torch.nn.Module:
    """Return the real network that a record of one describes.

    Its tensors share storage where they shared it in the file. Attributes that have no real
    counterpart (loss, training arguments, hooks) are left out.

    Raises:
        RefusedError: A layer would get an attribute in place of one of its methods.
        SourceError, ValueError, KeyError, TypeError, AttributeError, RuntimeError, RecursionError:
            The data is damaged.
    """
    return _Rebuilder().module(record_tree)


class _Rebuilder:
    """One pass over a record tree; what was made once is made once, so that sharing survives."""

    def __init__(self) -> None:
        import torch

        self.torch: Any = torch
        self.classes = _real_classes()
        self.made: dict[int, Any] = {}  # by id of the record, which the tree keeps alive
        self.bases: dict[str, Any] = {}  # by key of the storage

    def value(self, value: Any) -> Any:
        """Return the real counterpart of inert data, or `_DROPPED`."""
        if value is None or isinstance(value, _PLAIN):
            return value
        if id(value) in self.made:
            return self.made[id(value)]
        if isinstance(value, TensorRecord):
            return self.tensor(value)
        if isinstance(value, Record):
            return self.module(value) if value.ref.kind == "network" else _DROPPED
        if isinstance(value, dict):
            return self.mapping(value)
        if isinstance(value, list):
            made: list[Any] = []
            self.made[id(value)] = made
            made.extend(self.item(v) for v in value)
            return made
        if isinstance(value, (tuple, set, frozenset)):
            made_items = type(value)(self.item(v) for v in value)
            self.made[id(value)] = made_items
            return made_items
        return value if isinstance(value, (slice, bytearray)) else _DROPPED

    def item(self, value: Any) -> Any:
        """Return the counterpart of a list's item; a dropped one leaves None in its place."""
        made = self.value(value)
        return None if made is _DROPPED else made

    def mapping(self, value: dict[Any, Any]) -> dict[Any, Any]:
        made: dict[Any, Any] = OrderedDict() if isinstance(value, OrderedDict) else {}
        self.made[id(value)] = made
        for key, inert in value.items():
            real = self.value(inert)
            if real is not _DROPPED and isinstance(key, (str, int, float, tuple, type(None))):
                made[key] = real
        return made

    def tensor(self, record: TensorRecord) -> Any:
        """Return a tensor on the shared storage; a parameter where the file had one."""
        typed = self.base(record.storage).view(getattr(self.torch, record.dtype))
        tensor = typed.as_strided(record.shape, record.stride, record.offset)
        trained = record.requires_grad and tensor.is_floating_point()
        if record.is_parameter:
            tensor = self.torch.nn.Parameter(tensor, requires_grad=trained)
        elif trained:
            tensor.requires_grad_()
        self.made[id(record)] = tensor
        return tensor

    def base(self, storage: Storage) -> Any:
        """Return the tensor over a whole storage, one for all that share it."""
        key = f"{storage.key}/{storage.dtype}"
        if key not in self.bases:
            base = self.torch.from_numpy(storage.elements())
            # NumPy has no bfloat16: its bits come as uint16.
            self.bases[key] = base.view(getattr(self.torch, storage.dtype))
        return self.bases[key]

    def module(self, record: Record) -> Any:
        """Return the real layer of a record, made empty and filled with data."""
        if id(record) in self.made:
            return self.made[id(record)]
        if record.ref.kind != "network" or not isinstance(record.state, dict):
            raise ValueError(f"{record.ref.path} has no attributes")
        module_type = self.torch.nn.Module
        cls = self.classes.get(RENAMED.get(record.name, (record.ref.package, record.name)))
        if cls is None:
            raise ValueError(f"the installed {record.ref.package} has no layer {record.name}")
        module = module_type.__new__(cls)
        module_type.__init__(module)
        self.made[id(record)] = module
        own = frozenset(vars(module))
        state: dict[str, Any] = {
            key: self.children(key, record.state.get(key)) for key in _CHILDREN
        }
        for key, inert in record.state.items():
            if not isinstance(key, str):
                raise ValueError(f"an attribute of {record.name} has no name")
            if key in own and key not in _KEPT:
                continue  # children above; hooks are dropped
            if key == "forward":
                state[key] = _fused_forward(module, record, inert)
            elif key in _KEPT or _may_hold(module_type, cls, key, inert):
                real = self.value(inert)
                if real is not _DROPPED:
                    state[key] = real
        # Only torch's own code fills in what old checkpoints lack.
        base: Any = next(c for c in cls.__mro__ if c.__module__.startswith("torch.nn."))
        base.__setstate__(module, state)
        if record.name == "AAttn" and "all_head_dim" not in state:  # early YOLO12 had none
            module.all_head_dim = module.head_dim * module.num_heads
        return module

    def children(self, key: str, inert: Any) -> dict[str, Any]:
        """Return the parameters, buffers or layers of a layer, each of the right kind."""
        if inert is None:
            return {}
        if not isinstance(inert, dict):
            raise ValueError(f"{key} is not a dictionary")
        nn = self.torch.nn
        kinds = {"_parameters": nn.Parameter, "_buffers": self.torch.Tensor, "_modules": nn.Module}
        made = self.mapping(inert)
        for name, child in made.items():
            if not isinstance(name, str):
                raise ValueError(f"{key} has an entry without a name")
            if child is not None and not isinstance(child, kinds[key]):
                raise ValueError(f"{key} holds something else in {name[:40]}")
        return made


def _may_hold(module_type: Any, cls: type, key: str, inert: Any) -> bool:
    """Say whether an attribute of the file may stand in a layer's own dictionary.

    False drops it: a property of the class reads its own value whatever stands there, as `end2end`
    of checkpoints before Ultralytics 8.4 does.

    Raises:
        RefusedError: It would stand in for a method.
    """
    missing = object()
    found = inspect.getattr_static(cls, key, missing)
    if found is missing:
        return True
    if isinstance(found, property):
        return False
    if key == _TEXT_OVER_METHOD and isinstance(inert, str):
        return True
    method = callable(found) or hasattr(found, "__get__") or hasattr(found, "__func__")
    if method or key.startswith("__") or hasattr(module_type, key):
        raise RefusedError(f"replaces {cls.__name__}.{key[:40]}, which its class defines")
    return True


def _fused_forward(module: Any, record: Record, inert: Any) -> Any:
    """Return the layer's own fused forward, as a checkpoint saved after `fuse()` selects it.

    Raises:
        RefusedError: It is anything else.
    """
    own = isinstance(inert, MemberRef) and inert.owner is record and inert.name in _FUSED_FORWARDS
    function = inspect.getattr_static(type(module), inert.name, None) if own else None
    if not inspect.isfunction(function):
        raise RefusedError(f"replaces {record.name}.forward, which its class defines")
    return function.__get__(module)


def _real_classes() -> dict[tuple[str, str], type]:
    """Return the real classes of the admitted table by (package, simple name)."""
    import torch
    from ultralytics.nn import modules, tasks
    from ultralytics.nn.modules import activation, block, conv, head, transformer

    homes: dict[str, tuple[Any, ...]] = {
        "torch": (torch.nn, torch.nn.modules.linear),
        "ultralytics": (modules, block, conv, head, transformer, activation),
    }
    classes: dict[tuple[str, str], type] = {}
    for package, names in ADMITTED.items():
        for name in names - RENAMED.keys():
            places = (tasks,) if name in NETWORK_MODELS else homes[package]
            found = next((getattr(p, name) for p in places if hasattr(p, name)), None)
            if found is not None:  # a release may lack a layer of another one
                classes[package, name] = found
    return classes


def _safe_model(path: Path) -> tuple[Any, Any]:
    """Rebuild the network of a checkpoint from inert data; return it and the training arguments."""
    with open_checkpoint(path) as root:
        record = network_record(root, path)
        train_args = root.get("train_args") if isinstance(root, dict) else None
        return rebuild(record), train_args or record.get("args")


def _trusted_model(path: Path) -> tuple[Any, Any]:
    """Unpickle a checkpoint with full rights; return its network and training arguments."""
    import torch
    from ultralytics.nn.tasks import BaseModel

    if not path.is_file():
        raise SourceError(str(path), "there is no such file", "check the path")
    failures = (RuntimeError, pickle.UnpicklingError, ImportError, OSError, *DAMAGE)
    try:
        with _legacy_names():
            root = torch.load(path, map_location="cpu", weights_only=False)
    except failures as error:
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:160]}"
        raise SourceError(
            str(path), f"torch cannot load it ({reason})", "check the file and what it needs"
        ) from error
    # A whole YOLO object, saved as it is, holds its network as `model`.
    network = root if isinstance(root, BaseModel) else getattr(root, "model", None)
    fields = root if isinstance(root, dict) else {"model": network}
    check_not_quantised(fields, path)
    model = fields.get("ema") if fields.get("ema") is not None else fields.get("model")
    if not isinstance(model, BaseModel):
        raise no_network(path)
    return model, fields.get("train_args") or getattr(model, "args", None)


@contextlib.contextmanager
def _legacy_names() -> Iterator[None]:
    """Let module paths of early Ultralytics 8.0, and classes that were renamed, be found."""
    from ultralytics.nn.tasks import temporary_modules

    modules = {
        "ultralytics.yolo.utils": "ultralytics.utils",
        "ultralytics.yolo.v8": "ultralytics.models.yolo",
        "ultralytics.yolo.data": "ultralytics.data",
    }
    attributes = {
        "ultralytics.nn.modules.block.Silence": "torch.nn.Identity",
        "ultralytics.nn.tasks.YOLOv10DetectionModel": "ultralytics.nn.tasks.DetectionModel",
        "ultralytics.utils.loss.v10DetectLoss": "ultralytics.utils.loss.E2EDetectLoss",
    }
    with temporary_modules(modules, attributes):
        yield


def _finished(model: Any, train_args: Any, path: Path) -> Network:
    """Bring a network to the state that inference needs, and say what it is."""
    import torch

    model = model.float().eval()
    head = model.model[-1]
    head_class = type(head).__name__
    task = task_from_head(head_class, path)
    model.task = task
    if not hasattr(model, "stride"):
        model.stride = torch.tensor([32.0])
    for layer in model.modules():
        if hasattr(layer, "inplace"):
            layer.inplace = True
        elif isinstance(layer, torch.nn.Upsample) and not hasattr(layer, "recompute_scale_factor"):
            layer.recompute_scale_factor = None  # torch before 1.11 had none
    class_count = head.linear.out_features if task == "classify" else head.nc
    levels = [] if task == "classify" else head.stride.reshape(-1).tolist()
    return Network(
        model=model,
        task=task,
        class_names=class_names_from(getattr(model, "names", None), class_count),
        strides=tuple(int(s) for s in levels),
        input_size=input_size_from(_as_fields(train_args)) or (_DEFAULT_SIDE_PX, _DEFAULT_SIDE_PX),
        head_class=head_class,
    )


def _as_fields(train_args: Any) -> Any:
    """Return training arguments as a dictionary or record, whatever the file held."""
    if isinstance(train_args, (dict, Record)) or train_args is None:
        return train_args
    return dict(vars(train_args))
