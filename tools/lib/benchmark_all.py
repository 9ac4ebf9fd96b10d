"""`tools/benchmark.py all`: every suite in a process of its own, one file with their results and a report."""

import json
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from bert_jax.errors import UserError, listed
from bert_jax.files import decode_json, write_text
from bert_jax.markdown import escaped, table
from tools.lib.benchmark_rows import number
from tools.lib.benchmark_settings import MODERNBERT, Settings

COLUMNS = ["", "Median", "Range", "Share of the ceiling", "Relative speed", "Notes"]
RESULTS, REPORT = "results.jsonl", "report.md"
TOOL = Path(__file__).resolve().parents[1] / "benchmark.py"
MOST_SECONDS = 1800.0  # of a suite
# Flags of `train_step`, which runs once for each, by platform.
STEPS = {
    "cpu": (["--size=mini"], ["--size=base"]),
    # The fused attention of GPUs and TPUs has no dropout.
    "accelerator": (
        *([f"--size={size}", *dropout] for size in ("base", "large") for dropout in ([], ["--attention_dropout=0"])),
        [f"--size={MODERNBERT}"],
    ),
}
CPU_TURNS = 5  # so that all suites take a quarter of an hour on two cores
SIZED = ("--size", "--config", "--sequence_length", "--batch_size", "--attention_dropout")
MOST_LINES = 40  # of the errors of a suite that failed


class Job(NamedTuple):
    """A process: a suite and its flags."""

    suite: str
    flags: Sequence[str]


def run_all(suites: dict[str, list[str]], chosen: list[str], output: str, settings: Settings) -> bool:
    """Runs suites one after the other, and writes their results after each; returns whether all succeeded.

    Results of other suites that the folder has already are kept.

    Args:
      suites: all there are, with the flags that each gets.
      chosen: some of them; none for all.
      output: folder.
      settings: what the flags of all suites say.

    Raises:
      UserError: no folder, or no such suite.
    """
    if unknown := [name for name in chosen if name not in suites]:
        raise UserError(f"--suites={unknown[0]}: no such suite; choose from {', '.join(suites)}")
    if not output:
        raise UserError("--output is missing; name a folder for the results")
    folder = Path(output)
    folder.mkdir(parents=True, exist_ok=True)
    if not settings.data:
        data = f"--data={folder}/data{'_quick' if settings.quick else ''}"
        suites = {name: [*passed, data] for name, passed in suites.items()}
    before = [result for result in results_of(folder / RESULTS) if result.get("suite") in suites]
    results = list[dict[str, Any]]()
    for job in jobs({name: passed for name, passed in suites.items() if name in (chosen or suites)}, settings):
        result = run_job(job)
        results.append(result)
        measured = {result["suite"] for result in results}
        lines = [*results, *(result for result in before if result["suite"] not in measured)]
        lines.sort(key=lambda result: [*suites].index(result["suite"]))
        write_text(folder / RESULTS, "".join(json.dumps(line) + "\n" for line in lines))
        write_text(folder / REPORT, report(lines))
    failed = [result["suite"] for result in results if is_failed(result)]
    print(f"\n{folder / REPORT}: {len(results)} runs of suites" + (f"; failed: {listed(failed)}" if failed else ""))
    return not failed


