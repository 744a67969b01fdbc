"""A benchmark as text: Markdown, CSV, and the cells of the tables that a terminal shows."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass

from boxwright.measurement.records import BenchmarkResult, Measured
from boxwright.types import SPANS, Span

__all__ = [
    "Table",
    "csv_from_result",
    "latency_table",
    "markdown_from_result",
    "noise_lines",
    "size_table",
    "span_table",
    "tables_of",
]


@dataclass(frozen=True, slots=True)
class Table:
    """Cells as text; the first column is left-aligned, the others right."""

    title: str
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    def as_markdown(self) -> str:
        """Return a Markdown table, its title above.

        >>> print(Table("t", ("a", "b"), (("x", "1"),)).as_markdown())
        **t**
        <BLANKLINE>
        | a | b |
        |---|--:|
        | x | 1 |
        """
        lines = [f"**{self.title}**", "", "| " + " | ".join(self.head) + " |"]
        lines.append("|---|" + "--:|" * (len(self.head) - 1))
        lines += ["| " + " | ".join(c.replace("|", r"\|") for c in row) + " |" for row in self.rows]
        return "\n".join(lines)


def tables_of(result: BenchmarkResult) -> list[Table]:
    """Return the tables that a result fills: sizes of models, latency or throughput, and spans."""
    tables = []
    if any(m.random_weights for m in result.measured):
        tables.append(size_table(result))
    tables.append(latency_table(result))
    if any("total" in m.latencies for m in result.measured):
        tables.append(span_table(result))
    return tables


def _number(measured: Measured, value: float, digits: int = 2) -> str:
    """Return a number as a cell; `~` says that it is not to be believed."""
    return f"{'~' if measured.noise.verdict == 'noisy' else ''}{value:.{digits}f}"


def _speed_up(measured: Measured) -> str:
    faster = measured.speed_up
    if faster is None:
        return "-"
    text = _number(measured, faster.ratio)
    if faster.low is None or faster.high is None:
        return f"{text} (too few rounds)"
    note = ", within noise" if faster.within_noise else ""
    return f"{text} ({faster.low:.2f}-{faster.high:.2f}{note})"


def _file(measured: Measured) -> str:
    """Return the name for a row that has the runtime beside it."""
    return measured.name.removesuffix(f" ({measured.runtime})")


def _threads(measured: Measured) -> str:
    return str(measured.threads) if measured.threads else "default"


def latency_table(result: BenchmarkResult) -> Table:
    """Return a row for each measurement: percentiles, spread, pictures per second, memory."""
    throughput = any(m.mode == "throughput" for m in result.measured)
    span = "infer under load" if throughput else "total"
    head = ["file", "runtime", "threads", "batch", *(["in flight"] if throughput else [])]
    head += ["p50 ms", "p95 ms", "p99 ms", *([] if throughput else ["infer p50"])]
    head += ["CV %", "images/s", "peak MB", "speed-up (95 %)", "noise"]
    rows = []
    for m in result.measured:
        values = [m.main.p50, m.main.p95, m.main.p99]
        if not throughput:
            values.append(m.latencies["infer"].p50)
        rows.append(
            (
                _file(m),
                m.runtime,
                _threads(m),
                str(m.batch),
                *([str(m.concurrency)] if throughput else []),
                *(_number(m, v) for v in values),
                f"{m.noise.cv_percent:.1f}",
                _number(m, m.images_per_s, 1),
                "-" if m.peak_memory_mb is None else f"{m.peak_memory_mb:.0f}",
                _speed_up(m),
                m.noise.verdict.upper() if m.noise.verdict == "noisy" else m.noise.verdict,
            )
        )
    return Table(f"{span}, per call", tuple(head), tuple(rows))


def span_table(result: BenchmarkResult) -> Table:
    """Return the median of every span in ms, a row for each measurement.

    On GPUs a last column has the network alone, its input on the device already.
    """
    alone = any(m.network for m in result.measured)
    head = ("file", "runtime", "threads", "batch", *SPANS, *(["network alone"] if alone else []))
    rows = tuple(
        (
            _file(m),
            m.runtime,
            _threads(m),
            str(m.batch),
            *(_span_cell(m, span) for span in SPANS),
            *([_number(m, m.network.p50, 3) if m.network else "-"] if alone else []),
        )
        for m in result.measured
    )
    return Table("median ms of each span", head, rows)


def _span_cell(measured: Measured, span: Span) -> str:
    latency = measured.latencies.get(span)
    return _number(measured, latency.p50) if latency else "-"


def size_table(result: BenchmarkResult) -> Table:
    """Return the table that model guides print: a row for each model, CPU ms by runtime.

    CPU ms is the median of `infer`, at the first setting that was measured.
    """
    runtimes = list(dict.fromkeys(m.runtime for m in result.measured))
    first = result.measured[0].setting
    head = ["model", "size px", "mAP50-95", "params M", "FLOPs G", "file MB"]
    head += [f"infer ms {runtime}" for runtime in runtimes]
    files: dict[str, list[Measured]] = {}
    for m in result.measured:
        if m.setting == first:
            files.setdefault(m.file, []).append(m)
    rows = []
    for group in files.values():
        cost, times = group[0].cost, {m.runtime: m for m in group}
        rows.append(
            (
                _file(group[0]),
                "x".join(str(s) for s in dict.fromkeys(cost.input_size)) if cost else "-",
                "-",  # random weights have no accuracy, and this verb measures none
                f"{cost.parameters / 1e6:.1f}" if cost else "-",
                f"{cost.flops / 1e9:.1f}" if cost and cost.flops is not None else "-",
                f"{group[0].size_bytes / 1e6:.1f}",
                *(
                    _number(times[r], times[r].latencies["infer"].p50, 1) if r in times else "-"
                    for r in runtimes
                ),
            )
        )
    batch, threads = result.measured[0].batch, _threads(result.measured[0])
    return Table(f"models, batch {batch}, threads {threads}", tuple(head), tuple(rows))


def noise_lines(result: BenchmarkResult) -> list[str]:
    """Return a line for each measurement that is not to be believed: what was seen, what to do."""
    return [
        f"noisy: {_file(m)}, {m.runtime}, threads {_threads(m)}, batch {m.batch}: "
        f"{'; '.join(m.noise.reasons)} -> {m.noise.advice}"
        for m in result.noisy
    ]


def markdown_from_result(result: BenchmarkResult) -> str:
    """Return the tables, the noise and the environment in Markdown."""
    facts = ", ".join(f"{key} {value}" for key, value in result.environment.items())
    parts = [table.as_markdown() for table in tables_of(result)]
    parts += [f"> {line}" for line in noise_lines(result)]
    parts.append(f"Pictures: {result.pictures}. Measured {result.started_at} on: {facts}.")
    return "\n\n".join(parts) + "\n"


def csv_from_result(result: BenchmarkResult) -> str:
    """Return one line for each measurement, numbers in full; empty cells were not measured."""
    head = [
        "name", "file", "size_bytes", "runtime", "description", "precision", "outputs", "threads",
        "batch", "mode", "concurrency", "samples", "rounds", "images_per_s", "peak_memory_mb",
        *(f"{span}_p50_ms" for span in SPANS), "main_span", "p50_ms", "p95_ms", "p99_ms",
        "mean_ms", "std_ms", "min_ms", "max_ms", "speed_up", "speed_up_low", "speed_up_high",
        "parameters", "flops", "noise", "noise_reasons", "drift_percent", "cv_percent",
        "steal_percent", "other_percent",
    ]  # fmt: skip
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(head)
    for m in result.measured:
        writer.writerow(_csv_row(m))
    return out.getvalue()


def _csv_row(m: Measured) -> Sequence[object]:
    spans = [f"{m.latencies[s].p50:.4f}" if s in m.latencies else "" for s in SPANS]
    main, faster, cost, noise = m.main, m.speed_up, m.cost, m.noise
    derived = (main.p50, main.p95, main.p99, main.mean, main.std, main.min, main.max)
    return [
        m.name, m.file, m.size_bytes, m.runtime, m.description, m.precision, m.outputs, m.threads,
        m.batch, m.mode, m.concurrency, len(main.samples_ms), len(m.rounds),
        f"{m.images_per_s:.3f}", m.peak_memory_mb, *spans, m.main_span,
        *(f"{v:.4f}" for v in derived),
        *((faster.ratio, faster.low, faster.high) if faster else ("", "", "")),
        *((cost.parameters, cost.flops) if cost else ("", "")),
        noise.verdict, "; ".join(noise.reasons), noise.drift_percent, noise.cv_percent,
        noise.steal_percent, noise.other_percent,
    ]  # fmt: skip
