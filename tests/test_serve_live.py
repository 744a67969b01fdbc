"""A real Triton server on small repositories: started, asked, hurt, and stopped."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import onnx
import pytest
import triton_place
from onnx import TensorProto, helper
from triton_place import MAX_BATCH, MODEL

from boxwright import load, sample
from boxwright.backends import BackendOptions
from boxwright.backends.triton import TritonBackend
from boxwright.errors import BackendError
from boxwright.serve.server import start_server
from boxwright.serve.watch import processes_of_session, stubs_of
from boxwright.triton_address import address_from_text

pytestmark = pytest.mark.slow

_DOUBLE = """
import time
import triton_python_backend_utils as pb_utils
class TritonPythonModel:
    def execute(self, requests):
        time.sleep(0.005)
        read = pb_utils.get_input_tensor_by_name
        return [
            pb_utils.InferenceResponse([pb_utils.Tensor("y", read(r, "x").as_numpy() * 2)])
            for r in requests
        ]
"""


def add_gather(repository: Path) -> None:
    """Add an ONNX graph that fails on an index outside of its table."""
    graph = helper.make_graph(
        [helper.make_node("Gather", ["table", "index"], ["value"])],
        "gather",
        [helper.make_tensor_value_info("index", TensorProto.INT64, ["n", 1])],
        [helper.make_tensor_value_info("value", TensorProto.FLOAT, ["n", 1])],
        [helper.make_tensor("table", TensorProto.FLOAT, [10], [float(i * i) for i in range(10)])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    config = triton_place.model_config("gather", "onnxruntime", 16)
    triton_place.add_tensor(config, "input", "index", "INT64", (1,))
    triton_place.add_tensor(config, "output", "value", "FP32", (1,))
    config.instance_group.add(count=1)
    config.dynamic_batching.max_queue_delay_microseconds = 100_000
    config.dynamic_batching.preferred_batch_size.append(8)
    triton_place.write_config(repository / "gather", config)
    (repository / "gather" / "1").mkdir()
    onnx.save(model, str(repository / "gather" / "1" / "model.onnx"))


def add_plan(repository: Path) -> None:
    """Add a plan that no machine here can run."""
    config = triton_place.model_config("planned", "tensorrt", 4)
    triton_place.add_tensor(config, "input", "images", "FP32", (3, 640, 640))
    triton_place.add_tensor(config, "output", "output", "FP32", (8400, 6))
    triton_place.write_config(repository / "planned", config)
    (repository / "planned" / "1").mkdir()
    (repository / "planned" / "1" / "model.plan").write_bytes(b"a plan")


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    repository = tmp_path_factory.mktemp("models")
    request = triton_place.served(repository)
    triton_place.add_sample(repository)
    small = triton_place.add_sample(repository, "one_by_one", 0)
    triton_place.add_python(repository, "double", _DOUBLE)
    add_gather(repository)
    (small / "configs").mkdir()
    text = (small / "config.pbtxt").read_text(encoding="utf-8")
    (small / "configs" / "cpu.pbtxt").write_text(
        text + 'parameters { key: "told" value { string_value: "for a CPU" } }\n', encoding="utf-8"
    )
    notes: list[str] = []
    with start_server(request, note=notes.append) as running:
        yield running, notes
    assert not processes_of_session(running.pid)


@pytest.fixture(scope="module")
def pages():
    return [sample.generate_page(seed).image for seed in (42, 43, 44, 45, 46)]


@pytest.fixture(scope="module")
def expected(pages):
    with load(sample.onnx_file(), "onnxruntime", quiet=True, device="cpu") as local:
        return [local(page) for page in pages]


def backend_of(running, model: str, options: str = "") -> TritonBackend:
    return TritonBackend(
        address_from_text(f"triton://{running.http}/{model}{options}"), BackendOptions()
    )


WAYS = {
    "http": "triton://{http}/{model}",
    "grpc": "triton+grpc://{grpc}/{model}:1",
    "http, shared memory": "triton://{http}/{model}?shared-memory=system",
    "grpc, shared memory": "triton+grpc://{grpc}/{model}?shared-memory=system",
}


@pytest.mark.parametrize("way", WAYS)
def test_a_served_model_detects_as_the_file_does(server, pages, expected, way):
    """Five pictures in batches of up to four; the very same boxes."""
    running, _ = server
    address = WAYS[way].format(http=running.http, grpc=running.grpc, model=MODEL)
    with load(address) as detector:
        assert detector.largest_batch == MAX_BATCH
        assert detector.spec.name
        found = detector(pages)
    for one, other in zip(found, expected, strict=True):
        assert len(one) == len(other) > 0
        np.testing.assert_allclose(one.xyxy, other.xyxy, atol=1e-3)
        np.testing.assert_allclose(one.scores, other.scores, atol=1e-5)
    assert not list(Path("/dev/shm").glob(f"boxwright_{os.getpid()}_????????"))


def test_a_model_without_batches_takes_one_picture_at_a_time(server, pages, expected):
    running, _ = server
    with load(f"triton://{running.http}/one_by_one") as detector:
        assert detector.fixed_batch == 1
        assert [len(d) for d in detector(pages[:2])] == [len(d) for d in expected[:2]]


def test_the_configuration_for_a_cpu_is_taken(server):
    running, _ = server
    if running.config_name != "cpu":
        pytest.skip("there is a GPU here")
    told = running.control.config("one_by_one")["parameters"]
    assert told["told"]["string_value"] == "for a CPU"


def test_it_listens_on_this_machine_alone(server):
    running, _ = server
    ports = {running.request.http_port, running.request.grpc_port, running.request.metrics_port}
    seen = {}
    for name in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{name}").read_text().splitlines()[1:]:
            words = line.split()
            place, port = words[1].split(":")
            if words[3] == "0A" and int(port, 16) in ports:
                seen[int(port, 16)] = place
    assert set(seen) == ports
    assert set(seen.values()) <= {"0100007F", "0000000000000000FFFF00000100007F"}


def ones(count: int = 1, dtype: type = np.float32) -> dict[str, np.ndarray]:
    return {"images": np.full((count, 3, 640, 640), 0.5, dtype)}


WRONG = {
    "batch over the maximum": (MODEL, ones(MAX_BATCH + 1), r"batch-size must be <= 4"),
    "wrong dtype": (MODEL, ones(dtype=np.float16), r"data-type is 'FP16'.* expects 'FP32'"),
    "wrong shape": (MODEL, {"images": np.zeros((1, 3, 64, 64), np.float32)}, r"unexpected shape"),
    "wrong name": (MODEL, {"image": ones()["images"]}, r"unexpected inference input 'image'"),
    "missing input": (MODEL, {}, r"expected 1 inputs but got 0"),
}


@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_a_wrong_request_is_refused_and_its_neighbours_are_not(server, protocol):
    """Right and wrong requests at once: each wrong one has its reason, each right one its rows."""
    running, _ = server
    place = {"http": f"triton://{running.http}", "grpc": f"triton+grpc://{running.grpc}"}[protocol]

    def ask(feed):
        address = address_from_text(f"{place}/{MODEL}")
        backend = TritonBackend(address, BackendOptions())
        try:
            if "images" not in feed:  # `infer` wants to know how many rows there are
                from boxwright.triton_wire import Asked, TritonError

                try:
                    return backend._wire.infer(Asked(feed, ["output"]))
                except TritonError as error:
                    return BackendError("x", f"the server says: {error.message}")
            return backend.infer(feed)
        except BackendError as error:
            return error
        finally:
            backend.close()

    feeds = [feed for _, feed, _ in WRONG.values()]
    mixed = [f for wrong in feeds for f in (wrong, ones(1), ones(2))]
    with ThreadPoolExecutor(5) as pool:
        answers = list(pool.map(ask, mixed))
    for (_, _, says), answer in zip(WRONG.values(), answers[::3], strict=True):
        assert isinstance(answer, BackendError)
        assert re.search(says, str(answer)), answer
    right = answers[1::3] + answers[2::3]
    assert all(isinstance(a, dict) for a in right), right
    for answer in right:
        np.testing.assert_allclose(answer["output"][0], right[0]["output"][0], atol=1e-4)


@pytest.mark.parametrize(
    ("model", "says"),
    [("text_blok", "'text_blok' is not found"), (f"{MODEL}:7", "version 7 is not found")],
)
@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_a_missing_model_or_version_is_said(server, model, says, protocol):
    running, _ = server
    where = f"triton://{running.http}" if protocol == "http" else f"triton+grpc://{running.grpc}"
    with pytest.raises(BackendError) as refused:
        load(f"{where}/{model}")
    assert says in str(refused.value)


def test_requests_share_a_run_and_a_bad_one_harms_no_other(server):
    """Eight at once, one of which makes ONNX Runtime fail."""
    running, _ = server
    before = running.control.statistics("gather")
    backends = [backend_of(running, "gather") for _ in range(8)]
    together = threading.Barrier(8)

    def ask(place: int):
        together.wait()
        index = 99 if place == 5 else place
        try:
            return backends[place].infer({"index": np.array([[index]], np.int64)})["value"]
        except BackendError as error:
            return str(error)

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(ask, range(8)))
    for backend in backends:
        backend.close()
    assert "ONNX Runtime failed" in answers[5]
    assert "out of data bounds" in answers[5] or "99" in answers[5]
    assert [int(a[0, 0]) for i, a in enumerate(answers) if i != 5] == [0, 1, 4, 9, 16, 36, 49]
    after = running.control.statistics("gather")
    runs = after["execution_count"] - before["execution_count"]
    assert runs < 8, "requests were not joined"


def test_a_killed_process_is_replaced_and_patient_clients_lose_nothing(server):
    """Triton itself does not bring a killed stub back; the watch does."""
    running, notes = server
    stop = threading.Event()
    lost: dict[str, list[str]] = {"patient": [], "hasty": []}
    right = {"patient": 0, "hasty": 0}

    def work(kind: str, options: str) -> None:
        backend = backend_of(running, "double", options)
        number = 0.0
        while not stop.is_set():
            number += 1
            try:
                found = backend.infer({"x": np.array([number, 3], np.float32)})["y"]
            except BackendError as error:
                lost[kind].append(str(error))
                time.sleep(0.02)
                continue
            assert found.tolist() == [number * 2, 6]
            right[kind] += 1
        backend.close()

    with ThreadPoolExecutor(6) as pool:
        jobs = [pool.submit(work, "patient", "?retry=20") for _ in range(4)]
        jobs += [pool.submit(work, "hasty", "") for _ in range(2)]
        time.sleep(0.5)
        stub = next(s for s in stubs_of(running.pid) if s.model == "double")
        os.kill(stub.pid, signal.SIGKILL)
        end = time.monotonic() + 20
        while not any("double: loaded anew" in n for n in notes) and time.monotonic() < end:
            time.sleep(0.05)
        seen = right["hasty"]
        while right["hasty"] < seen + 10 and time.monotonic() < end:
            time.sleep(0.05)
        stop.set()
        for job in jobs:
            job.result()
    assert not lost["patient"], lost["patient"][:3]
    assert lost["hasty"], "nobody met the dead process"
    assert all("is not healthy" in text or "tub" in text for text in lost["hasty"]), lost["hasty"]
    assert right["hasty"] >= seen + 10, "it did not come back"
    assert sum("has died" in n for n in notes) == 1, notes


@pytest.mark.long
def test_ten_thousand_requests_of_32_clients_are_answered_right(server):
    running, _ = server
    done = []

    def work(place: int) -> None:
        way = "triton" if place % 2 else "triton+grpc"
        host = running.http if place % 2 else running.grpc
        memory = "?shared-memory=system" if place % 4 > 1 else ""
        address = address_from_text(f"{way}://{host}/gather{memory}")
        backend = TritonBackend(address, BackendOptions())
        for number in range(313):
            index = np.array([[(place + number) % 10], [number % 10]], np.int64)[: 1 + number % 2]
            found = backend.infer({"index": index})["value"]
            assert found.tolist() == [[float(i[0] ** 2)] for i in index.tolist()]
            done.append(place)
        backend.close()

    with ThreadPoolExecutor(32) as pool:
        list(pool.map(work, range(32)))
    assert len(done) == 32 * 313


def test_benchmark_tells_requests_and_batches(server, cli, tmp_path, monkeypatch):
    """With a stand-in for perf_analyzer, which the test machine lacks."""
    running, _ = server
    stand_in = tmp_path / "perf_analyzer"
    stand_in.write_text(
        "#!/bin/sh\n"
        'while [ "$1" != -f ]; do shift; done\n'
        'printf "Concurrency,Inferences/Second,p50 latency,p95 latency,p99 latency\\n'
        '4,100.5,2000,2200,2500\\n" > "$2"\n'
    )
    stand_in.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(p for p in sys.path if p))
    done = cli(
        "benchmark", f"triton://{running.http}/{MODEL}", "--concurrency", "1,4", "--seconds", "1.5",
        "--warmup", "1", "--json",
    )  # fmt: skip
    assert done.code == 0, done.err
    one, four = json.loads(done.out)["served"][0]["loads"]
    assert one["models"][0]["average_batch"] == 1.0
    assert four["models"][0]["average_batch"] > 1.5
    assert one["requests_per_s"] > 0
    assert one["latency_ms"]["p50"] <= one["latency_ms"]["p99"]
    assert len(four["samples_ms"]) == four["requests"] > 0
    assert not four["errors"]
    assert one["models"][0]["compute_infer_ms"] > 0
    assert four["perf_analyzer"]["p99_ms"] == 2.5


def test_verify_predict_and_evaluate_work_on_it(server, cli):
    running, _ = server
    address = f"triton://{running.http}/{MODEL}"
    done = cli("verify", sample.onnx_file(), address)
    assert done.code == 0, done.err
    assert "FAILED" not in done.out
    done = cli(
        "evaluate", address, "--data", "sample", "--pages", "2", "--resamples", "0", "--json"
    )
    assert done.code == 0, done.err
    assert json.loads(done.out)[0]["map50"] > 0.9


def test_a_server_that_is_stopped_and_started_loses_no_patient_request(tmp_path):
    """The same ports, a new server; shared memory has to be made known to it again."""
    request = dataclasses.replace(
        triton_place.served(tmp_path), recover=False, stop_timeout_s=5, metrics=False
    )
    triton_place.add_python(tmp_path, "double", _DOUBLE)
    stop = threading.Event()
    right, lost, retries = [0] * 4, [], [0] * 4

    def work(place: int, address: str) -> None:
        backend = TritonBackend(address_from_text(address), BackendOptions())
        while not stop.is_set():
            try:
                found = backend.infer({"x": np.array([place, right[place]], np.float32)})["y"]
            except BackendError as error:
                lost.append(str(error))
                return
            assert found.tolist() == [place * 2, right[place] * 2]
            right[place] += 1
        retries[place] = backend.retries
        backend.close()

    with ThreadPoolExecutor(4) as pool:
        with start_server(request) as first:
            again = dataclasses.replace(
                request, http_port=first.request.http_port, grpc_port=first.request.grpc_port
            )
            http, grpc = f"triton://{first.http}/double", f"triton+grpc://{first.grpc}/double"
            addresses = [f"{a}?retry=30{m}" for a in (http, grpc)
                         for m in ("", "&shared-memory=system")]  # fmt: skip
            jobs = [pool.submit(work, place, a) for place, a in enumerate(addresses)]
            time.sleep(0.7)
            assert min(right) > 0
        with start_server(again):
            seen, end = list(right), time.monotonic() + 20
            while time.monotonic() < end and not lost:
                if all(now > then + 5 for now, then in zip(right, seen, strict=True)):
                    break
                time.sleep(0.05)
            stop.set()
            for job in jobs:
                job.result()
    assert not lost
    assert all(now > then + 5 for now, then in zip(right, seen, strict=True))
    assert min(retries) > 0


def test_a_model_that_fails_has_the_servers_own_words(tmp_path):
    request = triton_place.served(tmp_path)
    triton_place.add_python(tmp_path, "broken", "raise RuntimeError('left at home')\n")
    triton_place.add_python(tmp_path, "double", _DOUBLE)
    add_plan(tmp_path)
    notes: list[str] = []
    with start_server(dataclasses.replace(request, keep_going=True), note=notes.append) as running:
        failed = {m.name: m.reason for m in running.failed}
        assert [m.name for m in running.models if m.state == "READY"] == ["double"]
    assert "left at home" in failed["broken"]
    assert "a plan runs on a GPU" in failed["planned"] or "cannot load it" in failed["planned"]
    assert any("left at home" in n for n in notes)
    with pytest.raises(BackendError, match=r"broken: the server cannot load it .*left at home"):
        start_server(dataclasses.replace(request, models=("broken",)))


def test_an_ensemble_has_the_words_of_the_model_that_it_lacks(tmp_path):
    request = triton_place.served(tmp_path, models=("whole",))
    triton_place.add_python(tmp_path, "broken", "raise RuntimeError('left at home')\n")
    config = triton_place.model_config("whole", "")
    config.platform = "ensemble"
    triton_place.add_tensor(config, "input", "x", "FP32", (-1,))
    triton_place.add_tensor(config, "output", "y", "FP32", (-1,))
    step = config.ensemble_scheduling.step.add(model_name="broken", model_version=-1)
    step.input_map["x"], step.output_map["y"] = "x", "y"
    triton_place.write_config(tmp_path / "whole", config)
    (tmp_path / "whole" / "1").mkdir()
    with pytest.raises(BackendError, match=r"whole: .*broken \(.*left at home"):
        start_server(request)


_DALI = """
from nvidia.dali import fn, pipeline_def, types
from nvidia.dali.plugin.triton import autoserialize

