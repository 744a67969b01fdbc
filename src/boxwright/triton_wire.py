"""Triton's inference protocol (KServe v2): HTTP by the standard library, gRPC by tritonclient.

Large tensors travel as raw bytes in both, or through a region of system shared memory.
"""

from __future__ import annotations

import http.client
import json
import mmap
import os
import secrets
import urllib.parse
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from boxwright.errors import MissingExtraError
from boxwright.triton_address import TritonAddress

__all__ = [
    "DTYPES",
    "Cause",
    "Region",
    "RegionUse",
    "TritonError",
    "Wire",
    "open_wire",
]

Array: TypeAlias = npt.NDArray[Any]
# away: nobody answers; busy: not now; missing: no such model; wrong: the request; failed: the model
Cause: TypeAlias = Literal["away", "busy", "missing", "wrong", "failed"]

DTYPES = {
    "BOOL": "bool",
    "UINT8": "uint8",
    "UINT16": "uint16",
    "UINT32": "uint32",
    "UINT64": "uint64",
    "INT8": "int8",
    "INT16": "int16",
    "INT32": "int32",
    "INT64": "int64",
    "FP16": "float16",
    "FP32": "float32",
    "FP64": "float64",
}
_NAMES = {v: k for k, v in DTYPES.items()}
_SHARED_MEMORY = Path("/dev/shm")


class TritonError(Exception):
    """What the server or the connection answered instead of outputs.

    Attributes:
        cause: Whose fault it is, as far as it can be told.
        message: In the server's own words.
    """

    def __init__(self, cause: Cause, message: str) -> None:
        self.cause: Cause = cause
        self.message = " ".join(message.split())
        super().__init__(self.message)


@dataclass(slots=True)
class Region:
    """A region of system shared memory of this process.

    Attributes:
        name: Under which the server knows it, and its file.
        size: In bytes.
        view: Its bytes.
    """

    name: str
    size: int
    view: mmap.mmap

    @classmethod
    def make(cls, size: int) -> Region:
        """Make one.

        Raises:
            TritonError: This machine has no room or no such memory.
        """
        name = f"boxwright_{os.getpid()}_{secrets.token_hex(4)}"
        try:
            number = os.open(_SHARED_MEMORY / name, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600)
            try:
                os.posix_fallocate(number, 0, size)
                view = mmap.mmap(number, size)
            except OSError:
                (_SHARED_MEMORY / name).unlink()
                raise
            finally:
                os.close(number)
        except OSError as error:
            reason = error.strerror or type(error).__name__
            raise TritonError("failed", f"no shared memory of {size} bytes: {reason}") from None
        return cls(name, size, view)

    def close(self) -> None:
        """Free it."""
        with suppress(BufferError):  # an array of outputs still looks at it
            self.view.close()
        (_SHARED_MEMORY / self.name).unlink(missing_ok=True)


@dataclass(frozen=True, slots=True)
class RegionUse:
    """Where in a region a tensor lies."""

    region: str
    offset: int
    size: int


@dataclass(frozen=True, slots=True)
class Asked:
    """A request.

    Attributes:
        inputs: Arrays by name.
        outputs: Names.
        inputs_at: Where inputs lie that do not travel along.
        outputs_at: Where outputs shall be put.
    """

    inputs: Mapping[str, Array]
    outputs: Sequence[str]
    inputs_at: Mapping[str, RegionUse] = field(default_factory=dict)
    outputs_at: Mapping[str, RegionUse] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Answered:
    """An answer: outputs that travelled along, and dtype and shape of those in a region."""

    outputs: dict[str, Array]
    in_region: dict[str, tuple[str, tuple[int, ...]]]


class Wire(Protocol):
    """A connection to one model."""

    def metadata(self) -> dict[str, Any]: ...

    def config(self) -> dict[str, Any]: ...

    def statistics(self, model: str) -> list[dict[str, Any]]: ...

    def infer(self, asked: Asked) -> Answered: ...

    def register(self, region: Region) -> None: ...

    def unregister(self, name: str) -> None: ...

    def close(self) -> None: ...


