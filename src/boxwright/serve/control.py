"""Triton's own HTTP endpoints for readiness, models and statistics; standard library only."""

from __future__ import annotations

import http.client
import json
import urllib.parse
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from boxwright.errors import BackendError

__all__ = ["Control", "ModelState"]

_PATIENCE_S = 600.0  # a plan or a TensorRT provider may take minutes to load


@dataclass(frozen=True, slots=True)
class ModelState:
    """One version of a model, as the server tells.

    Attributes:
        name: Of the model.
        version: "" where none was loaded.
        state: `READY`, `UNAVAILABLE`, `LOADING`, `UNLOADING`; "" where nobody asked for it.
        reason: The server's own words for why it is not ready.
    """

    name: str
    version: str
    state: str
    reason: str


@dataclass(frozen=True, slots=True)
class Control:
    """A server's HTTP endpoint.

    Attributes:
        host, port: Where it listens.
        headers: Sent along; a server that is open to others asks for a secret one.
    """

    host: str
    port: int
    headers: Mapping[str, str]

    def is_live(self, timeout_s: float = 2.0) -> bool:
        """Whether the server answers."""
        try:
            return self._ask("GET", "/v2/health/live", timeout_s=timeout_s)[0] == 200
        except (OSError, http.client.HTTPException):
            return False

    def is_ready(self, timeout_s: float = 2.0) -> bool:
        """Whether the server and every model that was asked for are ready."""
        try:
            return self._ask("GET", "/v2/health/ready", timeout_s=timeout_s)[0] == 200
        except (OSError, http.client.HTTPException):
            return False

    def index(self) -> tuple[ModelState, ...]:
        """Return every model of the repository.

        Raises:
            BackendError: The server does not answer.
        """
        found = self._json("POST", "/v2/repository/index", {})
        return tuple(
            ModelState(
                str(e["name"]),
                str(e.get("version", "")),
                str(e.get("state", "")),
                " ".join(str(e.get("reason", "")).split()),
            )
            for e in found
        )

    def config(self, model: str) -> dict[str, Any]:
        """Return a loaded model's configuration.

        Raises:
            BackendError: The server does not answer, or has no such model.
        """
        found: dict[str, Any] = self._json("GET", f"/v2/models/{_quoted(model)}/config")
        return found

    def statistics(self, model: str, version: str = "") -> dict[str, Any]:
        """Return the statistics of a model's newest, or given, version.

        Raises:
            BackendError: The server does not answer, or has no such model.
        """
        part = f"/versions/{_quoted(version)}" if version else ""
        found = self._json("GET", f"/v2/models/{_quoted(model)}{part}/stats")["model_stats"]
        newest: dict[str, Any] = max(found, key=lambda s: int(s["version"]))
        return newest

    def load(self, model: str, config: Mapping[str, Any] | None = None) -> None:
        """Load a model; a changed one is replaced when the new one is ready.

        Args:
            model: Its name.
            config: Replaces that of the repository; with one an unchanged model is loaded anew.

        Raises:
            BackendError: It fails; with the server's own words.
        """
        told = {"parameters": {"config": json.dumps(config)}} if config is not None else {}
        self._json("POST", f"/v2/repository/models/{_quoted(model)}/load", told)

    def unload(self, model: str) -> None:
        """Unload a model.

        Raises:
            BackendError: It fails.
        """
        self._json("POST", f"/v2/repository/models/{_quoted(model)}/unload", {})

    def _ask(
        self, method: str, path: str, body: Any = None, *, timeout_s: float = _PATIENCE_S
    ) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection(self.host, self.port, timeout=timeout_s)
        try:
            data = None if body is None else json.dumps(body)
            connection.request(method, path, data, dict(self.headers))
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()

    def _json(self, method: str, path: str, body: Any = None) -> Any:
        what = f"server at {self.host}:{self.port}"
        try:
            status, data = self._ask(method, path, body)
        except (OSError, http.client.HTTPException) as error:
            cause = str(error) or type(error).__name__
            raise BackendError(
                what, f"it does not answer ({cause})", "start it with: boxwright serve"
            ) from None
        try:
            found = json.loads(data) if data.strip() else {}
        except ValueError:
            found = {"error": data[:200].decode(errors="replace")}
        if status != 200:
            said = found.get("error", "") if isinstance(found, dict) else ""
            raise BackendError(
                what, f"it refuses {path} ({said or f'status {status}'})", "check the name"
            )
        return found


def _quoted(word: str) -> str:
    return urllib.parse.quote(word, safe="")
