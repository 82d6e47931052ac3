"""The results as a table: on the terminal with rich, and in README.md."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from _timing import Spread
from rich.console import Console
from rich.table import Table

_START, _END = "<!-- results: written by capture.py -->", "<!-- end of results -->"
_COLUMNS = ("what", "over", "wall time: median", "min … max", "processor time: median", "goal")


def print_table(results: dict[str, Any]) -> None:
    """The ratios and the memory curve, on the terminal."""
    table = Table(*_COLUMNS, title="Reading states: time ratios")
    for cells in _cells(results):
        table.add_row(*cells)
    console = Console()
    console.print(table)
    console.print(_memory(results["memory"]))


def write_results(path: Path, results: dict[str, Any]) -> None:
    """The JSON, and beside its rows the medians of the run it replaces: how well the numbers repeat."""
    before = json.loads(path.read_text()) if path.exists() else {"rows": []}
    kept = {
        one["what"] + " over " + one["over"]: {
            kind: one[kind]["median"] for kind in ("wall ratio", "cpu ratio")
        }
        for one in before["rows"]
        if "wall ratio" in one
    } | {
        one["what"]: one["inside the hooks"]["median"] for one in before["rows"] if "inside the hooks" in one
    }
    path.parent.mkdir(exist_ok=True)
    earlier = {"command": before.get("command"), "medians": kept}
    path.write_text(json.dumps({**results, "run before": earlier}, indent=1) + "\n")


def write_readme(path: Path, results: dict[str, Any]) -> None:
    """Replace what stands between the markers of the README."""
    text = path.read_text()
    before, _, rest = text.partition(_START)
    _, _, after = rest.partition(_END)
    path.write_text(f"{before}{_START}\n\n{_markdown(results)}\n{_END}{after}")


def write_section(path: Path, script: str, results: dict[str, Any], note: str) -> None:
    """The same for another benchmark, whose markers name its script; `note` stands below the table."""
    start = f"<!-- results: written by {script} -->"
    before, found, rest = path.read_text().partition(start)
    if not found:
        raise SystemExit(
            f"{path} has no place for the results of {script}; write {start!r} and {_END!r} into it."
        )
    _, _, after = rest.partition(_END)
    path.write_text(f"{before}{start}\n\n{_lines(results)}\n\n{note}\n\n{_END}{after}")


def _markdown(results: dict[str, Any]) -> str:
    return "\n".join([_lines(results), "", _memory(results["memory"]), ""])


def _lines(results: dict[str, Any]) -> str:
    setting, machine, versions = results["configuration"], results["machine"], results["versions"]
    lines = [
        f"- Model: {setting['shape']}; {setting['weights']}. Batch: {setting['batch']}. Threads: {setting['threads']}.",
        f"- Machine: {machine['processor']}, {machine['cores']} cores, {machine['system']}, "
        f"accelerator: {machine['accelerator']}.",
        "- Versions: " + ", ".join(f"{name} {number}" for name, number in versions.items()) + ".",
        f"- Command: `{results['command']}`; {setting['turns']} turns.",
        "",
        "| " + " | ".join(_COLUMNS) + " |",
        "|" + "---|" * len(_COLUMNS),
        *("| " + " | ".join(cells) + " |" for cells in _cells(results)),
    ]
    return "\n".join(lines)


def _cells(results: dict[str, Any]) -> list[tuple[str, ...]]:
    cells = []
    for row in results["rows"]:
        if "wall ratio" not in row:
            cells.append((row["what"], row["over"], "", "", "", ""))
            continue
        wall, cpu = Spread(**row["wall ratio"]), Spread(**row["cpu ratio"])
        goal = "" if row["goal"] is None else f"≤ {row['goal']}"
        between = f"{wall.low:.3f} … {wall.high:.3f}"
        cells.append((row["what"], row["over"], f"{wall.median:.3f}", between, f"{cpu.median:.3f}", goal))
    return cells


def _memory(memory: dict[str, Any]) -> str:
    points = zip(memory["prompts read"], memory["peak memory of the process in MiB"], strict=True)
    curve = ", ".join(f"{count:,}: {peak:.0f}" for count, peak in points)
    return (
        f"Peak memory in MiB while prompts stream into `Moments` ({memory['setting']}; second moments take "
        f"{memory['second moments in MiB']:.1f}, kept rows would take {memory['rows would take in MiB']:.1f}), "
        f"by prompts read: {curve}."
    )
