"""Checkpoints that load: every generation, every oddity of real files, and the assets.

What must not load stands in test_checkpoint_attacks.py.
"""

from __future__ import annotations

import copy
import os
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path, PureWindowsPath
from typing import Any

import pytest

from boxwright.errors import MissingExtraError, SourceError, UnsafeCheckpointError
from boxwright.sources.admitted import ADMITTED, RENAMED
from boxwright.sources.pickles import open_checkpoint, summarise
from boxwright.sources.rebuild import _real_classes, load_network, prepare_ultralytics

ASSETS = Path(
    os.environ.get("BOXWRIGHT_ASSETS", Path(__file__).resolve().parents[2] / "shared" / "assets")
)
CHECKPOINTS = sorted((ASSETS / "checkpoints").glob("*.pt"))
SIDE_PX = 64

# Configuration, task, head class.
GENERATIONS = (
    ("yolov3-tiny", "detect", "Detect"),
    ("yolov5n", "detect", "Detect"),
    ("yolov6n", "detect", "Detect"),
    ("yolov8n", "detect", "Detect"),
    ("yolov8n-ghost", "detect", "Detect"),
    ("yolov8n-seg", "segment", "Segment"),
    ("yolov8n-pose", "pose", "Pose"),
    ("yolov8n-obb", "obb", "OBB"),
    ("yolov8n-cls", "classify", "Classify"),
    ("yolov9t", "detect", "Detect"),
    ("yolov10n", "detect", "v10Detect"),
    ("yolo11n", "detect", "Detect"),
    ("yolo12n", "detect", "Detect"),
    ("yolo26n", "detect", "Detect"),
    ("yolo26n-seg", "segment", "Segment26"),
    ("yolo26n-pose", "pose", "Pose26"),
    ("yolo26n-obb", "obb", "OBB26"),
)
# Two layers and a one-level head: enough network for everything but the generations.
TINY = {
    "nc": 2,
    "backbone": [[-1, 1, "Conv", [8, 3, 2]], [-1, 1, "Conv", [8, 3, 2]]],
    "head": [[[1], 1, "Detect", ["nc"]]],
}


@pytest.fixture(scope="module")
def torch() -> Iterator[Any]:
    """torch on one thread, with ultralytics imported as Boxwright does it."""
    for name in ("torch", "ultralytics"):
        pytest.importorskip(name, reason=f"{name} is not installed: no network can be built")
    prepare_ultralytics()
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # these networks are too small for more
    yield torch
    torch.set_num_threads(threads)


@pytest.fixture
def tiny(torch: Any) -> Any:
    from ultralytics.nn.tasks import DetectionModel

    torch.manual_seed(7)
    return DetectionModel(copy.deepcopy(TINY), verbose=False)


def _save(torch: Any, path: Path, model: Any, **fields: Any) -> Path:
    torch.save({"model": model, "train_args": {"imgsz": 96}, **fields}, path)
    return path


def _tensors(output: Any) -> list[Any]:
    """Flatten whatever a network returns into its tensors, in a fixed order."""
    if isinstance(output, dict):
        return [t for key in sorted(output) for t in _tensors(output[key])]
    if isinstance(output, (list, tuple)):
        return [t for part in output for t in _tensors(part)]
    return [output]


def _assert_same(torch: Any, left: Any, right: Any, side_px: int = SIDE_PX) -> None:
    images = torch.rand(1, 3, side_px, side_px, generator=torch.Generator().manual_seed(3))
    with torch.inference_mode():
        ours, theirs = _tensors(left(images)), _tensors(right(images))
    assert len(ours) == len(theirs) > 0
    for a, b in zip(ours, theirs, strict=True):
        assert a.dtype == b.dtype == torch.float32
        assert torch.equal(a, b)


def _rewritten(path: Path, *changes: tuple[bytes, bytes]) -> Path:
    """Change the text of a checkpoint's pickle, as other releases would have written it."""
    with zipfile.ZipFile(path) as old:
        members = {info.filename: old.read(info) for info in old.infolist()}
    with zipfile.ZipFile(path, "w") as new:
        for name, data in members.items():
            for before, after in changes if name.endswith("/data.pkl") else ():
                assert before in data
                data = data.replace(before, after)
            new.writestr(name, data)
    return path


