"""Speed-ups against a baseline, with intervals that are paired by round. Pure."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from boxwright.errors import RequestError, nearest_name
from boxwright.measurement.records import Measured, SpeedUp
from boxwright.measurement.statistics import median, median_ratio_interval, rounds_of

__all__ = ["baseline_name", "compared", "speed_up"]


def baseline_name(asked: str | None, names: Sequence[str]) -> str:
    """Return the name of the baseline: the first, or the one that `--baseline` means.

    It may be given as tables show it, or without what follows: the runtime, then the suffixes.

    Raises:
        RequestError: None or several are called so.

    >>> baseline_name("a.onnx", ["b.onnx", "a.onnx (openvino)"])
    'a.onnx (openvino)'
    """
    if asked is None:
        return names[0]
    if asked in names:
        return asked
    found = [n for n in names if asked in (n.split(" (")[0], Path(n.split(" (")[0]).stem)]
    if len(found) == 1:
        return found[0]
    if found:
        raise RequestError(f"--baseline {asked}", f"it may be {' or '.join(found)}", "say which")
    near = nearest_name(asked, names)
    hint = f"did you mean {near}?" if near else f"known are {', '.join(names)}"
    raise RequestError(f"--baseline {asked}", "no file that is measured is called so", hint)


def compared(measured: Sequence[Measured], asked: str | None, seed: int) -> tuple[Measured, ...]:
    """Return the measurements with their speed-ups against the baseline in the same setting.

    Raises:
        RequestError: There is no such baseline.
    """
    if not measured:
        return ()
    name = baseline_name(asked, list(dict.fromkeys(m.name for m in measured)))
    bases = {m.setting: m for m in measured if m.name == name}
    return tuple(
        m
        if m.name == name or m.setting not in bases
        else dataclasses.replace(m, speed_up=speed_up(bases[m.setting], m, seed))
        for m in measured
    )


def speed_up(base: Measured, candidate: Measured, seed: int) -> SpeedUp:
    """Compare `total`; under load the pictures per second of each round."""
    rounds = [rounds_of(m) for m in (base, candidate)]
    interval = median_ratio_interval(rounds[0], rounds[1], seed=seed)
    if interval is None:
        first, second = (median([v for r in side for v in r]) for side in rounds)
        return SpeedUp(base.name, round(first / second, 4), None, None)
    ratio, low, high = (round(v, 4) for v in interval)
    return SpeedUp(base.name, ratio, low, high)
