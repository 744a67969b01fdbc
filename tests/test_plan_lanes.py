"""Arrays on the GPU, several contexts, letterboxing and decoding there: on a fake CUDA."""

from __future__ import annotations

import ctypes
import hashlib
import sys
import threading
from types import SimpleNamespace

import cv2
import numpy as np
import onnx
import pytest
from fake_tensorrt import FakeCuda, fake_tensorrt, network_of
from kernel_on_host import FakeDriver, HostKernel
from test_tensorrt_backend import H100, PLAN, feed, record

from boxwright import catalog, gpu_preprocess
from boxwright.backends import BackendOptions
from boxwright.backends import tensorrt as backend_module
from boxwright.device_arrays import DeviceArray, is_on_device
from boxwright.engine_record import record_bytes, sidecar_path
from boxwright.errors import BackendError, ImageError, MissingExtraError
from boxwright.loading import load
from boxwright.sample import generate_page, onnx_file
from boxwright.stream import Stream
from boxwright.stream import gpu_decode as gpu_decode_module
from boxwright.stream.decoding import Encoded
from boxwright.stream.gpu_decode import GpuDecoder


@pytest.fixture
def cuda() -> FakeCuda:
    return FakeCuda()


@pytest.fixture
def backend(tmp_path, monkeypatch, cuda):
    """A plan of 1 to 4 rows that doubles them."""
    plan = tmp_path / "a.plan"
    plan.write_bytes(PLAN)
    sidecar_path(plan).write_bytes(record_bytes(record()))
    module = fake_tensorrt(cuda, most=4, free=True)
    monkeypatch.setattr(backend_module, "load_tensorrt", lambda runtime: module)
    monkeypatch.setattr(backend_module, "cuda_runtime", lambda: cuda)
    monkeypatch.setattr(backend_module, "find_gpu", lambda: H100)
    opened = catalog.backend("tensorrt").open(plan, BackendOptions())
    yield opened
    opened.close()


class OnDevice:
    """An array in the fake's device memory, as other libraries hand it over."""

    def __init__(self, cuda: FakeCuda, array: np.ndarray, **changes: object) -> None:
        self._address = cuda.cudaMalloc(array.nbytes)[1]
        ctypes.memmove(self._address, array.ctypes.data, array.nbytes)
        cuda.calls.pop()
        facts = {
            "shape": array.shape,
            "typestr": array.dtype.str,
            "data": (self._address, False),
            "strides": None,
            "version": 3,
            "stream": None,
        }
        self.__cuda_array_interface__ = {**facts, **changes}

    @property
    def address(self) -> int:
        return self._address


def orders(cuda: FakeCuda, *names: str) -> list[str]:
    return [c for c in cuda.calls if c in names]


def test_an_array_on_the_gpu_is_read_where_it_lies(backend, cuda):
    """An address that comes again is captured for itself; until then it is copied across."""
    given = feed(2)
    device = OnDevice(cuda, given["in"])
    for _ in range(6):
        assert np.array_equal(backend.infer({"in": device})["out"], given["in"] * 2)
    assert orders(cuda, "copy_across") == ["copy_across"] * 2
    assert "copy_in" not in cuda.calls
    assert cuda.calls.count("capture") == 2, "the own buffer's graph, then the address's"
    assert cuda.calls[-4:].count("replay") == 1


def test_addresses_that_never_come_back_are_not_captured(backend, cuda):
    for first in range(12):
        given = feed(2, first)
        device = OnDevice(cuda, given["in"])
        assert np.array_equal(backend.infer({"in": device})["out"], given["in"] * 2)
    assert cuda.calls.count("capture") == 1 and cuda.calls.count("copy_across") == 12


def test_at_most_eight_addresses_are_captured(backend, cuda):
    devices = [OnDevice(cuda, feed(2, n)["in"]) for n in range(12)]
    for _ in range(5):
        for number, device in enumerate(devices):
            found = backend.infer({"in": device})["out"]
            assert np.array_equal(found, feed(2, number)["in"] * 2)
    assert cuda.calls.count("capture") == 8


def test_host_and_gpu_arrays_take_turns(backend, cuda):
    device = OnDevice(cuda, feed(3, 7.0)["in"])
    for _ in range(4):
        assert np.array_equal(backend.infer({"in": device})["out"], feed(3, 7.0)["in"] * 2)
        assert np.array_equal(backend.infer(feed(2))["out"], feed(2)["in"] * 2)


