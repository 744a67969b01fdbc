"""Addresses of served models: `triton://host:port/model[:version]`. Pure."""

from __future__ import annotations

import re
import urllib.parse
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

from boxwright.errors import RequestError, nearest_name

__all__ = ["TritonAddress", "address_from_text", "artifact_name", "is_address"]

Protocol: TypeAlias = Literal["http", "grpc"]
_SCHEME = re.compile(r"triton(?:\+[a-z]*)?://", re.IGNORECASE)
_SCHEMES: dict[str, Protocol] = {"triton": "http", "triton+http": "http", "triton+grpc": "grpc"}
_PORTS: dict[Protocol, int] = {"http": 8000, "grpc": 8001}
_OPTIONS = ("protocol", "shared-memory", "retry", "timeout")
_HOW = "use triton://host:port/model[:version], triton+grpc://... for gRPC"


@dataclass(frozen=True, slots=True)
class TritonAddress:
    """A model on a server, and how to talk to it.

    Attributes:
        host, port: Where the server listens.
        model, version: What it serves; "" is the version that the server chooses.
        protocol: `http` or `grpc`.
        shared_memory: Tensors go through system shared memory; for a server on this machine.
        retry_s: For how long a request is sent again when the server is away; 0 gives up at once.
        timeout_s: Longest time for one answer.
    """

    host: str
    port: int
    model: str
    version: str = ""
    protocol: Protocol = "http"
    shared_memory: bool = False
    retry_s: float = 0.0
    timeout_s: float = 60.0

    @property
    def text(self) -> str:
        """The address as a user writes it."""
        scheme = "triton" if self.protocol == "http" else "triton+grpc"
        version = f":{self.version}" if self.version else ""
        options = []
        if self.shared_memory:
            options.append("shared-memory=system")
        if self.retry_s:
            options.append(f"retry={self.retry_s:g}")
        tail = f"?{'&'.join(options)}" if options else ""
        return f"{scheme}://{self.server}/{self.model}{version}{tail}"

    @property
    def server(self) -> str:
        """`host:port`."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def is_address(text: object) -> bool:
    """Whether a word is the address of a served model.

    >>> is_address("triton://localhost:8000/yolo"), is_address("yolo.onnx")
    (True, False)
    """
    return isinstance(text, str) and _SCHEME.match(text) is not None


def artifact_name(artifact: Path | str) -> str:
    """Return what tables call a file or a served model.

    >>> artifact_name(Path("a/b.onnx")), artifact_name("triton://h:1/m")
    ('b.onnx', 'triton://h:1/m')
    """
    if isinstance(artifact, str) and is_address(artifact):
        return artifact
    return Path(artifact).name


def address_from_text(text: str) -> TritonAddress:
    """Read an address.

    Raises:
        RequestError: It is none.

    >>> address_from_text("triton+grpc://gpu1/yolo:3?retry=5").text
    'triton+grpc://gpu1:8001/yolo:3?retry=5'
    """
    try:
        parts = urllib.parse.urlsplit(text)
        host, port = parts.hostname or "", parts.port
        told = urllib.parse.parse_qsl(parts.query, strict_parsing=bool(parts.query))
    except ValueError as error:
        raise RequestError(text, f"it is no address ({error})", _HOW) from None
    scheme = parts.scheme.lower()
    if scheme not in _SCHEMES:
        near = nearest_name(scheme, _SCHEMES)
        raise RequestError(text, f"known are {', '.join(_SCHEMES)}", f"did you mean {near}://?")
    match = re.fullmatch(r"/([^/:]+)(?::([0-9]{1,18}))?/?", urllib.parse.unquote(parts.path))
    if not host or match is None or parts.username or parts.fragment:
        raise RequestError(text, "it names no server and model", _HOW)
    options = _options(text, told)
    protocol = _protocol(text, options.get("protocol"), _SCHEMES[scheme], scheme)
    shared = options.get("shared-memory")
    if shared not in (None, "system"):
        raise RequestError(text, f"shared-memory={shared} is not known", "use shared-memory=system")
    return TritonAddress(
        host,
        port or _PORTS[protocol],
        match.group(1),
        match.group(2) or "",
        protocol,
        shared is not None,
        _seconds(text, options.get("retry"), 0.0),
        _seconds(text, options.get("timeout"), 60.0),
    )


def _options(text: str, told: list[tuple[str, str]]) -> dict[str, str]:
    found = dict(told)
    for name in found:
        if name not in _OPTIONS:
            near = nearest_name(name, _OPTIONS)
            hint = f"did you mean {near}?" if near else "use one of them"
            raise RequestError(text, f"options are {', '.join(_OPTIONS)}, not {name}", hint)
    return found


def _protocol(text: str, told: str | None, meant: Protocol, scheme: str) -> Protocol:
    if told is None:
        return meant
    if told not in _PORTS or (scheme != "triton" and told != meant):
        raise RequestError(text, f"protocol={told} does not go with {scheme}://", _HOW)
    return "grpc" if told == "grpc" else "http"


def _seconds(text: str, told: str | None, usual: float) -> float:
    if told is None:
        return usual
    if not re.fullmatch(r"[0-9]{1,6}(\.[0-9]{1,6})?", told):
        raise RequestError(text, f"{told} is no number of seconds", "use e.g. retry=30")
    return float(told)
