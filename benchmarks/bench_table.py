"""What `make bench` found, as Markdown, as a plot, and in the README."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from findings import Finding

BEGIN, END = "<!-- bench:begin -->", "<!-- bench:end -->"
HEAD = "| | what | against | ours ÷ theirs (spread) | bar | |\n|---|---|---|---|---|---|\n"
# Measured by commands of their own, whose pages begin with what they found.
ELSEWHERE = ("probe", "fuzz", "adversarial_answers", "faults")
VERDICTS = {None: "", True: "holds", False: "**does not hold**"}
NOT_MEASURED = (
    "Not measured, for want of a GPU: the Triton kernels' bandwidth, FlashInfer's sampling on "
    "combined logits, and pairs where reading weights is all that a decode step costs."
)
Record = dict[str, Any]


def render(results: Path, readme: Path, *, order: Sequence[str]) -> str:
    """Write results/bench.md, results/bench.png and the README's part; returns the Markdown.

    order  the rows that exist; of each the last record in results/bench.jsonl counts.

    Raises ValueError if nothing has been measured, or the README has no place for it.
    """
    records = latest(results / "bench.jsonl", order)
    if not records:
        raise ValueError(f"{results / 'bench.jsonl'} has no rows; run `make bench` first")
    text = "\n\n".join([markdown(records), *elsewhere(results)])
    (results / "bench.md").write_text(f"# Side by side\n\n{text}\n", encoding="utf-8")
    plot([each for record in records for each in findings(record)], results / "bench.png")
    readme.write_text(inserted(readme.read_text(encoding="utf-8"), text), encoding="utf-8")
    return text


def latest(file: Path, order: Sequence[str]) -> list[Record]:
    """The last record of each row."""
    if not file.exists():
        return []
    lines = map(json.loads, file.read_text(encoding="utf-8").splitlines())
    last = {record["row"]: record for record in lines}
    return [last[name] for name in order if name in last]


def findings(record: Record) -> list[Finding]:
    return [Finding(**values) for values in record["findings"]]


def markdown(records: Sequence[Record]) -> str:
    """The table, what it was measured with, and what its figures do not say."""
    lines, notes = [], []
    for record in records:
        for place, (cells, note) in enumerate(rows(record)):
            if note and note not in notes:
                notes.append(note)
            mark = f" [{notes.index(note) + 1}]" if note else ""
            what, *others = cells
            name = record["row"] if place == 0 else ""
            lines.append(f"| {' | '.join([name, what + mark, *others])} |")
    numbered = [f"{place}. {note}" for place, note in enumerate(notes, start=1)]
    parts = [HEAD + "\n".join(lines), "\n".join(numbered), NOT_MEASURED, about(records)]
    return "\n\n".join(filter(None, parts))


def rows(record: Record) -> Iterator[tuple[list[str], str]]:
    """The cells of a record's findings and their notes; and that it failed, if it did."""
    for each in findings(record):
        cells = [each.what, each.rival, each.spread, each.bar, VERDICTS[each.holds]]
        yield cells, each.note
    if "failed" in record:
        said = record["failed"].replace("|", "\\|")
        yield ["**failed**", "", said, "", ""], ""


def elsewhere(results: Path) -> list[str]:
    """What other campaigns found: the first paragraph of each page that there is."""
    found = []
    for name in ELSEWHERE:
        page = results / f"{name}.md"
        if page.exists():
            _, paragraph, *_ = page.read_text(encoding="utf-8").split("\n\n")
            found.append(f"- `results/{page.name}`: {' '.join(paragraph.split())}")
    found += [f"- `results/soak.jsonl`: {each}" for each in soaks(results / "soak.jsonl")]
    return ["Beside it:\n\n" + "\n".join(found)] if found else []


def soaks(file: Path) -> list[str]:
    """The last soak of each kind of pair."""
    if not file.exists():
        return []
    lines = map(json.loads, file.read_text(encoding="utf-8").splitlines())
    last = {line["rlvr"]: line for line in lines}
    return [
        f"{kind} pair, {run['finished']:,} requests answered and {run['aborted']:,} cut off, "
        f"{run['wrong']} wrong, {run['end_mib'] - run['settled_mib']:z.0f} MiB more memory in the "
        "second half; " + ("passed." if run["passed"] else "**not passed**.")
        for kind, run in last.items()
    ]


def about(records: Sequence[Record]) -> str:
    """What the figures were measured with, and when."""
    keys = ("device", "threads", "commit")
    device, threads, commit = (
        ", ".join(sorted({str(record[key]) for record in records})) for key in keys
    )
    versions = {k: v for record in records for k, v in record["versions"].items()}
    packages = ", ".join(f"{name} {version}" for name, version in versions.items())
    dates = sorted(record["date"][:16] + "Z" for record in records)
    minutes = sum(record["seconds"] for record in records) / 60
    return (
        f"{device}; threads: {threads}; {packages}; commit {commit}; {dates[0]} to {dates[-1]}, "
        f"{minutes:.0f} minutes in all. The median over rounds in which both took turns, and the "
        "least and the largest of them."
    )


def inserted(page: str, text: str, *, begin: str = BEGIN, end: str = END) -> str:
    """The page with the text between its marks; ValueError without them."""
    before, found, rest = page.partition(begin)
    _, closed, after = rest.partition(end)
    if not (found and closed):
        raise ValueError(f"no place for the table: the page needs {begin} and, after it, {end}")
    return f"{before}{begin}\n\n{text}\n\n{end}{after}"


def plot(found: Sequence[Finding], path: Path) -> None:
    """Ratios with their spread on a log axis, and their bars."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    shown = [each for each in found if each.unit == "×" and min(each.values) > 0]
    figure = Figure(figsize=(10, 1.2 + 0.26 * len(shown)), layout="constrained", dpi=120)
    FigureCanvasAgg(figure)
    axis = figure.subplots()
    for place, each in enumerate(reversed(shown)):
        colour = {None: "tab:gray", True: "tab:green", False: "tab:red"}[each.holds]
        axis.plot([min(each.values), max(each.values)], [place, place], color=colour)
        axis.plot(each.median, place, "o", color=colour, markersize=4)
        bar = each.at_most if each.at_least is None else each.at_least
        if bar is not None:
            axis.plot(bar, place, "|", color="black", markersize=9)
    axis.axvline(1, color="black", linewidth=0.6)
    labels = [f"{each.what} ÷ {each.rival}" for each in reversed(shown)]
    axis.set_yticks(range(len(shown)), labels, fontsize=7)
    axis.set_xscale("log")
    axis.xaxis.set_major_formatter("{x:g}")
    axis.set_xlabel("ours ÷ theirs: median and range over rounds; | is the bar")
    axis.grid(axis="x", alpha=0.3)
    figure.savefig(path)