def open_wire(address: TritonAddress) -> Wire:
    """Return a connection; it connects with the first request.

    Raises:
        MissingExtraError: gRPC was asked for and is not installed.
    """
    return _Http(address) if address.protocol == "http" else _Grpc(address)


def _cause_of(status: int, message: str) -> Cause:
    """Tell whose fault an answer is.

    Triton says of a model that is being loaded that it is unknown or not ready, and of a Python
    model whose process was killed that it is not healthy.
    """
    text = message.lower()
    if "not healthy" in text or "stub process" in text or status == 503:
        return "busy"
    if "unable to find shared memory region" in text or "maximum queue size" in text:
        return "busy"
    if "unknown model" in text or "not found" in text or "is not ready" in text or status == 404:
        return "missing"
    return "wrong" if 400 <= status < 500 else "failed"


class _Http:
    """HTTP/1.1 with the binary tensor extension, over one kept connection."""

    def __init__(self, address: TritonAddress) -> None:
        self._address = address
        version = f"/versions/{address.version}" if address.version else ""
        self._path = f"/v2/models/{urllib.parse.quote(address.model, safe='')}{version}"
        self._connection: http.client.HTTPConnection | None = None

    def metadata(self) -> dict[str, Any]:
        return self._json("GET", self._path)

    def config(self) -> dict[str, Any]:
        return self._json("GET", f"{self._path}/config")

    def statistics(self, model: str) -> list[dict[str, Any]]:
        found = self._json("GET", f"/v2/models/{urllib.parse.quote(model, safe='')}/stats")
        return list(found["model_stats"])

    def register(self, region: Region) -> None:
        told = {"key": f"/{region.name}", "offset": 0, "byte_size": region.size}
        self._json("POST", f"/v2/systemsharedmemory/region/{region.name}/register", told)

    def unregister(self, name: str) -> None:
        self._json("POST", f"/v2/systemsharedmemory/region/{name}/unregister", {})

    def infer(self, asked: Asked) -> Answered:
        inputs: list[dict[str, Any]] = []
        parts: list[Any] = []
        for name, value in asked.inputs.items():
            entry: dict[str, Any] = {
                "name": name,
                "shape": list(value.shape),
                "datatype": _NAMES[value.dtype.name],
            }
            if name in asked.inputs_at:
                entry["parameters"] = _place(asked.inputs_at[name])
            else:
                parts.append(np.ascontiguousarray(value))
                entry["parameters"] = {"binary_data_size": value.nbytes}
            inputs.append(entry)
        outputs = [
            {"name": n, "parameters": _place(asked.outputs_at[n])}
            if n in asked.outputs_at
            else {"name": n, "parameters": {"binary_data": True}}
            for n in asked.outputs
        ]
        head = json.dumps({"inputs": inputs, "outputs": outputs}).encode()
        size = len(head) + sum(p.nbytes for p in parts)
        headers = {
            "Content-Type": "application/octet-stream",
            "Inference-Header-Content-Length": str(len(head)),
            "Content-Length": str(size),
        }
        body = [head, *(memoryview(p).cast("B") for p in parts if p.nbytes)]
        status, told, data = self._ask("POST", f"{self._path}/infer", body, headers)
        if status != 200:
            raise _refusal(status, data)
        length = int(told.get("inference-header-content-length") or len(data))
        return _answer_from_json(json.loads(data[:length]), memoryview(data)[length:])

    def _json(self, method: str, path: str, body: Any = None) -> dict[str, Any]:
        parts = [] if body is None else [json.dumps(body).encode()]
        headers = {"Content-Length": str(sum(len(p) for p in parts))}
        status, _, data = self._ask(method, path, parts, headers)
        if status != 200:
            raise _refusal(status, data)
        found: dict[str, Any] = json.loads(data) if data.strip() else {}
        return found

    def _ask(
        self, method: str, path: str, parts: Sequence[Any], headers: Mapping[str, str]
    ) -> tuple[int, Mapping[str, str], bytes]:
        """Send a request; a kept connection that the server has closed is opened again, once."""
        kept = self._connection is not None
        try:
            return self._send(method, path, parts, headers)
        except (http.client.RemoteDisconnected, ConnectionResetError, BrokenPipeError) as error:
            self.close()
            if not kept:
                raise TritonError("away", f"{type(error).__name__}: {error}") from None
        except (OSError, http.client.HTTPException) as error:
            raise self._away(error) from None
        try:
            return self._send(method, path, parts, headers)
        except (OSError, http.client.HTTPException) as error:
            raise self._away(error) from None

    def _away(self, error: Exception) -> TritonError:
        self.close()
        if isinstance(error, TimeoutError):
            return TritonError("failed", f"no answer within {self._address.timeout_s:g} s")
        return TritonError("away", str(error) or type(error).__name__)

    def _send(
        self, method: str, path: str, parts: Sequence[Any], headers: Mapping[str, str]
    ) -> tuple[int, Mapping[str, str], bytes]:
        if self._connection is None:
            self._connection = http.client.HTTPConnection(
                self._address.host, self._address.port, timeout=self._address.timeout_s
            )
        connection = self._connection
        connection.putrequest(method, path)
        for name, value in headers.items():
            connection.putheader(name, value)
        connection.endheaders()
        for part in parts:
            connection.send(part)
        answer = connection.getresponse()
        return answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read()

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None


