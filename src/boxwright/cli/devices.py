"""`--devices`: a verb runs again in processes of its own, one for each piece, spread over GPUs."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any, TypeVar

import click

__all__ = ["devices_option", "words_again"]

F = TypeVar("F", bound=Callable[..., Any])


def devices_option(function: F) -> F:
    """Add `--devices`."""
    return click.option(
        "--devices",
        metavar="LIST",
        help="GPUs to spread the work over, e.g. 0,1, or all; a process for each piece.",
    )(function)


def words_again(context: click.Context, without: Collection[str]) -> list[str]:
    """Return the options that were given, as words for another command line.

    Args:
        context: Of the verb.
        without: Names of options to leave out.
    """
    words: list[str] = []
    for option in context.command.params:
        name = option.name or ""
        given = context.get_parameter_source(name) is click.core.ParameterSource.COMMANDLINE
        if not isinstance(option, click.Option) or not given or name in without:
            continue
        value = context.params[name]
        if option.is_flag:
            words.append(option.opts[-1] if value else option.secondary_opts[-1])
        elif option.multiple:
            words += [word for one in value for word in (option.opts[-1], str(one))]
        else:
            words += [option.opts[-1], str(value)]
    return words