def results_of(path: Path) -> list[dict[str, Any]]:
    """Returns the lines of a file of results, none if it does not exist. Raises UserError if it is damaged."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    try:
        results = [decode_json(line, dict[str, Any]) for line in lines]
    except ValueError:
        results = [{}]
    if not all({"rows", "settings"} <= result.keys() or "error" in result for result in results):
        raise UserError(f"{path}: damaged; remove it or use another --output")
    return results


def without(arguments: Sequence[str], names: Sequence[str]) -> list[str]:
    """Returns command-line arguments without some flags, written --name=value or --name value."""
    kept, values = list[str](), iter(arguments)
    for argument in values:
        flag, equals, _ = argument.partition("=")
        if flag.startswith("-") and flag.lstrip("-") in names:
            if not equals:
                next(values, None)
        else:
            kept.append(argument)
    return kept


def jobs(suites: dict[str, list[str]], settings: Settings) -> list[Job]:
    """Returns the processes to run; without a size in the flags, `train_step` runs with those of this platform."""
    if settings.quick:
        return [Job(name, [*passed, "--turns=1"]) for name, passed in suites.items()]
    # Another process asks: this one must not take an accelerator's memory.
    command = [sys.executable, "-c", "import jax; print(jax.default_backend())"]
    asked = subprocess.run(command, capture_output=True, text=True)
    if asked.returncode:
        last = asked.stderr.strip().splitlines()[-1]
        raise UserError(f"jax does not start: {last}; set JAX_PLATFORMS=cpu to measure the CPU")
    is_cpu = asked.stdout.split()[-1] == "cpu"
    result = list[Job]()
    for name, passed in suites.items():
        has_turns = any(flag.startswith("--turns") for flag in passed)
        common = [*passed, *([f"--turns={CPU_TURNS}"] if is_cpu and not has_turns else [])]
        is_sized = name != "train_step" or any(flag.startswith(SIZED) for flag in passed)
        sizes: Sequence[list[str]] = ([],) if is_sized else STEPS["cpu" if is_cpu else "accelerator"]
        result += [Job(name, [*common, *size]) for size in sizes]
    return result


def run_job(job: Job) -> dict[str, Any]:
    """Runs a suite and shows its output, with its errors if it failed; returns its line of JSON, or why there is none."""
    command = [sys.executable, str(TOOL), job.suite, *job.flags]
    print(f"\n$ tools/benchmark.py {' '.join([job.suite, *job.flags])}", flush=True)
    start = time.monotonic()
    try:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=MOST_SECONDS)
        lines, errors = done.stdout.splitlines(), done.stderr.strip().splitlines()
    except subprocess.TimeoutExpired as expired:
        lines = (expired.stdout or b"").decode(errors="replace").splitlines()
        errors = [f"stopped after {MOST_SECONDS:.0f} seconds"]
    result: dict[str, Any] = {"suite": job.suite, "error": (errors or ["ended without a result"])[-1]}
    if lines and lines[-1].startswith("{"):
        result = decode_json(lines.pop())
    if "error" in result:
        lines += [*errors[-MOST_LINES:-1], f"failed: {result['error']}"]
    print("\n".join(lines), flush=True)
    return result | {"flags": job.flags, "seconds": round(time.monotonic() - start, 1)}


def is_failed(result: dict[str, Any]) -> bool:
    return "error" in result or any(row.get("failed") for row in result["rows"])


# ----------------------------------------------------------------------------------------------------------------------
# The report
# ----------------------------------------------------------------------------------------------------------------------


def report(results: list[dict[str, Any]]) -> str:
    """Returns the results as Markdown: facts about the machine, and a table for each suite."""
    facts: dict[str, Any] = next((result["machine"] for result in results if "machine" in result), {})
    lines = ["# Benchmark", "", *(f"- {name}: {value}" for name, value in facts.items())]
    for result in results:
        lines += ["", f"## {result['suite']}", ""]
        if "error" in result:
            lines.append(f"Failed: {escaped(result['error'])}")
            continue
        about = ", ".join(f"{name} {value}" for name, value in result["settings"].items())
        memory = f"{result['peak_memory_bytes'] / 1e9:,.2f} GB"
        lines += [f"{about}; peak memory {memory}; {result['seconds']} s.", ""]
        lines += table(COLUMNS, [_cells(row) for row in result["rows"]])
    return "\n".join(lines) + "\n"


def _cells(row: dict[str, Any]) -> list[str]:
    median = (
        f"{number(row['median'])} {row['unit']}" if "median" in row else "failed" if row.get("failed") else "skipped"
    )
    spread = f"{number(row['low'])} to {number(row['high'])}" if "median" in row else ""
    share = f"{row['share_of_ceiling']:.3f}" if "share_of_ceiling" in row else ""
    ratio = f"{row['ratio']['median']:.2f} x {row['ratio']['to']}" if "ratio" in row else ""
    notes = [f"program {row['program_bytes'] / 1e6:,.0f} MB"] if "program_bytes" in row else []
    return [row["name"], median, spread, share, ratio, "; ".join([*notes, *([row["note"]] if "note" in row else [])])]
