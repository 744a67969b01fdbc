"""The doctor: recorded outputs of programs, judgements of machines that are not here, files."""

from __future__ import annotations

import dataclasses
import json

import pytest

from boxwright import doctor
from boxwright.doctor import (
    Jetson,
    Machine,
    PlanLibrary,
    Provider,
    Runtime,
    judge,
    judge_file,
    probe,
)
from boxwright.doctor.jetson import (
    count_dla_cores,
    jetpack_from_l4t,
    l4t_from_release,
    power_mode_from_nvpmodel,
    workspace_advice,
)
from boxwright.engine_record import EngineRecord, record_bytes, sidecar_path
from boxwright.errors import RequestError
from boxwright.gpus import (
    GpuFacts,
    cuda_from_banner,
    device_numbers,
    gpus_from_query,
    query_gpus,
    visible_gpus,
)
from boxwright.sample import onnx_file
from boxwright.store import sha256_of_bytes

FIELDS = (
    "index", "name", "uuid", "memory.total", "memory.used", "driver_version",
    "persistence_mode", "clocks.sm", "clocks.max.sm", "clocks.mem", "power.limit",
    "compute_cap", "mig.mode.current",
)  # fmt: skip
H100_LINE = (
    "0, NVIDIA H100 80GB HBM3, GPU-2f3e, 81559 MiB, 4 MiB, 580.65.06, Enabled, 1980 MHz, "
    "1980 MHz, 2619 MHz, 700.00 W, 9.0, Disabled"
)
ORIN_LINE = (
    "0, Orin (nvgpu), [N/A], [N/A], [N/A], N/A, [N/A], [N/A], [N/A], [N/A], [N/A], 8.7, [N/A]"
)
BANNER = """
+-----------------------------------------------------------------------------------------+
| NVIDIA-SMI 550.54.15              Driver Version: 550.54.15      CUDA Version: 12.4     |
|-----------------------------------------+------------------------+----------------------+
"""
H100 = GpuFacts(0, "NVIDIA H100", "GPU-2f3e", "9.0", 81559, 4, "580.65.06")
ADA = GpuFacts(0, "NVIDIA L4", "GPU-77aa", "8.9", 23034, 0, "580.65.06")


def machine(**changes: object) -> Machine:
    """A server with one H100 that has everything."""
    made = Machine(
        system={"system": "Linux"},
        processor={"memory_gib": "61.4"},
        runtimes=(
            Runtime("onnxruntime", (".onnx",), {"onnxruntime": "1.31.1"}),
            Runtime("openvino", (".onnx",), {}, "it is not installed", "pip install x"),
            Runtime("pytorch", (".pt",), {"torch": "2.11.0"}),
        ),
        packages={
            "onnxruntime-gpu": "1.31.1",
            "cuda-bindings": "13.0.3",
            "numpy": "2.3.0",
            "torch": "2.11.0",
            "ultralytics": "8.4.190",
        },
        torch_cuda="13.0",
        providers=(Provider("CUDAExecutionProvider"), Provider("CPUExecutionProvider")),
        plan_libraries=(
            PlanLibrary("tensorrt", "10.9.0"),
            PlanLibrary("tensorrt-rtx", "1.7.1.116"),
        ),
        gpus=(H100,),
        cuda_served="13.0",
        disk_free_gib=100.0,
        tritonserver="/opt/tritonserver/bin/tritonserver",
    )
    return dataclasses.replace(made, **changes)


def lines(of: Machine) -> str:
    return "\n".join(str(v) for v in judge(of))


def test_a_recorded_query_is_read():
    (gpu,) = gpus_from_query(H100_LINE, FIELDS)
    assert (gpu.name, gpu.compute_capability, gpu.memory_mib) == (
        "NVIDIA H100 80GB HBM3", "9.0", 81559,
    )  # fmt: skip
    assert gpu.mig == "Disabled" and gpu.persistence == "Enabled"
    assert gpu.clocks == "sm 1980 MHz of 1980 MHz, memory 2619 MHz, 700.00 W"
    (orin,) = gpus_from_query(ORIN_LINE, FIELDS)
    assert orin.compute_capability == "8.7" and orin.memory_mib is None and orin.clocks == ""


@pytest.mark.parametrize(
    "text",
    ["", "No devices were found", "0, two, words", "Unable to determine the device handle", "x,y"],
)
def test_odd_outputs_are_no_gpus(text):
    assert gpus_from_query(text, FIELDS) == ()


def test_an_old_driver_is_asked_for_less(monkeypatch):
    """An unknown field fails the whole query; it is asked again without the new ones."""
    asked = []

    def old_driver(*words: str) -> str | None:
        asked.append(words[0])
        if "compute_cap" in words[0] or "mig" in words[0]:
            return None
        return H100_LINE.rsplit(",", 2)[0]

    monkeypatch.setattr("boxwright.gpus.run_nvidia_smi", old_driver)
    (gpu,) = query_gpus()
    assert gpu.driver == "580.65.06" and gpu.compute_capability == "" and len(asked) == 2


