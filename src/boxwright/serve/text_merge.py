"""Three-way merge of texts by lines, and a change of one block of a configuration. Pure."""

from __future__ import annotations

import difflib
from dataclasses import dataclass

__all__ = ["Merged", "difference", "merge", "with_block"]


@dataclass(frozen=True, slots=True)
class Merged:
    """What a merge gave.

    Attributes:
        text: The result; "" where both changed the same lines.
        conflicts: The lines of the common text that both changed.
    """

    text: str
    conflicts: tuple[str, ...] = ()


def merge(base: str, theirs: str, ours: str) -> Merged:
    """Return a text with the changes of both sides.

    Args:
        base: What both began with.
        theirs, ours: What became of it.

    >>> merge("a\\nb\\nc\\n", "a\\nb\\nC\\n", "A\\nb\\nc\\n").text
    'A\\nb\\nC\\n'
    >>> merge("a\\n", "b\\n", "c\\n").conflicts
    ('a',)
    """
    lines = base.splitlines(keepends=True)
    changes = sorted(
        {*_changes(lines, theirs.splitlines(keepends=True))}
        | {*_changes(lines, ours.splitlines(keepends=True))}
    )
    result: list[str] = []
    at = 0
    for index, (start, end, new) in enumerate(changes):
        later = changes[index + 1 :]
        clash = next((c for c in later if c[0] < end or (c[0] == start and c[1] == end)), None)
        if start < at or clash is not None:
            touched = lines[start:end] or lines[max(0, start - 1) : start]
            return Merged("", tuple(line.strip() for line in touched) or ("(the beginning)",))
        result += [*lines[at:start], *new]
        at = end
    return Merged("".join([*result, *lines[at:]]))


def _changes(base: list[str], other: list[str]) -> list[tuple[int, int, tuple[str, ...]]]:
    matcher = difflib.SequenceMatcher(None, base, other, autojunk=False)
    return [
        (i1, i2, tuple(other[j1:j2]))
        for tag, i1, i2, j1, j2 in matcher.get_opcodes()
        if tag != "equal"
    ]


def difference(old: str, new: str, old_name: str, new_name: str) -> list[str]:
    """Return the lines of a unified diff."""
    found = difflib.unified_diff(
        old.splitlines(), new.splitlines(), old_name, new_name, lineterm="", n=2
    )
    return list(found)


def with_block(text: str, field: str, block: str) -> str:
    """Return a configuration whose top-level message `field` is another; comments stay.

    Args:
        text: Text form of a protobuf, each top-level field at the beginning of a line.
        field: Its name.
        block: What stands for it, with its name and braces; "" removes it.

    >>> with_block("a: 1\\np {\\n  x { y: 1 }\\n}\\nb: 2\\n", "p", "p {\\n  z: 1\\n}\\n")
    'a: 1\\np {\\n  z: 1\\n}\\nb: 2\\n'
    """
    result: list[str] = []
    depth, inside, done = 0, False, False
    for line in text.splitlines(keepends=True):
        code = _without_strings(line)
        word = code.strip().split("{")[0].strip().rstrip(":").strip()
        if depth == 0 and word == field:
            inside = True
            if not done:
                result.append(block)
                done = True
        depth += code.count("{") - code.count("}")
        if not inside:
            result.append(line)
        elif depth == 0 and "}" in code:
            inside = False
    if not done:
        if result and not result[-1].endswith("\n"):
            result.append("\n")
        result.append(block)
    return "".join(result)


def _without_strings(line: str) -> str:
    """Drop quoted text and comments, whose braces count for nothing."""
    kept: list[str] = []
    quote = ""
    escaped = False
    for sign in line:
        if quote:
            if not escaped and sign == quote:
                quote = ""
            escaped = sign == "\\" and not escaped
        elif sign in "\"'":
            quote = sign
        elif sign == "#":
            break
        else:
            kept.append(sign)
    return "".join(kept)
