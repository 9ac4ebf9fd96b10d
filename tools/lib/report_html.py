"""Makes HTML pages and tables for reports; values are escaped by `Markup.format` and `Markup.join`."""

from collections.abc import Iterable, Sequence
from pathlib import Path

from markupsafe import Markup


def page(title: str, content: Markup, style: str = "") -> str:
    """Returns an HTML page that cannot run scripts or load anything, whatever its content."""
    css = Markup((Path(__file__).with_name("report.css")).read_text(encoding="utf-8"))  # trusted
    return Markup(
        "<!doctype html><html lang=en><meta charset=utf-8>"
        "<meta http-equiv=Content-Security-Policy content=\"default-src 'none'; style-src 'unsafe-inline'\">"
        "<title>{}</title><style>{}{}</style>"
        '<meta name=viewport content="width=device-width"><main>{}</main></html>\n'
    ).format(title, css, style, content)


def table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> Markup:
    """Returns an HTML table."""
    head = Markup().join(map(Markup("<th>{}</th>").format, columns))
    lines = (Markup().join(map(Markup("<td>{}</td>").format, row)) for row in rows)
    body = Markup().join(map(Markup("<tr>{}</tr>").format, lines))
    return Markup("<table><thead><tr>{}</tr></thead><tbody>{}</tbody></table>").format(head, body)


def number(name: str, value: float | None) -> str:
    """Formats a metric; accuracies in percent."""
    if value is None:
        return "not finite"
    return f"{value:.1%}" if name.endswith("accuracy") else f"{value:,.3f}"


def quantity(value: float) -> str:
    """Formats 1,234,567 as '1.23 M'."""
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value:.3g}"