def test_a_missing_hanging_or_failing_nvidia_smi_is_none(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert query_gpus() is None
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\nexit 9\n")
    program.chmod(0o755)
    assert query_gpus() is None
    program.write_text("#!/bin/sh\nwhile :; do :; done\n")
    monkeypatch.setattr("boxwright.gpus._SECONDS", 0.05)
    assert query_gpus() is None
    program.write_text(f"#!/bin/sh\necho '{H100_LINE}'\n")
    monkeypatch.setattr("boxwright.gpus._SECONDS", 10)
    assert query_gpus()[0].name == "NVIDIA H100 80GB HBM3"


def test_the_banner_names_cuda():
    assert cuda_from_banner(BANNER) == "12.4"
    assert cuda_from_banner("| CUDA UMD Version: 13.1 |") == "13.1"
    assert cuda_from_banner("NVIDIA-SMI has failed because it couldn't communicate") == ""


FOUR = tuple(GpuFacts(i, "A100", f"GPU-{i}abc") for i in range(4))


@pytest.mark.parametrize(
    ("listed", "expected"),
    [
        (None, ["0", "1", "2", "3"]),
        ("2,0", ["2", "0"]),
        ("GPU-3a,1", ["GPU-3a", "1"]),
        ("1,9,2", ["1"]),
        ("", []),
        ("-1", []),
        ("MIG-5", ["MIG-5"]),
    ],
)
def test_cuda_visible_devices_orders_and_hides(listed, expected):
    environment = {} if listed is None else {"CUDA_VISIBLE_DEVICES": listed}
    assert [word for word, _ in visible_gpus(environment, FOUR)] == expected


@pytest.mark.parametrize(
    ("text", "environment", "words"),
    [
        ("7", {}, "there is no GPU 7; here are 0 (A100), 1 (A100), 2 (A100), 3 (A100)"),
        ("a", {}, "'a' is no number of a GPU; here are 0"),
        ("0,0", {}, "a GPU is named twice; here are 0"),
        ("", {}, "'' is no number"),
        ("1", {"CUDA_VISIBLE_DEVICES": "3"}, "there is no GPU 1; here are 0 (A100)"),
        ("0", {"CUDA_VISIBLE_DEVICES": ""}, "leaves no GPU"),
    ],
)
def test_bad_device_lists_say_which_gpus_there_are(text, environment, words):
    with pytest.raises(RequestError) as caught:
        device_numbers(text, environment, lambda: FOUR)
    assert words in str(caught.value)


def test_device_lists_are_read():
    assert device_numbers("2,0", {}, lambda: FOUR) == ((2, "2"), (0, "0"))
    assert device_numbers("all", {"CUDA_VISIBLE_DEVICES": "3,1"}, lambda: FOUR) == (
        (0, "3"),
        (1, "1"),
    )
    with pytest.raises(RequestError, match="nvidia-smi lists no GPU here"):
        device_numbers("0", {}, lambda: None)


# -- Jetson: the files as NVIDIA's documentation shows them


@pytest.mark.parametrize(
    ("release", "l4t", "jetpack"),
    [
        ("# R36 (release), REVISION: 4.3, GCID: 38968081, BOARD: generic, EABI: aarch64, DATE: Wed",
         "36.4.3", "6.2"),
        ("# R35 (release), REVISION: 4.1, GCID: 33958178, BOARD: t186ref, EABI: aarch64",
         "35.4.1", "5.1.2"),
        ("# R32 (release), REVISION: 7.1, GCID: 29818004, BOARD: t210ref, EABI: aarch64",
         "32.7.1", "4.6"),
        ("something else", "", ""),
    ],
)  # fmt: skip
def test_releases_of_jetson_linux(release, l4t, jetpack):
    assert l4t_from_release(release) == l4t
    assert jetpack_from_l4t(l4t) == jetpack


@pytest.mark.parametrize(
    ("board", "memory", "advice"),
    [
        ("NVIDIA Jetson Nano Developer Kit", 3.9, "1 to 2"),
        ("NVIDIA Jetson Xavier NX Developer Kit", 7.6, "2 to 4"),
        ("Jetson AGX Orin", 30.3, "4 to 8"),
        ("NVIDIA Jetson AGX Orin Developer Kit", 61.4, "4 to 8"),
        ("NVIDIA Jetson Orin Nano Engineering Reference Developer Kit Super", 7.4, "2 to 4"),
    ],
)
def test_workspace_by_board(board, memory, advice):
    assert workspace_advice(board, memory).startswith(advice)


def test_a_whole_jetson(tmp_path, monkeypatch):
    """Board, release, DLA and power mode of files and programs as an AGX Orin has them."""
    tree = tmp_path / "proc/device-tree"
    for core in (0, 1):
        node = tree / f"bus@0/host1x@13e00000/nvdla{core}@15880000"
        node.mkdir(parents=True)
        (node / "status").write_bytes(b"okay\0" if core == 0 else b"disabled\0")
    (tree / "model").write_bytes(b"NVIDIA Jetson AGX Orin Developer Kit\0")
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/nv_tegra_release").write_text("# R36 (release), REVISION: 4.3, GCID: 3\n")
    programs = tmp_path / "bin"
    programs.mkdir()
    for name, text in (("nvpmodel", "NV Power Mode: MODE_30W\\n2\\n"), ("dpkg-query", "6.2+b77")):
        (programs / name).write_text(f"#!/bin/sh\nprintf '{text}'\n")
        (programs / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(programs))
    found = probe._jetson(tmp_path)
    assert found == Jetson("NVIDIA Jetson AGX Orin Developer Kit", "36.4.3", "6.2", 1, "MODE_30W")
    assert count_dla_cores(tmp_path / "nowhere") == 0
    told = lines(machine(jetson=found))
    assert "--workspace-gib 4 to 8" in told and "can use the DLA: 1 cores" in told
    assert "the power mode is MODE_30W" in told
    assert probe._jetson(tmp_path / "nowhere") is None
    assert power_mode_from_nvpmodel("NVPM ERROR: no power mode") == ""


# -- judgements


def test_a_good_machine_can_everything_but_what_its_gpu_cannot():
    told = lines(machine())
    assert "can run ONNX files on the GPU (--device cuda)" in told.splitlines()
    assert "can build plans of TensorRT: 10.9.0, for NVIDIA H100 (9.0)" in told
    assert "can run plans of TensorRT" in told.splitlines()
    assert (
        "cannot run plans of TensorRT-RTX: it runs on compute capability 8.0, 8.6, 8.9 and 12.x "
        "only (NVIDIA H100 is 9.0)" in told
    )
    assert "can run plans of TensorRT-RTX" in lines(machine(gpus=(ADA,))).splitlines()
    assert "can build plans of TensorRT-RTX: 1.7.1.116; it needs no GPU" in lines(machine(gpus=()))


SMALL = {"numpy": "2.0.1", "onnxruntime": "1.31.1", "torch": "2.13.0"}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"providers": (Provider("CPUExecutionProvider"),)},
         "this ONNX Runtime has no CUDA provider; pip uninstall -y onnxruntime"),
        ({"packages": {"onnxruntime": "1.31", "onnxruntime-gpu": "1.31"}},
         "onnxruntime and onnxruntime-gpu are installed side by side"),
        ({"providers": (Provider("CUDAExecutionProvider", "libcudnn.so.9 is not found"),)},
         "its libraries do not load: libcudnn.so.9 is not found; pip install nvidia-cudnn"),
        ({"providers": (Provider("TensorrtExecutionProvider", "libnvinfer.so.10 is not found"),)},
         "libnvinfer.so.10 is not found; install the TensorRT that this ONNX Runtime"),
        ({"providers": (Provider("onnxruntime", "it does not import (boom)"),)},
         "cannot run ONNX files: onnxruntime: it does not import (boom)"),
        ({"torch_cuda": ""}, "torch 2.11.0 is a CPU build, while a GPU is here"),
        ({"cuda_served": "12.4"}, "torch 2.11.0 wants CUDA 13.0, the driver serves up to 12.4"),
        ({"packages": SMALL}, "cuda-bindings is not installed; pip install cuda-bindings"),
        ({"packages": SMALL}, "ultralytics is not installed"),
        ({"packages": SMALL, "plan_libraries": (PlanLibrary("tensorrt", "8.6.0"),)},
         "the bindings of TensorRT 8.6.0 are older than NumPy 2"),
        ({"plan_libraries": (PlanLibrary("tensorrt", "", "this release is known to be broken; "
                                                         "update to 10.3 or newer"),)},
         "cannot build and run plans of TensorRT: this release is known to be broken; update"),
        ({"gpus": (), "gpu_problem": "nvidia-smi is not there"},
         "cannot build plans of TensorRT: there is no GPU here (nvidia-smi is not there); build"),
        ({"gpus": (dataclasses.replace(H100, mig="Enabled"),)}, "MIG divides it"),
        ({"disk_free_gib": 0.5}, "the disk here has 0.5 GiB free"),
        ({"tritonserver": ""}, "tritonserver is not there"),
    ],
)  # fmt: skip
def test_every_obstacle_is_told_with_what_to_do(changes, words):
    assert words in lines(machine(**changes))
    assert words not in lines(machine())


