"""The NVIDIA GPUs of this machine as nvidia-smi tells of them, and which of them a list names.

Nothing here loads CUDA: a process that starts others must not, so that each of them can be given
a GPU of its own.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from boxwright.errors import RequestError

__all__ = [
    "GpuFacts",
    "cuda_from_banner",
    "device_numbers",
    "gpus_from_query",
    "query_gpus",
    "run_nvidia_smi",
    "visible_gpus",
]

_SECONDS = 10
# The fields of old drivers, and those that newer ones added: an unknown one fails the whole query.
_OLD_FIELDS = ("index", "name", "uuid", "memory.total", "memory.used", "driver_version")
_STATE_FIELDS = (
    "persistence_mode",
    "clocks.sm",
    "clocks.max.sm",
    "clocks.mem",
    "power.limit",
)
_NEW_FIELDS = ("compute_cap", "mig.mode.current")
_NOT_TOLD = ("", "n/a", "[n/a]", "[not supported]", "[unknown error]", "[insufficient permissions]")


@dataclass(frozen=True, slots=True)
class GpuFacts:
    """One GPU; a text is empty and a number None where the driver does not tell.

    Attributes:
        index: As nvidia-smi counts them.
        name, uuid: As the driver gives them.
        compute_capability: `9.0`.
        memory_mib, memory_used_mib: Of the device, in MiB.
        driver: Version of the driver.
        mig, persistence: `Enabled` or `Disabled`.
        clocks: Current and largest clocks and the power limit, in words.
    """

    index: int
    name: str
    uuid: str = ""
    compute_capability: str = ""
    memory_mib: int | None = None
    memory_used_mib: int | None = None
    driver: str = ""
    mig: str = ""
    persistence: str = ""
    clocks: str = ""


def run_nvidia_smi(*arguments: str) -> str | None:
    """Return what nvidia-smi prints; None where it is missing, fails or does not answer."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return None
    try:
        done = subprocess.run(
            [program, *arguments],
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_SECONDS,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout


def query_gpus() -> tuple[GpuFacts, ...] | None:
    """Return every GPU that nvidia-smi lists; None where it is missing or does not answer."""
    for fields in (
        (*_OLD_FIELDS, *_STATE_FIELDS, *_NEW_FIELDS),
        (*_OLD_FIELDS, *_STATE_FIELDS),
        _OLD_FIELDS,
    ):
        text = run_nvidia_smi(f"--query-gpu={','.join(fields)}", "--format=csv,noheader")
        if text is not None:
            return gpus_from_query(text, fields)
    return None


def gpus_from_query(text: str, fields: Sequence[str]) -> tuple[GpuFacts, ...]:
    """Read the lines of `nvidia-smi --query-gpu=... --format=csv,noheader`; odd ones are left out.

    >>> gpus_from_query("0, H100, 81559 MiB", ("index", "name", "memory.total"))[0].memory_mib
    81559
    """
    found = []
    for line in text.splitlines():
        words = [w.strip() for w in line.split(",")]
        if len(words) != len(fields):
            continue
        told = {
            field: "" if word.lower() in _NOT_TOLD else word
            for field, word in zip(fields, words, strict=True)
        }
        if not told.get("index", "").isdigit():
            continue
        found.append(
            GpuFacts(
                index=int(told["index"]),
                name=told.get("name", ""),
                uuid=told.get("uuid", ""),
                compute_capability=told.get("compute_cap", ""),
                memory_mib=_number(told.get("memory.total", "")),
                memory_used_mib=_number(told.get("memory.used", "")),
                driver=told.get("driver_version", ""),
                mig=told.get("mig.mode.current", ""),
                persistence=told.get("persistence_mode", ""),
                clocks=_clocks(told),
            )
        )
    return tuple(found)


def _number(text: str) -> int | None:
    match = re.match(r"\d+", text)
    return int(match.group()) if match else None


def _clocks(told: Mapping[str, str]) -> str:
    """Word the clocks: `sm 1980 MHz of 1980 MHz, memory 2619 MHz, 700.00 W`."""
    parts = []
    if told.get("clocks.sm"):
        most = f" of {told['clocks.max.sm']}" if told.get("clocks.max.sm") else ""
        parts.append(f"sm {told['clocks.sm']}{most}")
    if told.get("clocks.mem"):
        parts.append(f"memory {told['clocks.mem']}")
    if told.get("power.limit"):
        parts.append(told["power.limit"])
    return ", ".join(parts)


def cuda_from_banner(text: str) -> str:
    """Return the newest CUDA version that the driver serves, from nvidia-smi's banner; or "".

    >>> cuda_from_banner("| NVIDIA-SMI 580.65.06  Driver Version: 580.65.06  CUDA Version: 13.0 |")
    '13.0'
    """
    match = re.search(r"CUDA (?:\w+ )?Version:\s*(\d+(?:\.\d+)*)", text)
    return match.group(1) if match else ""


def visible_gpus(
    environment: Mapping[str, str], found: Sequence[GpuFacts]
) -> tuple[tuple[str, str], ...]:
    """Return (what `CUDA_VISIBLE_DEVICES` calls it, name) of each GPU that CUDA would number here.

    As CUDA does, the list ends at the first entry that names no GPU.

    Args:
        environment: Of this process.
        found: By nvidia-smi.

    >>> gpus = [GpuFacts(i, "A100", f"GPU-{i}") for i in range(4)]
    >>> visible_gpus({"CUDA_VISIBLE_DEVICES": "3,1"}, gpus)
    (('3', 'A100'), ('1', 'A100'))
    """
    listed = environment.get("CUDA_VISIBLE_DEVICES")
    if listed is None:
        return tuple((str(g.index), g.name) for g in found)
    visible = []
    for word in (w.strip() for w in listed.split(",")):
        fits = [
            g for g in found if word == str(g.index) or (len(word) > 4 and g.uuid.startswith(word))
        ]
        if word.startswith("MIG-"):
            visible.append((word, "MIG instance"))
        elif fits:
            visible.append((word, fits[0].name))
        else:
            break
    return tuple(visible)


def device_numbers(
    text: str,
    environment: Mapping[str, str],
    prober: Callable[[], tuple[GpuFacts, ...] | None] = query_gpus,
) -> tuple[tuple[int, str], ...]:
    """Read `--devices 0,1` (or `all`).

    Args:
        text: Numbers as CUDA counts the GPUs that this process sees.
        environment: Of this process; `CUDA_VISIBLE_DEVICES` chooses and orders the GPUs.
        prober: Lists the GPUs of the machine.

    Returns:
        Of each, its number and what `CUDA_VISIBLE_DEVICES` calls it.

    Raises:
        RequestError: There is no such GPU, it is named twice, or the text is no list of numbers.
    """
    visible = visible_gpus(environment, prober() or ())
    if not visible:
        hidden = environment.get("CUDA_VISIBLE_DEVICES")
        seen = "nvidia-smi lists no GPU here"
        if hidden is not None:
            seen = f"CUDA_VISIBLE_DEVICES={hidden} leaves no GPU"
        raise RequestError(f"--devices {text}", seen, "drop it, or use a machine with GPUs")
    here = "here are " + ", ".join(f"{i} ({name})" for i, (_, name) in enumerate(visible))
    words = [w.strip() for w in text.split(",")]
    if words == ["all"]:
        words = [str(i) for i in range(len(visible))]
    for word in words:
        if not re.fullmatch("[0-9]{1,4}", word):
            raise RequestError(f"--devices {text}", f"{word!r} is no number of a GPU", here)
        if int(word) >= len(visible):
            raise RequestError(f"--devices {text}", f"there is no GPU {int(word)}", here)
    numbers = [int(w) for w in words]
    if len(set(numbers)) < len(numbers):
        raise RequestError(f"--devices {text}", "a GPU is named twice", here)
    return tuple((n, visible[n][0]) for n in numbers)
