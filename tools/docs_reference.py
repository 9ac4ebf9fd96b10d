"""Makes the reference of the documentation from the code, while MkDocs builds the site.

    pip install -r requirements-docs.txt
    mkdocs build --strict      # or: mkdocs serve

mkdocs.yml names this file as a hook. The pages reference/options.md, reference/commands.md and reference/python.md exist in the
site alone; the list of messages takes the place of its mark in errors.md.
"""

from typing import Any

from mkdocs.structure.files import File

from tools.lib import docs_commands, docs_errors, docs_options, docs_python

PAGES = {"options": docs_options.page, "commands": docs_commands.page, "python": docs_python.page}
# The first column of these pages holds names, which stay on one line.
STYLE = "<style>.md-typeset td:first-child code { white-space: nowrap !important }</style>\n\n"
ERRORS, MARK = "errors.md", "<!-- all messages -->"


def on_files(files: Any, config: Any) -> Any:
    """Adds the pages of the reference."""
    for name, make in PAGES.items():
        files.append(File.generated(config, f"reference/{name}.md", content=STYLE + make()))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Puts the list of messages into its page."""
    return markdown.replace(MARK, docs_errors.page_part()) if page.file.src_uri == ERRORS else markdown
