"""Shows where the time of a run went: a bar of the kinds of run_folder/goodput.py, and a table."""

from pathlib import Path

from markupsafe import Markup

from bert_jax.run_folder import goodput
from tools.lib.report_html import table

COLOURS = {
    "training": "#2f6fde", "waiting": "#c2255c", "evaluating": "#e8710a", "saving": "#7048e8", "compiling": "#0b7285",
    "starting": "#2b8a3e", "lost": "#5c4630", "down": "#cfd6df",
}  # fmt: skip
MEANINGS = {
    "training": "steps that were kept",
    "waiting": "for data",
    "evaluating": "on held-out data",
    "saving": "checkpoints, as far as training waits for them",
    "compiling": "the programs of training and evaluation",
    "starting": "from the start of the process: imports, opening the data, initial or saved parameters",
    "lost": "done after the last checkpoint before a process ended, and done again",
    "down": "between the last line of a process and the start of the next one",
}
_WIDTH, _HEIGHT = 1000, 22


def where_time_went(workdir: Path) -> Markup:
    """Returns a section; '' for a run without times.jsonl, as of older versions. Raises UserError if it is damaged."""
    starts = goodput.read_times(workdir)
    total = goodput.spent(starts)
    everything = sum(total.values())
    if not everything:
        return Markup()
    heading = f"Goodput {goodput.goodput(total):.1%}, {len(starts)} start{'s' * (len(starts) > 1)}"
    shown = {kind: total[kind] for kind in COLOURS if total[kind]}
    of_kind = Markup('<span class=run><i style="background:{}"></i>{} {:.1%}</span>').format
    legend = Markup("\n").join(of_kind(COLOURS[kind], kind, seconds / everything) for kind, seconds in shown.items())
    rows = [(kind, f"{seconds:,.1f}", MEANINGS[kind]) for kind, seconds in shown.items()]
    return Markup(
        "<section><h2>{}</h2>{}<p class=note>{}</p><details><summary>Where the time went</summary>{}</details></section>"
    ).format(heading, bar(total), legend, table(("", "seconds", ""), rows))


def bar(total: dict[str, float]) -> Markup:
    """Returns the kinds as segments of one bar, each with its name as a tooltip."""
    everything, left, segments = sum(total.values()), 0.0, list[Markup]()
    for kind, colour in COLOURS.items():
        width = _WIDTH * total[kind] / everything
        label = f"{kind} {total[kind] / everything:.1%}"
        rectangle = Markup('<rect x="{:.2f}" y="0" width="{:.2f}" height="{}" fill="{}"><title>{}</title></rect>')
        segments.append(rectangle.format(left, width, _HEIGHT, colour, label))
        left += width
    frame = Markup('<svg viewBox="0 0 {} {}" preserveAspectRatio="none" role="img" aria-label="{}">{}</svg>')
    spoken = ", ".join(f"{kind} {seconds / everything:.0%}" for kind, seconds in total.items() if seconds)
    return frame.format(_WIDTH, _HEIGHT, spoken, Markup().join(segments))
