"""Shows how a run is doing: steps, speed and time left, losses, checkpoints, starts, and where its time went.

python -m bert_jax.status --workdir=runs/x [--watch=10]

It only reads the run folder, so it may run on any machine that sees it, while the run trains.
"""

import contextlib
import time
from pathlib import Path
from typing import Any, NamedTuple

from absl import flags
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from bert_jax.cli.main import run_command
from bert_jax.errors import UserError, plain
from bert_jax.lock import holder
from bert_jax.run_folder import goodput
from bert_jax.run_folder.folder import read_config
from bert_jax.train.writers.base import Row
from bert_jax.train.writers.jsonl import METRICS, read_rows

_LEVELS = "▁▂▃▄▅▆▇█"
_WIDTH = 40  # characters of bars and curves
_COLOURS = {
    "training": "green", "waiting": "red", "evaluating": "cyan", "saving": "blue", "compiling": "magenta",
    "starting": "yellow", "lost": "bright_red", "down": "bright_black",
}  # fmt: skip
_BLOCKS = dict(zip(_COLOURS, "█▒▓▞▚░X·", strict=True))  # without colours they still differ
# A run is told to be slow if its last line is older than so many times the longest time between two lines, and older than this.
_TIMES_AS_LONG, _SECONDS = 5.0, 60.0


class Status(NamedTuple):
    """What a run folder says of a run."""

    name: str
    task: str
    num_steps: int
    holder: str  # of its lock; '': no process is training it
    rows: list[Row]
    checkpoints: dict[int, float]  # when they were written, in seconds since the epoch, by step
    starts: list[goodput.Start]

    @property
    def step(self) -> int:
        """Steps done, of those that are written."""
        from_times = self.starts[-1].step if self.starts else 0
        return max([from_times, *(int(row["step"]) for row in self.rows[-1:])])


def define_flags() -> None:
    flags.DEFINE_string("workdir", None, "The run folder.")
    flags.DEFINE_integer("watch", 0, "Seconds until it is shown anew; 0: once.", lower_bound=0)


def main() -> None:
    values = flags.FLAGS
    if not values.workdir:
        raise UserError("--workdir is missing; set it to the run folder")
    workdir, console = Path(values.workdir), Console()
    if not values.watch:
        console.print(shown(read_status(workdir), time.time()))
        return
    with Live(console=console, auto_refresh=False) as live:
        while True:
            status = read_status(workdir)
            live.update(shown(status, time.time()), refresh=True)
            if not status.holder:
                return
            time.sleep(values.watch)


def read_status(workdir: Path) -> Status:
    """Reads the status of a run. Raises UserError if the folder is no run folder, or a file of it is damaged."""
    config: dict[str, Any] = read_config(workdir)
    checkpoints = dict[int, float]()
    for path in (workdir / "checkpoints").glob("*"):
        if path.name.isdigit():  # others are being written
            with contextlib.suppress(FileNotFoundError):  # a running process removes old ones
                checkpoints[int(path.name)] = path.stat().st_mtime
    return Status(
        name=plain(str(workdir)),
        task=plain(" + ".join(config.get("objectives") or [config["task"]])),
        num_steps=config["train"]["num_steps"],
        holder=plain(holder(workdir)),
        rows=list(read_rows(workdir / METRICS)),
        checkpoints=checkpoints,
        starts=goodput.read_times(workdir),
    )


def shown(status: Status, now: float) -> RenderableType:
    """Returns what is printed of a status at a time, in seconds since the epoch."""
    table = Table.grid(padding=(0, 2))
    table.add_column(style="bold")
    table.add_column()
    table.add_row("run", f"{status.task} · {state(status, now)}")
    for name, line in lines(status, now):
        table.add_row(name, line)
    return Group(Text(status.name, "bold"), table)


def state(status: Status, now: float) -> str:
    """Returns in words whether the run is training, and whether anything is wrong."""
    latest = max(status.checkpoints, default=None)
    if status.holder:
        silence = silent_for(status, now)
        return f"running, {status.holder}" + (f"; nothing new for {duration(silence)}: it may hang" if silence else "")
    if status.step >= status.num_steps and latest == status.step:
        return "complete"
    if latest == status.step:
        return f"stopped at step {status.step:,}; the same command resumes it"
    if latest is None:
        return "ended without a checkpoint; the same command starts it again"
    return f"ended after step {status.step:,}; the same command resumes it at step {latest:,}"


def silent_for(status: Status, now: float) -> float:
    """Returns the seconds since the last line of the running process, 0.0 if they are not unusually many."""
    start = status.starts[-1] if status.starts else None
    if not start or len(start.intervals) < 2:  # it starts and compiles, which may take long
        return 0.0
    longest = max(sum(interval.seconds.values()) for interval in start.intervals[1:])
    silence = now - start.ended
    return silence if silence > max(_SECONDS, _TIMES_AS_LONG * longest) else 0.0


