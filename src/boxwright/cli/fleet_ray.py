"""Options of the engine `ray`."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from boxwright.fleet.engines import Engine

__all__ = ["actors_from_text", "engine_on_ray", "ray_options", "refuse_without_ray"]

F = TypeVar("F", bound=Callable[..., Any])


def ray_options(function: F) -> F:
    """Add the options of a Ray cluster."""
    options = [
        click.option(
            "--ray-address",
            metavar="ADDRESS",
            help="Of a cluster: auto, HOST:PORT or ray://HOST:PORT. Default: RAY_ADDRESS, else a "
            "Ray of its own on this machine.",
        ),
        click.option(
            "--actors",
            metavar="N|MIN,MAX",
            help="Workers of the engine ray, each with one detector. Default: as many as fit.",
        ),
        click.option("--num-gpus", type=float, help="GPUs of an actor; 0.5 puts two on one."),
        click.option("--num-cpus", type=float, help="CPUs of an actor. Default: 1."),
        click.option(
            "--shared-out",
            is_flag=True,
            help="Actors write their shards themselves: --out is on a file system that all nodes "
            "share. Without it they go through this process.",
        ),
    ]
    for option in reversed(options):
        function = option(function)
    return function


def actors_from_text(text: str) -> tuple[int, int]:
    """Read `--actors 8` or `--actors 2,16`.

    Raises:
        RequestError: It is not one or two whole numbers, or they are in the wrong order.

    >>> actors_from_text("8"), actors_from_text("2,16")
    ((8, 8), (2, 16))
    """
    from boxwright.errors import RequestError

    words = [w.strip() for w in text.split(",")]
    if len(words) in (1, 2) and all(re.fullmatch("[1-9][0-9]{0,4}", w) for w in words):
        low, high = int(words[0]), int(words[-1])
        if low <= high:
            return low, high
    raise RequestError(f"--actors {text}", "it is not N or MIN,MAX", "use e.g. 8 or 2,16")


def refuse_without_ray(options: dict[str, Any]) -> None:
    """Refuse options of the engine ray where another is asked for.

    Raises:
        RequestError: One was given.
    """
    from boxwright.errors import RequestError

    for name in ("ray_address", "actors", "num_gpus", "num_cpus", "shared_out"):
        if options[name]:
            option = f"--{name.replace('_', '-')}"
            raise RequestError(option, "it is of the engine ray", "add --engine ray, or drop it")


def engine_on_ray(options: dict[str, Any]) -> Engine:
    """Return the engine.

    Raises:
        RequestError: Options do not go together.
        MissingExtraError: Ray is not installed.
    """
    from boxwright.errors import RequestError
    from boxwright.fleet.extras import ray_module
    from boxwright.fleet.on_ray import OnRay

    for name in ("devices", "workers"):
        if options[name]:
            raise RequestError(
                f"--{name} {options[name]}", "it is of the engine local", "use --actors, --num-gpus"
            )
    ray_module("--engine ray")
    return OnRay(
        actors=actors_from_text(options["actors"]) if options["actors"] else None,
        num_gpus=options["num_gpus"] or 0.0,
        num_cpus=options["num_cpus"] or 1.0,
        address=options["ray_address"],
        shared_out=options["shared_out"],
    )
