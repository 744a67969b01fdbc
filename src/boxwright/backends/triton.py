"""A model on a Triton server as a runtime: `triton://host:port/model`.

The server tells tensors and, in its configuration's parameter `boxwright`, what the model is; a
client needs nothing else. Outputs come back as the network makes them, so that pictures are
prepared and boxes decoded here; a model that takes the bytes of a picture file does both itself.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from boxwright.backends import BackendKind, BackendOptions, Feed
from boxwright.errors import BackendError, RequestError
from boxwright.triton_address import TritonAddress, address_from_text
from boxwright.triton_wire import (
    DTYPES,
    Asked,
    Region,
    RegionUse,
    TritonError,
    Wire,
    open_wire,
)
from boxwright.types import TensorInfo

__all__ = ["BACKEND", "PARAMETER", "TritonBackend"]

PARAMETER = "boxwright"
_ENCODED = "encoded_image"
_ALIGNMENT = 64
_LONGEST_PAUSE_S = 0.5
_RETRIED = ("away", "busy")


class TritonBackend:
    """A served model, for one thread at a time.

    Attributes:
        address: Where it is.
        inputs, outputs: As the server tells, with the batch in front.
        metadata: What the configuration says of the model, as files say it of themselves.
        largest_batch: `max_batch_size`; None where the model does not batch.
        retries: Requests that were sent again, so far.
    """

    def __init__(self, address: TritonAddress, options: BackendOptions) -> None:
        """Ask the server what the model is.

        Raises:
            MissingExtraError: gRPC was asked for and is not installed.
            RequestError: A device was asked for, which is the server's choice.
            BackendError: The server does not answer, or does not serve the model.
        """
        if options.device != "auto":
            raise RequestError(
                f"--device {options.device}",
                "a served model runs where its server runs it",
                "drop the option",
            )
        self.address = address
        self.retries = 0
        self._wire: Wire = open_wire(address)
        self._regions: dict[str, Region] = {}
        self._known = False
        told = self._patiently(self._wire.metadata)
        config = self._patiently(self._wire.config)
        self._known = True
        rows = int(config.get("max_batch_size", 0))
        self.largest_batch: int | None = rows or None
        self._batches = rows > 0
        optional = {i["name"] for i in config.get("input", ()) if i.get("optional")}
        inputs = [_info(i, rows) for i in told["inputs"]]
        self.inputs = tuple(sorted(inputs, key=lambda i: i.name in optional))
        self.outputs = tuple(_info(o, rows) for o in told["outputs"])
        self._ranks = {i.name: len(i.shape) for i in self.inputs}
        self.metadata: Mapping[str, str] = _metadata(config, address)
        kind = config.get("platform") or config.get("backend") or "model"
        chosen = address.version or ",".join(told.get("versions", ()))
        memory = ", shared memory" if address.shared_memory else ""
        self.description = (
            f"triton {kind} {address.model}:{chosen} at {address.server} "
            f"({'HTTP' if address.protocol == 'http' else 'gRPC'}{memory})"
        )

    def infer(self, feed: Feed) -> dict[str, npt.NDArray[Any]]:
        """Send one request.

        Raises:
            BackendError: The server refuses it, fails or is away for longer than `retry` says.
        """
        values = {n: self._with_batch(n, v, feed) for n, v in feed.items()}
        found: dict[str, npt.NDArray[Any]] = self._patiently(lambda: self._infer(values))
        return found

    def _with_batch(self, name: str, value: npt.NDArray[Any], feed: Feed) -> npt.NDArray[Any]:
        """Repeat a value that has no batch (a threshold) for each row of one that batches."""
        if not self._batches or value.ndim >= self._ranks.get(name, value.ndim):
            return value
        rows = len(feed[self.inputs[0].name])
        return np.repeat(value[None], rows, axis=0)

    def _infer(self, values: Mapping[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
        names = [o.name for o in self.outputs]
        if not self.address.shared_memory:
            found = self._wire.infer(Asked(values, names)).outputs
            return {n: found[n] for n in names}
        inputs_at = self._put_inputs(values)
        outputs_at = self._place_outputs(len(values[self.inputs[0].name]))
        try:
            answer = self._wire.infer(Asked(values, names, inputs_at, outputs_at))
        except TritonError as error:
            if "shared memory region" in error.message.lower():
                self._drop_regions()  # a server that was started anew knows of none
            raise
        found = dict(answer.outputs)
        for name, (dtype, shape) in answer.in_region.items():
            use = outputs_at[name]
            count = int(np.prod(shape, dtype=np.int64))
            view = self._regions["outputs"].view
            found[name] = np.frombuffer(view, dtype, count, use.offset).reshape(shape).copy()
        return {n: found[n] for n in names}

    def _put_inputs(self, values: Mapping[str, npt.NDArray[Any]]) -> dict[str, RegionUse]:
        places, end = {}, 0
        for name, value in values.items():
            places[name] = (end, value.nbytes)
            end += -(-value.nbytes // _ALIGNMENT) * _ALIGNMENT
        region = self._region("inputs", end)
        for name, value in values.items():
            offset, _ = places[name]
            there = np.frombuffer(region.view, value.dtype, value.size, offset)
            np.copyto(there.reshape(value.shape), value)
        return {n: RegionUse(region.name, offset, size) for n, (offset, size) in places.items()}

    def _place_outputs(self, rows: int) -> dict[str, RegionUse]:
        """Lay out the outputs whose size is known beforehand; others travel along."""
        places: dict[str, tuple[int, int]] = {}
        end = 0
        for info in self.outputs:
            shape = (rows, *info.shape[1:]) if self._batches else info.shape
            sizes = [d for d in shape if isinstance(d, int)]
            if len(sizes) == len(shape):
                size = int(np.prod(sizes, dtype=np.int64)) * np.dtype(info.dtype).itemsize
                places[info.name] = (end, size)
                end += -(-size // _ALIGNMENT) * _ALIGNMENT
        if not end:
            return {}
        region = self._region("outputs", end)
        return {n: RegionUse(region.name, offset, size) for n, (offset, size) in places.items()}

    def _region(self, kind: str, size: int) -> Region:
        """Return a registered region that is large enough."""
        region = self._regions.get(kind)
        if region is None or region.size < size:
            if region is not None:
                self._free(self._regions.pop(kind))
            region = Region.make(max(size, _ALIGNMENT))
            try:
                self._wire.register(region)
            except TritonError:
                region.close()
                raise
            self._regions[kind] = region
        return region

    def _free(self, region: Region) -> None:
        try:
            self._wire.unregister(region.name)
        except TritonError:
            pass  # the server is away, and with it the registration
        finally:
            region.close()

    def _drop_regions(self) -> None:
        for region in self._regions.values():
            self._free(region)
        self._regions.clear()

    def _patiently(self, ask: Any) -> Any:
        """Ask, and ask again for as long as the address says while the server is away or busy.

        A model that was there and is unknown now belongs to a server that is starting.

        Raises:
            BackendError: It stays so, or the request is at fault.
        """
        end = time.monotonic() + self.address.retry_s
        pause = 0.02
        while True:
            try:
                return ask()
            except TritonError as error:
                retried = error.cause in _RETRIED or (error.cause == "missing" and self._known)
                if not retried or time.monotonic() + pause > end:
                    raise self._refused(error) from None
            self.retries += 1
            time.sleep(pause)
            pause = min(pause * 2, _LONGEST_PAUSE_S)

    def _refused(self, error: TritonError) -> BackendError:
        what, told = self.address.text, error.message
        if error.cause == "away":
            found = f"no server answers at {self.address.server} ({told})"
            return BackendError(what, found, "start it with: boxwright serve, or check the port")
        advice = {
            "missing": "check the name and the version (boxwright serve prints them)",
            "busy": "try again, or add ?retry=SECONDS to the address",
            "wrong": f"it takes {self._signature()}",
            "failed": "see the server's log",
            "away": "",
        }
        return BackendError(what, f"the server says: {told}", advice[error.cause])

    def _signature(self) -> str:
        if not self._known:
            return "no such request"
        shapes = (f"{i.name} {i.dtype} ({', '.join(map(str, i.shape))})" for i in self.inputs)
        most = f", up to {self.largest_batch} at once" if self.largest_batch else ""
        return ", ".join(shapes) + most

    def close(self) -> None:
        """Close the connection and free shared memory."""
        self._drop_regions()
        self._wire.close()


def _info(told: Mapping[str, Any], rows: int) -> TensorInfo:
    """Read a tensor; a model that takes one row at a time has a fixed batch."""
    dims = [int(d) for d in told["shape"]]
    shape: list[int | str] = [d if d >= 0 else ("batch" if i == 0 else "?")
                              for i, d in enumerate(dims)]  # fmt: skip
    if rows == 1 or (told["name"] == _ENCODED and rows):
        shape[0] = 1  # files of several lengths cannot be rows of one request
    datatype = str(told["datatype"])
    return TensorInfo(str(told["name"]), DTYPES.get(datatype, datatype), tuple(shape))


def _metadata(config: Mapping[str, Any], address: TritonAddress) -> dict[str, str]:
    """Return what the configuration's parameter `boxwright` says.

    Raises:
        BackendError: It is no JSON.
    """
    text = config.get("parameters", {}).get(PARAMETER, {}).get("string_value", "")
    if not text:
        return {}
    try:
        return {str(k): v if isinstance(v, str) else json.dumps(v) for k, v in
                json.loads(text).items()}  # fmt: skip
    except (ValueError, AttributeError) as error:
        raise BackendError(
            address.text,
            f"the parameter {PARAMETER} of its configuration cannot be read ({error})",
            "build the repository again",
        ) from None


def _open(path: Path, options: BackendOptions) -> TritonBackend:
    raise RequestError(
        str(path), "a Triton server runs models of its own repository", "give triton://host/model"
    )


def _open_bytes(data: bytes, options: BackendOptions) -> TritonBackend:
    raise RequestError(
        "model", "a Triton server runs models of its own repository", "give triton://host/model"
    )


def _versions() -> dict[str, str]:
    try:
        return {"tritonclient": version("tritonclient")}
    except PackageNotFoundError:
        return {}


def _missing() -> str | None:
    return None  # HTTP needs the standard library alone


def _open_address(text: str, options: BackendOptions) -> TritonBackend:
    """Open a served model.

    Raises:
        RequestError: The address is wrong.
        BackendError: The server does not answer, or does not serve the model.
    """
    return TritonBackend(address_from_text(text), options)


BACKEND = BackendKind(
    name="triton",
    suffixes=(),
    missing=_missing,
    open=_open,
    open_bytes=_open_bytes,
    versions=_versions,
    open_address=_open_address,
)