def lines(status: Status, now: float) -> list[tuple[str, Text]]:
    """Returns the lines of a status: a name, and a text."""
    done = min(1.0, status.step / max(status.num_steps, 1))
    bar = Text("━" * round(_WIDTH * done), "green") + Text("━" * (_WIDTH - round(_WIDTH * done)), "bright_black")
    parts = [("step", Text(f"{status.step:,} of {status.num_steps:,} ") + bar + f" {done:.1%}{left(status, now)}")]
    losses = [(int(row["step"]), row["loss"]) for row in status.rows if "loss" in row]
    if losses:
        curve = sparkline([loss for _, loss in losses])
        parts.append(("loss", Text(f"{losses[0][1]:.3f} {curve} {losses[-1][1]:.3f}")))
    held_out = [row for row in status.rows if any(name.startswith("eval/") for name in row)]
    if held_out:
        scores = {name.removeprefix("eval/"): value for name, value in held_out[-1].items() if name.startswith("eval/")}
        values = ", ".join(f"{plain(name)} {value:.4f}" for name, value in scores.items())
        parts.append(("held out", Text(f"{values}, at step {int(held_out[-1]['step']):,}")))
    speeds = [row for row in status.rows if "tokens_per_second" in row]
    if speeds:
        speed, start = speeds[-1], status.starts[-1] if status.starts else None
        seconds = goodput.seconds_per_step(start) if start else None
        per_step = f", {seconds:.3g} s a step" if seconds else ""
        waiting = f", {1e3 * speed['data_wait_seconds']:.1f} ms of it waiting for data" if per_step else ""
        parts.append(("speed", Text(f"{speed['tokens_per_second']:,.0f} tokens/s{per_step}{waiting}")))
    if status.checkpoints:
        step, written = max(status.checkpoints.items())
        parts.append(("saved", Text(f"step {step:,}, {duration(now - written)} ago; {len(status.checkpoints)} kept")))
    if status.starts:
        total = goodput.spent(status.starts)
        number = len(status.starts)
        began = f"{number} start{'s' * (number > 1)}, the first {duration(now - status.starts[0].began)} ago"
        parts.append(("starts", Text(began)))
        parts.append(("time", time_bar(total)))
    return parts


def left(status: Status, now: float) -> str:
    """Returns when the run will have ended, if it goes on as it does."""
    seconds = goodput.seconds_per_step(status.starts[-1]) if status.starts and status.holder else None
    if not seconds or status.step >= status.num_steps:
        return ""
    remaining = (status.num_steps - status.step) * seconds
    at = time.strftime("%Y-%m-%d %H:%M", time.localtime(now + remaining))
    return f", {duration(remaining)} left, until {at}"


def time_bar(total: dict[str, float]) -> Text:
    """Returns the seconds by kind as a bar, and in numbers."""
    everything = max(sum(total.values()), 1e-9)
    bar, legend = Text(), list[Text]()
    for kind, colour in _COLOURS.items():
        share = total[kind] / everything
        bar.append(_BLOCKS[kind] * round(_WIDTH * share), colour)
        if share >= 5e-4:
            legend.append(Text.assemble((_BLOCKS[kind], colour), f" {kind} {share:.1%}"))
    two_lines = (Text("  ").join(part) for part in (legend[:4], legend[4:]) if part)
    return Text.assemble(bar, f" of {duration(everything)}\n", Text("\n").join(two_lines))


def sparkline(values: list[float]) -> str:
    """Returns a curve of block characters, at most _WIDTH of them, each the mean of as many values."""
    count = min(_WIDTH, len(values))
    groups = [values[len(values) * place // count : len(values) * (place + 1) // count] for place in range(count)]
    means = [sum(group) / len(group) for group in groups]
    lowest, highest = min(means), max(means)
    scale = (len(_LEVELS) - 1) / (highest - lowest) if highest > lowest else 0.0
    return "".join(_LEVELS[round((mean - lowest) * scale)] for mean in means)


def duration(seconds: float) -> str:
    """Returns 45.2 as '45 s', 3725 as '1 h 2 min'."""
    minutes, seconds = divmod(max(0, round(seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    parts = [(days, "d"), (hours, "h"), (minutes, "min"), (seconds, "s")]
    first = next((place for place, (value, _) in enumerate(parts) if value), len(parts) - 1)
    return " ".join(
        f"{value} {unit}" for value, unit in parts[first : first + 2] if value or unit == "s" == parts[first][1]
    )


if __name__ == "__main__":
    define_flags()
    run_command(main)