@autoserialize
@pipeline_def(batch_size=1, num_threads=1, device_id=None)
def decode():
    encoded = fn.external_source(device="cpu", name="encoded_image", dtype=types.UINT8, ndim=1)
    pixels = fn.decoders.image(encoded, device="cpu", output_type=types.RGB)
    small = fn.resize(pixels, size=(8, 8), interp_type=types.INTERP_LINEAR, antialias=False)
    return small, fn.peek_image_shape(encoded)
"""


def test_dali_decodes_files_of_several_lengths_together(tmp_path):
    """Thirteen JPEG files at once, one of which is none: twelve pictures and one error."""
    request = triton_place.served(tmp_path)
    triton_place.dali_python()
    config = triton_place.model_config("decode", "dali", 16)
    triton_place.add_tensor(
        config, "input", "encoded_image", "UINT8", (-1,), allow_ragged_batch=True
    )
    triton_place.add_tensor(config, "output", "small", "UINT8", (8, 8, 3))
    triton_place.add_tensor(config, "output", "shape", "INT64", (3,))
    config.instance_group.add(count=1)
    config.dynamic_batching.max_queue_delay_microseconds = 200_000
    config.dynamic_batching.preferred_batch_size.append(13)
    triton_place.write_config(tmp_path / "decode", config)
    (tmp_path / "decode" / "1").mkdir()
    (tmp_path / "decode" / "1" / "dali.py").write_text(_DALI, encoding="utf-8")
    files = []
    for place in range(13):
        picture = np.full((40 + 10 * place, 60, 3), (0, 20 * place, 255), np.uint8)
        files.append(cv2.imencode(".jpg", picture)[1])
    files[7] = np.frombuffer(b"this is no picture at all, only text", np.uint8)
    with start_server(request) as running:
        backends = [backend_of(running, "decode") for _ in files]
        together = threading.Barrier(13)

        def ask(place: int):
            together.wait()
            try:
                return backends[place].infer({"encoded_image": files[place].reshape(1, -1)})
            except BackendError as error:
                return str(error)

        with ThreadPoolExecutor(13) as pool:
            answers = list(pool.map(ask, range(13)))
            told = running.control.statistics("decode")
            assert ask_alone(backends[0], files[0]) == (40, 60, 3)  # the pipeline is whole again
        for backend in backends:
            backend.close()
    assert "DALI failed" in answers[7]
    for place, answer in enumerate(answers):
        if place != 7:
            assert answer["shape"].tolist() == [[40 + 10 * place, 60, 3]]
            assert abs(int(answer["small"][0, 4, 4, 1]) - 20 * place) <= 3
    assert told["execution_count"] <= 4, told["batch_stats"]


def ask_alone(backend: TritonBackend, data: np.ndarray) -> tuple[int, ...]:
    found = backend.infer({"encoded_image": data.reshape(1, -1)})["shape"][0]
    return tuple(int(n) for n in found)


def started(repository: Path, environment: dict[str, str], *words: str):
    """Start the command line; return its process and what it printed."""
    request = triton_place.served(repository)
    given = [str(repository), "--http-port", "0", "--grpc-port", "0", "--no-metrics", "--json"]
    given += ["--server", str(request.server)] if request.server else []
    given += ["--python", str(request.python)] if request.python else []
    process = subprocess.Popen(
        [sys.executable, "-m", "boxwright", "serve", *given, *words],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment,
    )  # fmt: skip
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line:
        _, err = process.communicate()
        raise AssertionError(err)
    return process, json.loads(line)


@pytest.mark.parametrize(
    "number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.long)]
)
def test_the_verb_prints_endpoints_and_stops_cleanly(tmp_path, environment, number):
    triton_place.require_client()
    triton_place.add_python(tmp_path, "double", _DOUBLE)
    process, told = started(tmp_path, environment)
    with urllib.request.urlopen(f"http://{told['http']}/v2/models/double/ready") as answer:
        assert answer.status == 200
    assert told["models"] == [{"name": "double", "version": "1", "state": "READY", "reason": ""}]
    stubs = stubs_of(told["pid"])
    assert stubs
    process.send_signal(number)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 0, err
    assert "the server has ended" in err
    assert not processes_of_session(told["pid"])
    assert not list(Path("/dev/shm").glob(f"boxwright_{process.pid}_*"))


def test_no_server_outlives_a_killed_verb(tmp_path, environment):
    triton_place.require_client()
    triton_place.add_python(tmp_path, "double", _DOUBLE)
    process, told = started(tmp_path, environment)
    process.kill()
    process.communicate()
    end = time.monotonic() + 15
    while processes_of_session(told["pid"]) and time.monotonic() < end:
        time.sleep(0.1)
    assert not processes_of_session(told["pid"])


def test_an_open_server_keeps_its_controls(tmp_path, environment):
    """Everybody may infer; loading models takes a secret of the process that serves."""
    triton_place.require_client()
    triton_place.add_python(tmp_path, "double", _DOUBLE)
    process, told = started(tmp_path, environment, "--host", "0.0.0.0")
    port = told["http"].rpartition(":")[2]
    backend = TritonBackend(
        address_from_text(f"triton://127.0.0.1:{port}/double"), BackendOptions()
    )
    assert backend.infer({"x": np.ones(1, np.float32)})["y"].tolist() == [2]
    backend.close()
    for path in ("models/double/unload", "index"):
        request = urllib.request.Request(
            f"http://127.0.0.1:{port}/v2/repository/{path}", b"{}", method="POST"
        )
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(request)
        assert refused.value.code in (400, 403)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 0, err
    assert "warning: --host 0.0.0.0" in err
