"""The code blocks of README.md and docs/ run (see doc_blocks.py), and their outputs have the lines that the pages show."""

import bz2
import json
import re
import shutil
import sys
from pathlib import Path

import pytest

from tests.data.sources.test_wikipedia import dump
from tests.data.sources.test_wikipedia import page as wiki_page
from tests.doc_blocks import PAGES, Block, blocks_of, run_block, smaller
from tests.running import ROOT

TUTORIALS = ["first_model", "published_model", "own_labels", "cluster"]  # each goes on in the folder of those before it
BLOCKS = [block for page in PAGES for block in blocks_of(page)]
OTHERS = [page for page in PAGES if "tutorials" not in page.parts and any(block.is_run for block in blocks_of(page))]
FOLDERS_OF_CHECKOUT = ("configs", "launch", "tools")


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: block.place)
def test_every_block_is_run_or_says_why_not(block):
    if block.note.startswith("run by "):
        assert (ROOT / block.note.removeprefix("run by ")).is_file()
    elif block.note:
        reason = block.note.removeprefix("not run: ")
        assert reason != block.note and len(reason.split()) >= 3, f"{block.note!r}: is no reason"
        for file in re.findall(r"\b[\w./]+\.(?:py|sh)\b", reason):
            assert any(ROOT.glob(f"**/{file}")), f"no file {file}"
    elif block.is_output:
        blocks = blocks_of(block.page)
        assert blocks[blocks.index(block) - 1].is_run, "an output without a block that is run before it"
    else:
        assert block.language in ("", "bash", "python"), f"{block.language}: no way to run it"


def test_fences_are_closed():
    """All code is in a block that the tests see."""
    for page in PAGES:
        assert len(re.findall(r"^ *```", page.read_text(), re.MULTILINE)) == 2 * len(blocks_of(page)), page


def test_tutorials_are_all_run():
    assert sorted(path.stem for path in (ROOT / "docs" / "tutorials").glob("*.md")) == sorted(TUTORIALS)


def test_commands_become_small():
    code = "python -m bert_jax.pretrain --config=configs/bert_base.py \\\n    --workdir=runs/x  # hours\nls runs\n"
    command, listing = smaller(code).splitlines()[1:]
    assert command.startswith("    --workdir=runs/x --config.train.num_steps=4 ") and command.endswith("  # hours")
    assert "--config.model.num_layers=2" in command and listing == "ls runs"


def link_checkout(folder: Path) -> Path:
    """Makes a folder in which commands find what they find in the checkout."""
    for name in FOLDERS_OF_CHECKOUT:
        (folder / name).symlink_to(ROOT / name)
    (folder / ".venv").symlink_to(sys.prefix)
    return folder


def run_page(page: Path, folder: Path) -> None:
    """Runs the blocks of a page one after the other, and compares their outputs with those shown."""
    printed = ""
    for block in blocks_of(page):
        if block.is_run:
            printed = run_block(block, folder)
        elif block.is_output:
            check_output(block, printed)


def check_output(block: Block, printed: str) -> None:
    """Asserts that the shown lines are among those printed, in their order; numbers may differ, and `...` is any text."""
    rest = unnumbered(printed)
    for line in filter(None, map(str.strip, block.code.splitlines())):
        pattern = ".*".join(map(re.escape, unnumbered(line).split("...")))
        match = re.search(pattern, rest)
        assert match, f"{block.place}: {line!r} is not in the output:\n{printed[-4000:]}"
        rest = rest[match.end() :]


def unnumbered(text: str) -> str:
    """Returns a text with one form for all numbers and spaces."""
    return re.sub(r"[ \t]+", " ", re.sub(r"\d[\d,.]*", "#", text))


@pytest.fixture(scope="session")
def readers_folder(documents, corpus_dir, tiny_config, tmp_path_factory) -> Path:
    """What readers of the how-to pages have: texts, labelled data, corpora, a run, a rotary run, a model of Hugging Face's."""
    from bert_jax.conversion.convert import export_run
    from bert_jax.run import run_training

    folder = tmp_path_factory.mktemp("reader")
    texts = [document.text for document in documents]
    for name, part in (("texts/a.txt", texts[:120]), ("mine/a.txt", texts[120:]), ("texts/lines.txt", texts[:3])):
        (folder / name).parent.mkdir(exist_ok=True)
        between = "\n" if name.endswith("lines.txt") else "\n\n"
        (folder / name).write_text(between.join(text.replace("\n", " ") for text in part) + "\n")
    (folder / "books").mkdir()
    for number in range(20):
        (folder / "books" / f"{number}.txt").write_text("\n\n".join(texts[number::20]) + "\n")
    pages = [wiki_page(number + 1, f"Title {number}", text) for number, text in enumerate(texts)]
    (folder / "simplewiki-latest-pages-articles.xml.bz2").write_bytes(bz2.compress(dump(pages)))
    sentences = [line.split(". ")[0] for text in texts for line in text.splitlines()]
    for number, name in enumerate(("train", "dev", "test")):
        part = sentences[number * 60 : (number + 1) * 60]
        rows = [{"text": text, "label": "good" if "old" in text else "bad"} for text in part]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        columns = [
            "".join(f"{word} X {'B-THING' if len(word) == 6 else 'O'}\n" for word in text.split()) for text in part
        ]
        (folder / f"{name}.conll").write_text("\n".join(columns))
    for name in ("mine", "general"):
        shutil.copytree(corpus_dir, folder / "corpora" / name)
    run_training(tiny_config(), folder / "runs" / "base")
    rotary = {"model.positions": "rope", "model.norm_position": "pre", "objectives": ("mlm",)}
    run_training(tiny_config(**rotary), folder / "runs" / "rotary")
    (folder / "models").mkdir()
    export_run(folder / "runs" / "base", folder / "models" / "bert")
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("page", OTHERS, ids=lambda page: str(page.relative_to(ROOT)))
def test_blocks_run(page, readers_folder, tmp_path):
    folder = link_checkout(Path(shutil.copytree(readers_folder, tmp_path / "folder")))
    if page == ROOT / "README.md":
        shutil.rmtree(folder / "corpora")  # it makes its own
    run_page(page, folder)


@pytest.mark.slow
@pytest.mark.timeout(1800)  # some thirty commands, each a process that imports jax and compiles
def test_tutorials_run(documents, tmp_path):
    """In one folder, one after the other, with generated documents of some packages for those of an installation."""
    folder = link_checkout(tmp_path)
    packages = ("numpy", "jax", "scipy", "matplotlib")
    rows = [
        {
            "module": f"{packages[number % 4]}.m{number}",
            "name": f"f{line}",
            "text": text,
            "code": [match.span() for match in re.finditer(r"\b[a-z]{6}\b", text)],
        }
        for number, document in enumerate(documents)
        for line, text in enumerate(document.text.splitlines())
    ]
    (folder / "docstrings.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for name in TUTORIALS:
        run_page(ROOT / "docs" / "tutorials" / f"{name}.md", folder)