def test_a_probe_that_crashes_hangs_or_babbles_is_told(monkeypatch):
    assert probe.answer_of("print('[1]')") == ([1], "")
    assert probe.answer_of("import os; os.abort()")[1] == "its process ended by signal 6"
    assert probe.answer_of("raise ImportError('libx.so')")[1] == "ImportError: libx.so"
    assert "answers oddly" in probe.answer_of("print('hello')")[1]
    monkeypatch.setattr(probe, "_PATIENCE_S", 0.2)
    assert "does not answer" in probe.answer_of("import time; time.sleep(9)")[1]


# -- files

PLAN = b"plan"


@pytest.fixture
def plan(tmp_path):
    def write(**changes: object):
        record = EngineRecord(
            runtime="tensorrt", version="10.9.0", gpu="NVIDIA H100", compute_capability="9.0",
            driver="580", cuda="13.0", source="a.onnx", source_sha256="0",
            plan_sha256=sha256_of_bytes(PLAN), size_bytes=4, profile={}, settings={}, metadata={},
            build_seconds=1.0, command="boxwright build a.onnx", trtexec="trtexec",
        )  # fmt: skip
        path = tmp_path / "a.plan"
        path.write_bytes(PLAN)
        sidecar_path(path).write_bytes(record_bytes(dataclasses.replace(record, **changes)))
        return path

    return write