def test_the_owners_stream_is_waited_for(backend, cuda):
    backend.infer({"in": OnDevice(cuda, feed(2)["in"], stream=1)})
    waits = orders(cuda, "cudaStreamWaitEvent", "copy_across")
    assert waits == ["cudaStreamWaitEvent", "copy_across"]
    cuda.calls.clear()
    backend.infer({"in": OnDevice(cuda, feed(2)["in"])})
    assert "cudaStreamWaitEvent" not in cuda.calls, "no stream, nothing to wait for"


@pytest.mark.parametrize(
    ("array", "changes", "words"),
    [
        (np.zeros((2, 3)), {}, "in is float64; feed float32"),
        (np.zeros((9, 3), np.float32), {}, r"\(9, 3\); the plan takes \[1, 3\] to \[4, 3\]"),
        (np.zeros((2, 6), np.float32), {"shape": (2, 3), "strides": (24, 8)}, "in has gaps"),
        (np.zeros((2, 3), np.float32), {"mask": object()}, "in has a mask"),
    ],
    ids=["dtype", "shape", "strides", "mask"],
)
def test_a_wrong_array_on_the_gpu_is_refused(backend, cuda, array, changes, words):
    with pytest.raises(BackendError, match=words):
        backend.infer({"in": OnDevice(cuda, array, **changes)})
    assert np.array_equal(backend.infer(feed(2))["out"], feed(2)["in"] * 2), "it goes on"


def test_an_array_on_another_gpu_is_refused(backend, cuda):
    device = OnDevice(cuda, feed(2)["in"])
    cuda.places[device.address] = 3
    with pytest.raises(BackendError, match="lies on GPU 3; copy it to GPU 0"):
        backend.infer({"in": device})


# -- DLPack, in a struct that is made here


class Producer:
    """An object with `__dlpack__` whose deleter counts."""

    def __init__(
        self, address: int, shape, *, device=(2, 0), code=2, bits=32, strides=None, offset=0
    ) -> None:
        self.deleted: list[int] = []
        self.streams: list[int] = []
        self._device = device
        number = len(shape)
        self._shape = (ctypes.c_int64 * number)(*shape)
        self._strides = (ctypes.c_int64 * number)(*strides) if strides else None
        kind = ctypes.PYFUNCTYPE(None, ctypes.c_void_p)
        self._deleter = kind(lambda at: self.deleted.append(at))

        class Managed(ctypes.Structure):
            _fields_ = [
                ("data", ctypes.c_void_p), ("device_type", ctypes.c_int32),
                ("device_id", ctypes.c_int32), ("ndim", ctypes.c_int32), ("code", ctypes.c_uint8),
                ("bits", ctypes.c_uint8), ("lanes", ctypes.c_uint16), ("shape", ctypes.c_void_p),
                ("strides", ctypes.c_void_p), ("offset", ctypes.c_uint64),
                ("manager", ctypes.c_void_p), ("deleter", ctypes.c_void_p),
            ]  # fmt: skip

        self.managed = Managed(
            address, *device, number, code, bits, 1, ctypes.addressof(self._shape),
            ctypes.addressof(self._strides) if self._strides else None, offset, None,
            ctypes.cast(self._deleter, ctypes.c_void_p).value,
        )  # fmt: skip

    def __dlpack_device__(self) -> tuple[int, int]:
        return self._device

    def __dlpack__(self, stream: int | None = None) -> object:
        self.streams.append(stream)
        make = ctypes.PYFUNCTYPE(
            ctypes.py_object, ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p
        )(("PyCapsule_New", ctypes.pythonapi))
        return make(ctypes.addressof(self.managed), b"dltensor", None)