def _place(use: RegionUse) -> dict[str, Any]:
    return {
        "shared_memory_region": use.region,
        "shared_memory_offset": use.offset,
        "shared_memory_byte_size": use.size,
    }


def _refusal(status: int, data: bytes) -> TritonError:
    try:
        message = str(json.loads(data)["error"])
    except (ValueError, KeyError, TypeError):
        message = data[:200].decode(errors="replace") or f"status {status}"
    return TritonError(_cause_of(status, message), message)


def _answer_from_json(head: Mapping[str, Any], data: memoryview) -> Answered:
    outputs: dict[str, Array] = {}
    in_region: dict[str, tuple[str, tuple[int, ...]]] = {}
    offset = 0
    for entry in head["outputs"]:
        dtype, shape = DTYPES[entry["datatype"]], tuple(int(d) for d in entry["shape"])
        told = entry.get("parameters", {})
        if "binary_data_size" in told:
            size = int(told["binary_data_size"])
            outputs[entry["name"]] = _array(data[offset : offset + size], dtype, shape)
            offset += size
        elif "data" in entry:
            outputs[entry["name"]] = np.array(entry["data"], dtype).reshape(shape)
        else:
            in_region[entry["name"]] = (dtype, shape)
    return Answered(outputs, in_region)


def _array(data: Any, dtype: str, shape: tuple[int, ...]) -> Array:
    """Return bytes as an array.

    Raises:
        TritonError: There are fewer or more than the shape says: a server whose Python has NumPy 2
            answers so.
    """
    wanted = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
    if len(data) != wanted:
        raise TritonError(
            "failed", f"an output of shape {list(shape)} came with {len(data)} of {wanted} bytes"
        )
    return np.frombuffer(data, dtype).reshape(shape)