@pytest.mark.parametrize(
    ("changes", "here", "can", "words"),
    [
        ({}, {}, True, "TensorRT 10.9.0 on NVIDIA H100"),
        ({"version": "8.6.0"}, {}, False, "built for TensorRT 8.6.0, this is TensorRT 10.9.0"),
        ({"compute_capability": "8.6"}, {}, False, "compute capability 8.6"),
        ({}, {"gpus": ()}, False, "there is no GPU here; run it on NVIDIA H100"),
        ({}, {"gpus": (ADA, H100)}, True, "on NVIDIA H100"),
        ({}, {"plan_libraries": ()}, False, "TensorRT 10.9.0 is wanted: TensorRT is not installed"),
        ({"plan_sha256": "1"}, {}, False, "describes another plan"),
        ({"runtime": "tensorrt-rtx", "version": "1.7.1.116"}, {}, False,
         "TensorRT-RTX does not run on compute capability 9.0 (NVIDIA H100)"),
        ({"runtime": "tensorrt-rtx", "version": "1.7.1.116"}, {"gpus": (ADA,)}, True, "NVIDIA L4"),
    ],
)  # fmt: skip
def test_plans(plan, changes, here, can, words):
    verdict = judge_file(plan(**changes), machine(**here))
    assert verdict.can is can and words in str(verdict)
    assert can or verdict.do


def test_other_files(tmp_path):
    (tmp_path / "bad.onnx").write_bytes(b"no model")
    (tmp_path / "a.txt").touch()
    (tmp_path / "a.plan").touch()
    (tmp_path / "a.pt").touch()
    assert judge_file(onnx_file(), machine()).can
    for name, words in (
        ("bad.onnx", "ONNX Runtime refuses it"),
        ("none.onnx", "there is no such file"),
        ("a.txt", "no runtime reads .txt"),
        ("a.plan", "a.plan.json is missing"),
    ):
        verdict = judge_file(tmp_path / name, machine())
        assert not verdict.can and words in verdict.because
    assert judge_file(tmp_path / "a.pt", machine()).can
    without = Runtime("pytorch", (".pt",), {}, "it is not installed", "pip install y")
    assert not judge_file(tmp_path / "a.pt", machine(runtimes=(without,))).can


# -- the verb


def test_the_verb_tells_of_this_machine(cli, tmp_path):
    """Once for real: whatever this machine is, it exits 0 and is JSON."""
    ran = cli("doctor", onnx_file(), "--json")
    assert ran.code == 0, ran.err
    told = json.loads(ran.out)
    assert {r["name"] for r in told["machine"]["runtimes"]} >= {"onnxruntime", "tensorrt"}
    assert any(p["name"] == "CPUExecutionProvider" for p in told["machine"]["providers"])
    assert told["files"][0]["can"] is True
    assert all(v["do"] for v in told["verdicts"] if not v["can"])


def test_tables_and_lines(cli, tmp_path, monkeypatch):
    monkeypatch.setattr(doctor, "look_at_machine", lambda: machine(jetson=Jetson("Board", "36.4")))
    ran = cli("doctor", tmp_path / "none.plan")
    assert ran.code == 1
    for words in ("NVIDIA H100", "36.4", "CUDAExecutionProvider", "ready", "580.65.06"):
        assert words in ran.out
    assert ran.out.splitlines()[-1].startswith(f"cannot run {tmp_path / 'none.plan'}: there is no")
