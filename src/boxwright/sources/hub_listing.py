"""Which files a Hugging Face repository holds, at which commit and with which checksums.

Only the listing goes through huggingface_hub; it is imported on use, since official names and plain
URLs do without it. Its many errors, which differ between its versions, become ours here and nowhere
else.
"""

from __future__ import annotations

import os
import socket
import time
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from boxwright.errors import DownloadError, RequestError, nearest_name
from boxwright.sources.local_files import safe_path
from boxwright.sources.transfer import (
    LONGEST_WAIT_S,
    RETRIED_STATUS,
    Patience,
    Remote,
    gated,
    text_of,
)

__all__ = ["HubPath", "hub_endpoint", "list_hub"]


@dataclass(frozen=True, slots=True)
class HubPath:
    """A file or folder of a Hugging Face repository."""

    repo: str
    revision: str | None
    path: str

    @property
    def source(self) -> str:
        return f"hf://{self.repo}{'@' + self.revision if self.revision else ''}/{self.path}"


def hub_endpoint() -> str:
    endpoint = (os.environ.get("HF_ENDPOINT") or "https://huggingface.co").rstrip("/")
    if not endpoint.lower().startswith(("http://", "https://")):
        raise RequestError("HF_ENDPOINT", f"{endpoint!r} is not an http(s) URL")
    return endpoint


def list_hub(asked: HubPath, patience: Patience) -> tuple[str, list[Remote]]:
    """Return the commit and the files that a file or folder of a repository stands for.

    Raises:
        DownloadError: the repository, revision or path does not exist or is not open to us.
    """
    from huggingface_hub import get_token, hf_hub_url

    endpoint = hub_endpoint()
    token = get_token()
    info = _ask_hub(asked, endpoint, token, patience)
    files = {file.rfilename: file for file in info.siblings or ()}
    prefix = f"{asked.path}/"
    chosen = [asked.path] if asked.path in files else [f for f in files if f.startswith(prefix)]
    if not chosen:
        raise _no_such_path(asked, sorted(files))
    leaf = PurePosixPath(asked.path).name
    revision = info.sha or asked.revision or "main"
    remotes = []
    for path in chosen:
        inner = "" if path == asked.path else "/" + safe_path(path[len(prefix) :], asked.source)
        file = files[path]
        remotes.append(
            Remote(
                url=hf_hub_url(asked.repo, path, revision=revision, endpoint=endpoint),
                path=PurePosixPath(leaf + inner),
                source=asked.source + inner,
                size_bytes=file.size,
                sha256=file.lfs.sha256 if file.lfs else None,
                git_sha1=None if file.lfs else file.blob_id,
                authorization=f"Bearer {token}" if token else None,
                page=f"{endpoint}/{asked.repo}",
            )
        )
    return revision, remotes


def _ask_hub(asked: HubPath, endpoint: str, token: str | None, patience: Patience) -> Any:
    """Return huggingface_hub's ModelInfo of the repository: its commit, files and checksums."""
    from huggingface_hub import HfApi, errors

    # The base of its transport errors: of httpx since 1.0, of requests (an OSError) before.
    transport_error: type[Exception] = getattr(errors, "HTTPError", OSError)
    page = f"{endpoint}/{asked.repo}"
    tries = 0
    while True:
        tries += 1
        try:
            return HfApi(endpoint=endpoint).model_info(
                asked.repo,
                revision=asked.revision,
                files_metadata=True,
                timeout=patience.timeout_s,
                token=token or False,
            )
        except (errors.RepositoryNotFoundError, errors.RevisionNotFoundError) as error:
            raise _not_open(error, asked, endpoint) from error
        except errors.OfflineModeIsEnabled as error:
            raise DownloadError(asked.source, "HF_HUB_OFFLINE is set", "unset it") from error
        except errors.HfHubHTTPError as error:
            status = error.response.status_code if error.response is not None else 0
            if status in (401, 403):
                raise DownloadError(
                    asked.source,
                    f"{endpoint} refuses access ({status})",
                    f"request access at {page}, log in with: hf auth login, and check HF_TOKEN",
                ) from error
            if status not in RETRIED_STATUS or tries >= patience.tries:
                raise DownloadError(
                    asked.source, f"{endpoint} answered {status}", "try again later"
                ) from error
        except errors.HFValidationError as error:
            raise RequestError(
                asked.source, f"{asked.repo!r} is no repository name", "write hf://owner/repo/path"
            ) from error
        except ValueError as error:  # not JSON; with requests it is a transport error too
            raise DownloadError(
                asked.source, f"{endpoint} does not answer like a hub", "check HF_ENDPOINT"
            ) from error
        except (transport_error, OSError) as error:
            if tries >= patience.tries or _is_unresolved(error):
                raise DownloadError(
                    asked.source,
                    f"{endpoint} cannot be reached ({text_of(error)})",
                    "check the network; HF_ENDPOINT names a mirror",
                ) from error
        time.sleep(min(patience.backoff_s * 2 ** (tries - 1), LONGEST_WAIT_S))


def _not_open(error: Exception, asked: HubPath, endpoint: str) -> DownloadError:
    """Say why a repository or revision is not to be had: huggingface_hub tells which it is."""
    from huggingface_hub import errors

    page = f"{endpoint}/{asked.repo}"
    if isinstance(error, errors.GatedRepoError):
        return gated(asked.source, page)
    if isinstance(error, errors.RevisionNotFoundError):
        return DownloadError(
            asked.source,
            f"{asked.repo} has no revision {asked.revision or 'main'}",
            f"see the branches at {page}",
        )
    return DownloadError(
        asked.source,
        f"there is no public repository {asked.repo} at {endpoint}",
        "check its name; if it is private, log in with: hf auth login",
    )


def _is_unresolved(error: BaseException | None) -> bool:
    """Return whether an unknown host name is behind an error: trying again would not help."""
    while error is not None and not isinstance(error, socket.gaierror):
        error = error.__cause__ or error.__context__
    return error is not None


def _no_such_path(asked: HubPath, files: list[str]) -> DownloadError:
    entries = list(dict.fromkeys([*(f.partition("/")[0] for f in files), *files]))
    near = nearest_name(asked.path, entries)
    shown = ", ".join(entries[:8]) + (", ..." if len(entries) > 8 else "")
    return DownloadError(
        asked.source,
        f"{asked.repo} holds no {asked.path}; it holds {shown or 'nothing'}",
        f"did you mean {near}?" if near else "name one of those",
    )