def test_dlpack_is_read_and_given_back_once(backend, cuda):
    given = feed(2)
    source = OnDevice(cuda, given["in"])
    for strides in (None, (3, 1)):
        producer = Producer(source.address, (2, 3), strides=strides)
        assert is_on_device(producer)
        assert np.array_equal(backend.infer({"in": producer})["out"], given["in"] * 2)
        assert len(producer.deleted) == 1 and producer.streams == [7], "on the plan's stream"
        assert producer.deleted == [ctypes.addressof(producer.managed)]


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ({"bits": 16}, "in is float16; feed float32"),
        ({"code": 4, "bits": 16}, "a type that NumPy has not"),
        ({"strides": (1, 2)}, "in has gaps"),
        ({"device": (2, 1)}, "lies on GPU 1"),
    ],
    ids=["float16", "bfloat16", "transposed", "other GPU"],
)
def test_a_refused_dlpack_tensor_is_given_back(backend, cuda, how, words):
    producer = Producer(OnDevice(cuda, feed(2)["in"]).address, (2, 3), **how)
    with pytest.raises(BackendError, match=words):
        backend.infer({"in": producer})
    assert len(producer.deleted) == 1


def test_arrays_of_the_host_are_not_the_gpus():
    assert not is_on_device(np.zeros(3)) and not is_on_device([1.0])
    assert not is_on_device(Producer(0, (1,), device=(1, 0)))


def test_a_device_array_gives_back_once():
    producer = Producer(0, (1,))
    array = DeviceArray(0, (1,), None, "float32", 0, producer, ctypes.addressof(producer.managed))
    array.release()
    array.release()
    del array
    assert len(producer.deleted) == 1


# -- several contexts


@pytest.mark.parametrize(("version", "engines"), [("8.6.0", 3), ("10.3.0", 1)])
def test_contexts_share_an_engine_where_tensorrt_can(tmp_path, monkeypatch, cuda, version, engines):
    """Before 10 a profile is one context's: the fake refuses a second one as TensorRT does."""
    plan = tmp_path / "a.plan"
    plan.write_bytes(PLAN)
    sidecar_path(plan).write_bytes(record_bytes(record(version=version)))
    module = fake_tensorrt(cuda, most=4, free=True, version=version)
    monkeypatch.setattr(backend_module, "load_tensorrt", lambda runtime: module)
    monkeypatch.setattr(backend_module, "cuda_runtime", lambda: cuda)
    monkeypatch.setattr(backend_module, "find_gpu", lambda: H100)
    backend = catalog.backend("tensorrt").open(plan, BackendOptions())
    backend.reserve_contexts(3)
    assert len(module.engines) == engines
    tickets = [backend.submit(feed(n)) for n in (1, 2, 3)]
    assert [backend.collect(t)["out"].shape[0] for t in tickets] == [1, 2, 3]
    backend.close()


def test_submitted_inferences_are_collected_in_any_order(backend):
    backend.reserve_contexts(3)
    tickets = [backend.submit(feed(2, first)) for first in (1.0, 5.0, 9.0)]
    with pytest.raises(BackendError, match="all 3 contexts are in flight; collect"):
        backend.submit(feed(2))
    with pytest.raises(BackendError, match="first context is in flight"):
        backend.infer(feed(2))
    for number in (2, 0, 1):
        found = backend.collect(tickets[number])["out"]
        assert np.array_equal(found, feed(2, 1.0 + 4 * number)["in"] * 2)
    with pytest.raises(BackendError, match="ticket 0: it is not in flight; collect each"):
        backend.collect(tickets[0])
    assert np.array_equal(backend.infer(feed(2))["out"], feed(2)["in"] * 2)


def test_a_refused_feed_leaves_its_context_free(backend):
    with pytest.raises(BackendError, match="the plan takes"):
        backend.submit(feed(9))
    ticket = backend.submit(feed(4))
    assert backend.collect(ticket)["out"].shape == (4, 3)


def test_full_memory_leaves_the_backend_usable(backend, cuda):
    cuda.full = True
    with pytest.raises(BackendError, match=r"cudaMalloc failed .*MemoryAllocation.*--batch"):
        backend.submit(feed(2))
    cuda.full = False
    assert np.array_equal(backend.infer(feed(2))["out"], feed(2)["in"] * 2)


# -- pictures: the embedded detector, its network computed by ONNX Runtime


@pytest.fixture(scope="module")
def kernel(tmp_path_factory) -> HostKernel:
    return HostKernel(tmp_path_factory.mktemp("kernel"))


@pytest.fixture
def driver(kernel, monkeypatch, cuda) -> FakeDriver:
    fake = FakeDriver(kernel, cuda)
    monkeypatch.setattr(gpu_preprocess, "cuda_driver", lambda: fake)
    monkeypatch.setattr(gpu_preprocess, "compile_source", lambda *_: b"code")
    return fake