@pytest.mark.parametrize(("config", "task", "head"), GENERATIONS, ids=[g[0] for g in GENERATIONS])
def test_generation_loads(torch: Any, tmp_path: Path, config: str, task: str, head: str) -> None:
    from ultralytics.nn import tasks

    names = {"segment": "SegmentationModel", "pose": "PoseModel", "obb": "OBBModel"}
    names |= {"classify": "ClassificationModel", "detect": "DetectionModel"}
    torch.manual_seed(1)
    model = getattr(tasks, names[task])(f"{config}.yaml", verbose=False).half()
    parameters = sum(p.numel() for p in model.parameters())
    path = tmp_path / "made.pt"
    _save(torch, path, model, date="2026-01-02T03:04:05", version="8.4.190")
    network = load_network(path)
    assert (network.task, network.head_class, network.input_size) == (task, head, (96, 96))
    assert network.class_names == tuple(model.names.values())
    _assert_same(torch, network.model, model.float().eval())
    network.model.fuse(verbose=False)
    model.fuse(verbose=False)
    _assert_same(torch, network.model, model)
    found = summarise(path)
    assert (found.task, found.head_class, found.strides) == (task, head, network.strides)
    assert (found.model_class, found.class_names) == (names[task], network.class_names)
    assert (found.parameter_count, found.input_size) == (parameters, (96, 96))
    assert (found.version, found.date) == ("8.4.190", "2026-01-02T03:04:05")
    assert found.yaml["backbone"] == model.yaml["backbone"] and not found.has_ema


@pytest.mark.skipif(not CHECKPOINTS, reason=f"no checkpoints in {ASSETS} (set BOXWRIGHT_ASSETS)")
@pytest.mark.parametrize("path", CHECKPOINTS, ids=lambda p: p.stem)
def test_real_checkpoint_equals_ultralytics(torch: Any, path: Path) -> None:
    from ultralytics.nn.tasks import torch_safe_load

    fields, _ = torch_safe_load(str(path))
    network = load_network(path)
    theirs = (fields.get("ema") or fields["model"]).float().eval()
    _assert_same(torch, network.model, theirs, side_px=320)
    assert network.class_names == tuple(theirs.names.values())
    assert summarise(path).parameter_count == sum(p.numel() for p in theirs.parameters())
    assert network.strides == summarise(path).strides == (8, 16, 32)


def _with_bookkeeping(model: Any) -> None:
    import numpy as np
    from ultralytics.nn.modules import Detect
    from ultralytics.utils import IterableSimpleNamespace

    model.args = IterableSimpleNamespace(box=7.5, cls=0.5, dfl=1.5, overlap_mask=True)
    model.criterion = model.init_criterion()
    model.metrics = {"map": np.float64(0.5), "curve": np.arange(3.0), "path": Path("a/b")}
    model.model[-1].detect = Detect.forward  # as heads of Ultralytics 8.0 kept it


def _with_hook(model: Any) -> None:
    model.model[0]._forward_hooks[0] = model.model[1]
    model.model[0]._forward_pre_hooks[1] = model.model[1]


def _tied(model: Any) -> None:
    model.model[1].conv.bias = model.model[1].bn.bias


def _run_once(model: Any) -> None:
    model.eval()(
        next(model.parameters()).new_zeros(1, 3, SIDE_PX, SIDE_PX)
    )  # leaves anchors behind


ODDITIES: tuple[tuple[str, Callable[[Any], Any]], ...] = (
    ("as it is", lambda model: None),
    ("bfloat16", lambda model: model.bfloat16()),
    ("double", lambda model: model.double()),
    ("after inference", _run_once),
    ("fused", lambda model: model.fuse(verbose=False)),
    ("bookkeeping", _with_bookkeeping),
    ("tied parameters", _tied),
    ("old end2end attribute", lambda model: vars(model).update(end2end=True)),
    ("Windows path", lambda model: vars(model).update(pt_path=PureWindowsPath("C:/best.pt"))),
)


@pytest.mark.parametrize(("name", "change"), ODDITIES, ids=[o[0] for o in ODDITIES])
def test_oddity_loads(torch: Any, tiny: Any, tmp_path: Path, name: str, change: Any) -> None:
    change(tiny)
    network = load_network(_save(torch, tmp_path / "odd.pt", tiny))
    _assert_same(torch, network.model, tiny.float().eval())
    assert all(p.dtype == torch.float32 for p in network.model.parameters())
    assert not network.model.training and not hasattr(network.model, "criterion")


