"""What a Jetson is, by the files of its system. Formats: NVIDIA's Jetson Linux Developer Guide."""

from __future__ import annotations

import re
from pathlib import Path

__all__ = [
    "board_from_device_tree",
    "count_dla_cores",
    "jetpack_from_l4t",
    "l4t_from_release",
    "power_mode_from_nvpmodel",
    "workspace_advice",
]

# Jetson Linux to JetPack, newest first; the longest beginning that fits holds.
_JETPACKS = {
    "38.4": "7.1", "38.2": "7.0",
    "36.4.4": "6.2.1", "36.4.3": "6.2", "36.4": "6.1", "36.3": "6.0", "36.2": "6.0 DP",
    "35.6": "5.1.4", "35.5": "5.1.3", "35.4": "5.1.2", "35.3": "5.1.1", "35.2": "5.1",
    "35.1": "5.0.2", "34.1": "5.0 DP",
    "32.7": "4.6", "32.6": "4.6", "32.5": "4.5", "32.4": "4.4", "32.3": "4.3", "32.2": "4.2",
}  # fmt: skip
# Board, memory in GiB and what TensorRT's workspace may take of it.
_WORKSPACES = (
    (r"\bOrin Nano\b", "2 to 4 (as Xavier NX 8 GB)"),
    (r"\bNano\b", "1 to 2"),
    (r"\bXavier NX\b|\bOrin NX\b", "2 to 4"),
)


def board_from_device_tree(text: str) -> str:
    """Return the board by `/proc/device-tree/model`; "" for boards that are no Jetson.

    >>> board_from_device_tree("NVIDIA Jetson AGX Orin Developer Kit\\0")
    'NVIDIA Jetson AGX Orin Developer Kit'
    >>> board_from_device_tree("Raspberry Pi 5 Model B Rev 1.0")
    ''
    """
    board = text.strip("\0 \n")
    return board if re.search(r"jetson|nvidia", board, re.I) else ""


def l4t_from_release(text: str) -> str:
    """Return the release by `/etc/nv_tegra_release`; "" where it says none.

    >>> l4t_from_release("# R36 (release), REVISION: 4.3, GCID: 38968081, BOARD: generic")
    '36.4.3'
    """
    match = re.search(r"R(\d+)\s*\(release\),\s*REVISION:\s*(\d+(?:\.\d+)*)", text)
    return f"{match.group(1)}.{match.group(2)}" if match else ""


def jetpack_from_l4t(l4t: str) -> str:
    """Return the JetPack of a Jetson Linux; "" for those that are not known here.

    >>> jetpack_from_l4t("36.4.3"), jetpack_from_l4t("36.4.0"), jetpack_from_l4t("99.1")
    ('6.2', '6.1', '')
    """
    fits = [k for k in _JETPACKS if l4t == k or l4t.startswith(f"{k}.")]
    return _JETPACKS[max(fits, key=len)] if fits else ""


def power_mode_from_nvpmodel(text: str) -> str:
    """Return the mode that `nvpmodel -q` prints; "" where it prints none.

    >>> power_mode_from_nvpmodel("NVPM WARN: fan mode is not set!\\nNV Power Mode: MODE_30W\\n2\\n")
    'MODE_30W'
    """
    match = re.search(r"^NV Power Mode:\s*(\S+)", text, re.M)
    return match.group(1) if match else ""


def count_dla_cores(root: Path) -> int:
    """Count the accelerators (nvdla) that the device tree enables.

    Args:
        root: The file system's; another one in tests.
    """
    places = (
        "proc/device-tree/host1x@*/nvdla*@*",
        "proc/device-tree/host1x/nvdla*@*",
        "proc/device-tree/bus@*/host1x@*/nvdla*@*",
    )
    found = 0
    for pattern in places:
        for node in root.glob(pattern):
            try:
                status = (node / "status").read_text(errors="replace").strip("\0 \n")
            except OSError:
                status = "okay"  # a node without a status is enabled
            found += status in ("okay", "ok", "")
    return found


def workspace_advice(board: str, memory_gib: float | None) -> str:
    """Return the GiB of `--workspace-gib` for a board, in words; "" where there is no advice.

    >>> workspace_advice("NVIDIA Jetson AGX Orin Developer Kit", 61.4)
    '4 to 8'
    >>> workspace_advice("NVIDIA Jetson Nano Developer Kit", 3.9)
    '1 to 2'
    """
    for pattern, advice in _WORKSPACES:
        if re.search(pattern, board):
            return advice
    if memory_gib is not None and memory_gib >= 28:  # of 32 GB the system keeps a part
        return "4 to 8"
    if memory_gib is not None and memory_gib >= 6:
        return "2 to 4"
    return "1 to 2" if memory_gib is not None else ""
