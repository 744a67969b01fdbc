"""Addresses of served models, and what is sent and read."""

from __future__ import annotations

import pytest

from boxwright import load
from boxwright.benchmark.perf_analyzer import figures_from_csv
from boxwright.errors import BackendError, RequestError
from boxwright.triton_address import TritonAddress, address_from_text, artifact_name, is_address
from boxwright.triton_wire import _cause_of


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("triton://gpu1/yolo", TritonAddress("gpu1", 8000, "yolo")),
        ("triton://gpu1:9000/yolo:12", TritonAddress("gpu1", 9000, "yolo", "12")),
        ("triton+grpc://gpu1/yolo", TritonAddress("gpu1", 8001, "yolo", protocol="grpc")),
        ("triton://gpu1/yolo?protocol=grpc", TritonAddress("gpu1", 8001, "yolo", protocol="grpc")),
        ("TRITON+HTTP://[::1]:7/m", TritonAddress("::1", 7, "m")),
        (
            "triton://h/m?shared-memory=system&retry=2.5&timeout=9",
            TritonAddress("h", 8000, "m", "", "http", True, 2.5, 9.0),
        ),
    ],
)
def test_an_address_is_read(text, expected):
    assert is_address(text)
    assert address_from_text(text) == expected
    if "timeout" not in text:
        assert address_from_text(expected.text) == expected


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("triton://gpu1", "names no server and model"),
        ("triton:///yolo", "names no server and model"),
        ("triton://gpu1/yolo:new", "names no server and model"),
        ("triton://gpu1/yolo/1", "names no server and model"),
        ("triton://me:secret@gpu1/yolo", "names no server and model"),
        ("triton://gpu1:99999/yolo", "it is no address"),
        ("triton+http2://gpu1/yolo", "known are triton, triton+http, triton+grpc"),
        ("triton://gpu1/yolo?retries=3", "did you mean retry?"),
        ("triton://gpu1/yolo?retry=soon", "no number of seconds"),
        ("triton://gpu1/yolo?shared-memory=cuda", "use shared-memory=system"),
        ("triton+grpc://gpu1/yolo?protocol=http", "does not go with"),
    ],
)
def test_a_wrong_address_is_refused(text, says):
    with pytest.raises(RequestError) as refused:
        address_from_text(text)
    assert says in str(refused.value)


def test_files_are_no_addresses(tmp_path):
    assert not is_address(tmp_path / "a.onnx")
    assert not is_address("triton.onnx")
    assert artifact_name(tmp_path / "a.onnx") == "a.onnx"


def test_no_server_is_said_at_once():
    with pytest.raises(BackendError, match=r"no server answers at 127.0.0.1:9 .*boxwright serve"):
        load("triton://127.0.0.1:9/m")


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"device": "cuda"}, "a served model runs where its server runs it"),
        ({"runtime": "onnxruntime"}, "runs on its server"),
        ({"threads": 2}, "--threads"),
        ({"labels": "coco"}, "--labels"),
    ],
)
def test_options_of_files_are_refused(options, says):
    with pytest.raises(RequestError) as refused:
        load("triton://127.0.0.1:9/m", **options)
    assert says in str(refused.value)


@pytest.mark.parametrize(
    ("status", "message", "cause"),
    [
        (500, "Stub process 'yolo_0' is not healthy.", "busy"),
        (503, "Exceeds maximum queue size", "busy"),
        (400, "Unable to find shared memory region: 'x'", "busy"),
        (404, "Request for unknown model: 'yolo' has no available versions", "missing"),
        (400, "Request for unknown model: 'yolo' is not found", "missing"),
        (400, "unexpected inference input 'imgs' for model 'yolo'", "wrong"),
        (500, "ONNX Runtime failed: out of memory", "failed"),
    ],
)
def test_whose_fault_an_answer_is(status, message, cause):
    assert _cause_of(status, message) == cause


def test_perf_analyzer_without_figures_is_told():
    assert "cannot be read" in figures_from_csv("Concurrency\n").problem
    assert "cannot be read" in figures_from_csv("").problem


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--concurrency", "0"), "no positive number"),
        (("--concurrency", "1,2", "--iterations", "5"), "--iterations: it is of files"),
        (("--concurrency", "1", "--device", "cuda"), "--device"),
        (("--concurrency", "1", "a.onnx"), "served models are loaded by themselves"),
        (("--concurrency", "1", "--batch", "1,2"), "one is taken at a time"),
    ],
)
def test_a_load_test_refuses_what_it_does_not_do(cli, words, says):
    done = cli("benchmark", "triton://127.0.0.1:9/m", *words)
    assert done.code == 2
    assert says in done.error


def test_files_take_one_concurrency(cli, place):
    done = cli("benchmark", place / "tiny.onnx", "--concurrency", "1,2")
    assert done.code == 2
    assert "files are measured with one number" in done.error