@pytest.fixture
def plan(tmp_path, monkeypatch, cuda):
    """A plan of the embedded detector for 1 to 2 pictures."""
    metadata = {p.key: p.value for p in onnx.load(onnx_file()).metadata_props}
    network = network_of(onnx_file())
    shapes = tuple((n, *network.input_shape) for n in (1, 2, 2))
    described = record(
        profile={network.input_name: shapes},
        metadata=metadata,
        plan_sha256=hashlib.sha256(PLAN).hexdigest(),
    )
    module = fake_tensorrt(cuda, most=2, free=True, network=network)
    monkeypatch.setattr(backend_module, "load_tensorrt", lambda runtime: module)
    monkeypatch.setattr(backend_module, "cuda_runtime", lambda: cuda)
    monkeypatch.setattr(backend_module, "find_gpu", lambda: H100)
    path = tmp_path / "sample.trt8.6.0-sm90.plan"
    path.write_bytes(PLAN)
    sidecar_path(path).write_bytes(record_bytes(described))
    return path


@pytest.fixture(scope="module")
def images():
    """Pages of three sizes, and what the detector finds in each."""
    page = generate_page(42).image
    height, width = page.shape[:2]
    found = [page, cv2.resize(page, (width // 2, height // 2)), np.ascontiguousarray(page[:, ::-1])]
    with load(onnx_file(), "onnxruntime", quiet=True) as detector:
        return found, [detector(i) for i in found]


def near(found, expected, px: float = 1.0) -> bool:
    return (
        np.array_equal(found.class_ids, expected.class_ids)
        and np.allclose(found.xyxy, expected.xyxy, atol=px)
        and np.allclose(found.scores, expected.scores, atol=0.02)
        and found.image_size == expected.image_size
    )


@pytest.mark.parametrize("preprocess", ["host", "gpu"])
def test_a_stream_through_a_plan_finds_the_same(plan, driver, images, preprocess, cuda):
    pictures, expected = images
    with (
        load(plan, quiet=True) as detector,
        Stream(detector, batch=64, decoders=2, preprocess=preprocess) as stream,
    ):
        assert stream.batch == 2, "the profile's end"
        found = list(stream.detect(pictures))
        now = stream.detect_now(pictures[:2])
    px = 1e-3 if preprocess == "host" else 1.0
    assert sum(map(len, expected)) > 2
    assert all(near(s.detections, e, px) for s, e in zip(found, expected, strict=True))
    assert all(near(s, e, px) for s, e in zip(now, expected, strict=False))
    assert driver.launches == ([2, 1, 2] if preprocess == "gpu" else [])
    assert not cuda.memory, "everything was freed"
    assert not [t for t in threading.enumerate() if t.name.startswith("boxwright-")]


def test_pictures_on_the_gpu_are_not_copied(plan, driver, images, cuda):
    """One copy in carries the records alone; a row pitch and the wrong shape are told apart."""
    pictures, expected = images
    page = pictures[0]
    wide = np.zeros((page.shape[0], page.shape[1] * 3 + 7), np.uint8)
    wide[:, : page.shape[1] * 3] = page.reshape(page.shape[0], -1)
    strides = (wide.strides[0], 3, 1)
    with load(plan, quiet=True) as detector, Stream(detector, preprocess="gpu") as stream:
        given = OnDevice(cuda, wide, shape=page.shape, strides=strides)
        (found,) = stream.detect([given])
        assert near(found.detections, expected[0])
        grey = OnDevice(cuda, wide)
        with pytest.raises(ImageError, match="no picture; give"):
            list(stream.detect([grey]))


# -- decoding on the GPU: a codec that decodes into the fake's memory


class FakeCodec:
    """The part of nvImageCodec that is used; OpenCV decodes, PNG and grey are its own."""

    ColorSpec = SimpleNamespace(SRGB=1)
    BackendKind = SimpleNamespace(GPU_ONLY=1, HYBRID_CPU_GPU=2, HW_GPU_ONLY=3)

    def __init__(self, cuda: FakeCuda, *, works: bool = True) -> None:
        self.cuda, self.works, self.decoded, self.reused = cuda, works, 0, 0
        self.options = ""

    def Backend(self, *_: object, **__: object) -> None:  # noqa: N802
        return None

    def DecodeParams(self, **_: object) -> None:  # noqa: N802
        return None

    def CodeStream(self, data: bytes) -> SimpleNamespace:  # noqa: N802
        if not data.startswith(b"\xff\xd8"):
            raise RuntimeError("unsupported")
        image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
        return SimpleNamespace(codec_name="jpeg", num_channels=3, image=image)

    def Decoder(self, *, options: str, **_: object) -> SimpleNamespace:  # noqa: N802
        self.options = options
        return SimpleNamespace(decode=self._decode)

    def _decode(self, streams, *, params, cuda_stream, images=None):
        self.decoded += len(streams)
        self.reused += len(images or [])
        if not self.works:
            return [None] * len(streams)
        return [
            None if s.image is None else OnDevice(self.cuda, s.image[..., ::-1].copy())
            for s in streams
        ]


def test_jpeg_files_are_decoded_on_the_gpu(plan, driver, images, cuda, tmp_path, monkeypatch):
    """JPEG goes to the GPU, PNG to OpenCV; damage is the file's own error; memory comes back."""
    codec = FakeCodec(cuda)
    monkeypatch.setattr(gpu_decode_module, "cuda_runtime", lambda: cuda)
    monkeypatch.setitem(sys.modules, "nvidia.nvimgcodec", codec)
    pictures, _ = images
    files = []
    for index in range(6):
        path = tmp_path / f"{index}{'.png' if index == 2 else '.jpg'}"
        cv2.imwrite(str(path), pictures[index % 3], [cv2.IMWRITE_JPEG_QUALITY, 95])
        files.append(path)
    (tmp_path / "cut.jpg").write_bytes(files[0].read_bytes()[:5000])
    (tmp_path / "noise.jpg").write_bytes(b"\xff\xd8\xff" + bytes(range(200)) + b"\xff\xd9")
    files[3:3] = [tmp_path / "cut.jpg", tmp_path / "noise.jpg", tmp_path / "missing.jpg"]
    with load(plan, quiet=True) as detector:
        expected = [detector(f) if f.stem.isdigit() else None for f in files]
        with Stream(detector, batch=2, decoders=2, preprocess="gpu", decode="gpu") as stream:
            found = list(stream.detect(files))
            again = list(stream.detect(files))
    assert codec.decoded == 1 + 2 * (5 + 1), "one to try it, the noise too; not the PNG"
    assert "fancy_upsampling=1" in codec.options and codec.reused > 0
    assert stream.decoded_on_host == 2, "the noise was tried again by OpenCV"
    assert [s.error for s in again] == [s.error for s in found]
    assert [bool(s.error) for s in found] == [e is None for e in expected]
    for seen, want in zip(found, expected, strict=True):
        assert want is None or near(seen.detections, want), seen.item


def test_a_codec_without_nvjpeg_is_told(cuda):
    with pytest.raises(BackendError, match=r"decodes no JPEG .*gpu-decode"):
        GpuDecoder(FakeCodec(cuda, works=False), cuda)


def test_a_missing_codec_names_its_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "nvidia.nvimgcodec", None)
    with pytest.raises(MissingExtraError, match=r"boxwright\[gpu-decode\]"):
        gpu_decode_module.open_decoder()


def test_four_colour_components_are_left_to_opencv(cuda):
    codec = FakeCodec(cuda)
    decoder = GpuDecoder(codec, cuda)
    _, data = cv2.imencode(".jpg", np.zeros((8, 8, 3), np.uint8))
    real = codec.CodeStream
    codec.CodeStream = lambda data: SimpleNamespace(**{**vars(real(data)), "num_channels": 4})
    found, held = decoder.decode([Encoded("cmyk", data.tobytes())])
    assert found == [None] and held is None
    decoder.close()


def test_a_detector_takes_a_batch_that_lies_on_the_gpu(plan, images, cuda):
    pictures, expected = images
    with load(plan, quiet=True) as detector:
        batch, places = detector.preprocess(pictures[:2])
        outputs = detector.infer(OnDevice(cuda, batch.copy()))
        found = detector.postprocess(outputs, places)
    assert all(near(f, e, 1e-3) for f, e in zip(found, expected, strict=False))