def test_sharing_survives(torch: Any, tiny: Any, tmp_path: Path) -> None:
    from boxwright.sources.rebuild import rebuild

    _tied(tiny)
    whole = torch.arange(12.0)
    tiny.register_buffer("rows", whole.view(3, 4))
    tiny.register_buffer("column", whole[2::4])
    tiny.loop = [tiny.model[0], tiny.names]
    with open_checkpoint(_save(torch, tmp_path / "tied.pt", tiny)) as root:
        model = rebuild(root["model"])
    assert model.model[1].conv.bias is model.model[1].bn.bias
    assert model.loop[0] is model.model[0] and model.loop[1] is model.names
    model.rows[0, 2] = 50
    assert model.column.tolist() == [50, 6, 10]


def test_hooks_are_dropped(torch: Any, tiny: Any, tmp_path: Path) -> None:
    clean = copy.deepcopy(tiny).float().eval()
    _with_hook(tiny)
    network = load_network(_save(torch, tmp_path / "hooked.pt", tiny))
    layer = network.model.model[0]
    assert not layer._forward_hooks and not layer._forward_pre_hooks
    _assert_same(torch, network.model, clean)


def test_averaged_weights_come_first(torch: Any, tiny: Any, tmp_path: Path) -> None:
    averaged = copy.deepcopy(tiny)
    torch.nn.init.constant_(averaged.model[0].conv.weight, 0.1)
    path = _save(torch, tmp_path / "last.pt", tiny, ema=averaged, optimizer={"state": {}})
    _assert_same(torch, load_network(path).model, averaged.float().eval())
    assert summarise(path).has_ema


@pytest.mark.parametrize("bare", [True, False], ids=["bare network", "no training arguments"])
def test_little_is_enough(torch: Any, tiny: Any, tmp_path: Path, bare: bool) -> None:
    torch.save(tiny if bare else {"model": tiny}, tmp_path / "little.pt")
    network = load_network(tmp_path / "little.pt")
    assert network.input_size == (640, 640) and network.class_names == ("0", "1")
    found = summarise(tmp_path / "little.pt")
    assert (found.input_size, found.version, found.date) == (None, None, None)


OLD_NAMES: tuple[tuple[str, tuple[tuple[bytes, bytes], ...]], ...] = (
    (
        "flat modules of 8.0",
        (
            (b"cultralytics.nn.modules.conv\n", b"cultralytics.nn.modules\n"),
            (b"cultralytics.nn.modules.head\n", b"cultralytics.nn.modules\n"),
        ),
    ),
    ("YOLOv10 fork", ((b"tasks\nDetectionModel\n", b"tasks\nYOLOv10DetectionModel\n"),)),
    (
        "Silence",
        ((b"torch.nn.modules.linear\nIdentity", b"ultralytics.nn.modules.block\nSilence"),),
    ),
    ("ultralytics.yolo", ((b"cultralytics.utils\n", b"cultralytics.yolo.utils\n"),)),
)


@pytest.mark.parametrize(("name", "changes"), OLD_NAMES, ids=[o[0] for o in OLD_NAMES])
@pytest.mark.parametrize("trust", [False, True], ids=["safe", "trusted"])
def test_old_names(
    torch: Any, tiny: Any, tmp_path: Path, name: str, changes: Any, trust: bool
) -> None:
    _with_bookkeeping(tiny)
    tiny.model[0].act = torch.nn.Identity()
    path = _rewritten(_save(torch, tmp_path / "old.pt", tiny), *changes)
    _assert_same(torch, load_network(path, trust=trust).model, tiny.float().eval())


def test_saved_with_dill(torch: Any, tiny: Any, tmp_path: Path) -> None:
    by_dill = b"cdill._dill\n_load_type\nX\x03\x00\x00\x00set\x85R"
    path = _rewritten(_save(torch, tmp_path / "dill.pt", tiny), (b"c__builtin__\nset\n", by_dill))
    _assert_same(torch, load_network(path).model, tiny.float().eval())


def test_trust_loads_what_is_not_admitted(torch: Any, tiny: Any, tmp_path: Path) -> None:
    path = _save(torch, tmp_path / "odd.pt", tiny, best_fitness=Fraction(1, 3))
    with pytest.raises(UnsafeCheckpointError, match=r"fractions\.Fraction.*--trust-checkpoint"):
        load_network(path)
    network = load_network(path, trust=True)
    assert (network.task, network.input_size, network.strides) == ("detect", (96, 96), (4,))
    _assert_same(torch, network.model, tiny.float().eval())