class _Grpc:
    """gRPC, by the stubs that tritonclient holds."""

    def __init__(self, address: TritonAddress) -> None:
        try:
            import grpc
            from tritonclient.grpc import service_pb2, service_pb2_grpc
        except ImportError:
            raise MissingExtraError("tritonclient with gRPC", "triton") from None
        self._address, self._grpc, self._messages = address, grpc, service_pb2
        options = [
            ("grpc.max_send_message_length", -1),
            ("grpc.max_receive_message_length", -1),
            ("grpc.use_local_subchannel_pool", 1),  # a connection of its own, as with HTTP
            ("grpc.initial_reconnect_backoff_ms", 100),
            ("grpc.max_reconnect_backoff_ms", 1000),
        ]
        self._channel = grpc.insecure_channel(address.server, options=options)
        self._stub = service_pb2_grpc.GRPCInferenceServiceStub(self._channel)

    def metadata(self) -> dict[str, Any]:
        asked = self._messages.ModelMetadataRequest(
            name=self._address.model, version=self._address.version
        )
        found = self._call(self._stub.ModelMetadata, asked)
        return {
            kind: [
                {"name": t.name, "datatype": t.datatype, "shape": [int(d) for d in t.shape]}
                for t in getattr(found, kind)
            ]
            for kind in ("inputs", "outputs")
        } | {"versions": list(found.versions), "platform": found.platform}

    def config(self) -> dict[str, Any]:
        from google.protobuf.json_format import MessageToDict

        asked = self._messages.ModelConfigRequest(
            name=self._address.model, version=self._address.version
        )
        found = self._call(self._stub.ModelConfig, asked)
        told: dict[str, Any] = MessageToDict(found.config, preserving_proto_field_name=True)
        return told

    def statistics(self, model: str) -> list[dict[str, Any]]:
        from google.protobuf.json_format import MessageToDict

        asked = self._messages.ModelStatisticsRequest(name=model)
        told = MessageToDict(
            self._call(self._stub.ModelStatistics, asked), preserving_proto_field_name=True
        )
        return list(told["model_stats"])

    def register(self, region: Region) -> None:
        asked = self._messages.SystemSharedMemoryRegisterRequest(
            name=region.name, key=f"/{region.name}", offset=0, byte_size=region.size
        )
        self._call(self._stub.SystemSharedMemoryRegister, asked)

    def unregister(self, name: str) -> None:
        asked = self._messages.SystemSharedMemoryUnregisterRequest(name=name)
        self._call(self._stub.SystemSharedMemoryUnregister, asked)

    def infer(self, asked: Asked) -> Answered:
        request = self._messages.ModelInferRequest(
            model_name=self._address.model, model_version=self._address.version
        )
        for name, value in asked.inputs.items():
            entry = request.inputs.add()
            entry.name, entry.datatype = name, _NAMES[value.dtype.name]
            entry.shape.extend(value.shape)
            if name in asked.inputs_at:
                _put(entry.parameters, asked.inputs_at[name])
            else:
                request.raw_input_contents.append(value.tobytes())
        for name in asked.outputs:
            output = request.outputs.add()
            output.name = name
            if name in asked.outputs_at:
                _put(output.parameters, asked.outputs_at[name])
        found = self._call(self._stub.ModelInfer, request)
        outputs: dict[str, Array] = {}
        in_region: dict[str, tuple[str, tuple[int, ...]]] = {}
        for place, entry in enumerate(found.outputs):
            dtype, shape = DTYPES[entry.datatype], tuple(int(d) for d in entry.shape)
            if entry.name in asked.outputs_at:
                in_region[entry.name] = (dtype, shape)
            else:
                outputs[entry.name] = _array(found.raw_output_contents[place], dtype, shape)
        return Answered(outputs, in_region)

    def _call(self, method: Any, asked: Any) -> Any:
        try:
            return method(asked, timeout=self._address.timeout_s)
        except self._grpc.RpcError as error:
            raise self._failure(error) from None

    def _failure(self, error: Any) -> TritonError:
        code, message = error.code().name, str(error.details() or error.code().name)
        if code == "DEADLINE_EXCEEDED":
            return TritonError("failed", f"no answer within {self._address.timeout_s:g} s")
        said_by_server = "maximum queue size" in message.lower() or "not ready" in message.lower()
        if code in ("UNAVAILABLE", "CANCELLED") and not said_by_server:
            return TritonError("away", message)
        statuses = {"UNAVAILABLE": 503, "NOT_FOUND": 404, "INVALID_ARGUMENT": 400}
        return TritonError(_cause_of(statuses.get(code, 500), message), message)

    def close(self) -> None:
        self._channel.close()


def _put(parameters: Any, use: RegionUse) -> None:
    parameters["shared_memory_region"].string_param = use.region
    parameters["shared_memory_offset"].int64_param = use.offset
    parameters["shared_memory_byte_size"].int64_param = use.size
