"""The command line: one module per verb; each parses, calls and prints.

Verbs are imported when they run, so that `--help` stays fast.
"""

from __future__ import annotations

import errno
import importlib
import os
import re
import sys
from collections.abc import Sequence

import click

from boxwright import __version__
from boxwright.errors import BoxwrightError, nearest_name

__all__ = ["cli", "main"]

_VERBS = {
    "run": "The main job: export, convert, verify, report.",
    "demo": "The main job on an embedded sample, offline.",
    "export": "Checkpoint or raw ONNX to ONNX variants, without verification.",
    "build": "ONNX to a plan for TensorRT or TensorRT-RTX.",
    "fetch": "Download checkpoints, checked and resumable.",
    "verify": "Parity of two files: tensors and detections.",
    "tune": "The fastest file within budgets, and the Pareto front.",
    "benchmark": "Latency, throughput and memory of files, in turns.",
    "evaluate": "mAP, precision and recall on labelled pictures.",
    "report": "One HTML page of what a run left.",
    "compare": "What changed from one run to another, and whether it means anything.",
    "predict": "Detect in pictures, folders, globs and videos.",
    "fleet": "The same jobs over many files, GPUs and machines.",
    "serve": "A Triton server on a model repository.",
    "repo": "Build, change and check Triton model repositories.",
    "inspect": "Say what a file is.",
    "doctor": "Say what this machine is and can do.",
    "clean": "Remove built files; keep recipes and reports.",
}


class _Verbs(click.Group):
    """A group that knows its verbs by name and imports one when it is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _VERBS:
            return None
        module = importlib.import_module(f"boxwright.cli.{cmd_name}")
        command: click.Command = module.command
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = args[0] if args else ""
        if name not in _VERBS and not name.startswith("-"):
            near = nearest_name(name, _VERBS)
            hint = f"did you mean {near}?" if near else f"known: {', '.join(_VERBS)}"
            raise click.UsageError(f"{name}: there is no such verb; {hint}", ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Verbs"):
            formatter.write_dl(list(_VERBS.items()))


@click.command(
    cls=_Verbs,
    no_args_is_help=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
@click.version_option(__version__, message="boxwright %(version)s")
@click.option("--debug", is_flag=True, help="Show tracebacks.")
def cli(debug: bool) -> None:
    """From a YOLO checkpoint to production files that are proven.

    Data goes to stdout, progress and logs to stderr. Exit status: 0 done; 1 a check failed, or
    some inputs could not be read; 2 the request or an input is wrong.
    """


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    os.environ.setdefault("OPENCV_LOG_LEVEL", "OFF")  # damaged pictures are reported by us
    debug = "--debug" in words
    if debug:
        words = ["--debug", *(w for w in words if w != "--debug")]
    if not words:
        click.echo(cli.get_help(click.Context(cli, info_name="boxwright")), err=True)
        sys.exit(2)
    try:
        result = cli.main(args=words, prog_name="boxwright", standalone_mode=False, obj=words)
        sys.exit(result if isinstance(result, int) else 0)
    except click.exceptions.Exit as done:
        sys.exit(done.exit_code)
    except (KeyboardInterrupt, click.Abort):
        _complain("interrupted; a run goes on where it stopped when it is started again")
        sys.exit(130)
    except click.ClickException as error:
        if debug:
            raise
        _complain(_wording(error))
        sys.exit(2)
    except BoxwrightError as error:
        if debug:
            raise
        _complain(str(error))
        sys.exit(error.exit_code)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except OSError as error:  # a place that no step expected: a full disk, a name too long
        if debug:
            raise
        place = f"{error.filename}" if error.filename else "output"
        advice = "free some space" if error.errno == errno.ENOSPC else "check the path"
        _complain(f"{place}: {error.strerror or type(error).__name__}; {advice}")
        sys.exit(2)


def _wording(error: click.ClickException) -> str:
    """Word what click refuses as every other error: asked, found, what to do."""
    text = " ".join(error.format_message().split())
    if isinstance(error, click.NoSuchOption):
        near = nearest_name(error.option_name, error.possibilities or ())
        hint = f"did you mean {near}?" if near else "see --help"
        return f"{error.option_name}: there is no such option; {hint}"
    if isinstance(error, click.MissingParameter) and error.param is not None:
        return f"{error.param.human_readable_name}: it is missing; see --help"
    if isinstance(error, click.BadParameter) and error.param is not None:
        return _bad_parameter(error, error.param)
    if isinstance(error, click.BadOptionUsage):
        return f"{error.option_name}: {_as_clause(text)}; see --help"
    if isinstance(error, click.UsageError) and ";" not in text:
        return f"request: {_as_clause(text)}; see --help"
    return text


def _bad_parameter(error: click.BadParameter, param: click.Parameter) -> str:
    name = param.opts[-1] if isinstance(param, click.Option) else param.human_readable_name
    match = re.match(r"'?(.*?)'? is not (.*)", error.message)
    if match is None:
        return f"{name}: {_as_clause(error.message)}; correct the value"
    value, rest = match.groups()
    if isinstance(param.type, click.Choice):
        known = [str(c) for c in param.type.choices]
        near = nearest_name(value, known)
        hint = f"did you mean {near}?" if near else "use one of them"
        return f"{name} {value}: known are {', '.join(known)}; {hint}"
    return f"{name} {value}: it is not {rest.rstrip('.')}; correct the value"


def _as_clause(text: str) -> str:
    return text[:1].lower() + text[1:].rstrip(".")


def _complain(text: str) -> None:
    print(f"boxwright: error: {text}", file=sys.stderr)