NOT_NETWORKS: tuple[tuple[str, Callable[[Any], Any], str], ...] = (
    ("weights only", lambda m: m.state_dict(), "it holds weights only, no network"),
    ("weights as model", lambda m: {"model": m.state_dict()}, "it holds weights only, no network"),
    ("layer", lambda m: m.model[0], "it holds no Ultralytics network"),
    ("number", lambda m: 5, "it holds no Ultralytics network"),
    ("modelopt", lambda m: {"model": m, "modelopt": {"a": 1}}, "needs ModelOpt"),
)


@pytest.mark.parametrize(("name", "root", "found"), NOT_NETWORKS, ids=[n[0] for n in NOT_NETWORKS])
def test_no_network(
    torch: Any, tiny: Any, tmp_path: Path, name: str, root: Any, found: str
) -> None:
    torch.save(root(tiny), tmp_path / "none.pt")
    for load in (summarise, load_network):
        with pytest.raises(SourceError, match=found):
            load(tmp_path / "none.pt")
    with pytest.raises(SourceError, match=r"Ultralytics network|ModelOpt"):
        load_network(tmp_path / "none.pt", trust=True)


def test_trusted_garbage_is_one_line(torch: Any, tmp_path: Path) -> None:
    (tmp_path / "bad.pt").write_bytes(b"\x80\x02garbage")
    for path in (tmp_path / "bad.pt", tmp_path / "missing.pt"):
        with pytest.raises(SourceError) as caught:
            load_network(path, trust=True)
        assert "\n" not in str(caught.value)


def test_every_admitted_layer_is_real(torch: Any) -> None:
    wanted = {(package, name) for package, names in ADMITTED.items() for name in names}
    missing = {name for _, name in wanted - _real_classes().keys()}
    assert missing == set(RENAMED)
    assert set(RENAMED.values()) <= _real_classes().keys()


@pytest.fixture
def no_torch(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setitem(sys.modules, "torch", None)
    yield


def test_missing_extra_is_named(no_torch: None) -> None:
    with pytest.raises(MissingExtraError, match=r"torch.*boxwright\[export\]"):
        prepare_ultralytics()


def test_summary_needs_no_torch(torch: Any, tiny: Any, tmp_path: Path) -> None:
    path = _save(torch, tmp_path / "tiny.pt", tiny)
    code = (
        "import sys; from pathlib import Path; from boxwright.sources.pickles import summarise; "
        "summarise(Path(sys.argv[1])); print(sorted({'torch', 'ultralytics'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


def test_arrays_equal_torch(torch: Any, tmp_path: Path) -> None:
    source = {
        name: (torch.rand(3, 4, generator=torch.Generator().manual_seed(1)) * 9).to(dtype).t()
        for name, dtype in vars(torch).items()
        if name in ("float16", "bfloat16", "float32", "float64", "int64", "int32", "int16")
        or name in ("int8", "uint8", "bool")
    }
    assert len(source) == 10
    torch.save({**source, "empty": torch.empty(0, 3), "one": torch.tensor(4.5)}, tmp_path / "t.pt")
    with open_checkpoint(tmp_path / "t.pt") as root:
        for name, tensor in source.items():
            assert root[name].array().tolist() == tensor.tolist(), name
            assert (root[name].dtype, root[name].shape) == (name, (4, 3))
        assert root["empty"].array().shape == (0, 3) and root["one"].array() == 4.5


def test_protocol_4_and_plain_values(torch: Any, tmp_path: Path) -> None:
    import datetime

    import numpy as np

    values = {
        "set": {1, "a"},
        "frozen": frozenset({2}),
        "complex": 1 + 2j,
        "bytes": b"\x00\xff",
        "bytearray": bytearray(b"xy"),
        "slice": slice(1, None, 2),
        "size": torch.Size([1, 2]),
        "when": datetime.datetime(2026, 1, 2, 3, 4, tzinfo=datetime.timezone.utc),
        "number": np.float32(0.5),
        "count": np.int64(7),
        "tuple": (1, (2, [3])),
        "big": 1 << 80,
    }
    for protocol in (2, 3, 4, 5):
        torch.save({**values, "home": Path("/a/b")}, tmp_path / "v.pt", pickle_protocol=protocol)
        with open_checkpoint(tmp_path / "v.pt") as root:
            assert root == {**values, "size": (1, 2), "home": str(Path("/a/b"))}
