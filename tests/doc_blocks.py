"""The code blocks of README.md and docs/, and how they are run: in a folder, as a reader would, but with small sizes.

A comment above a block may say why it is not run, `<!-- not run: REASON -->`, or what runs it, `<!-- run by FILE -->`. A block
of the language `text` is the output of the block before it.
"""

import re
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

from tests.running import ROOT, environment

PAGES = [ROOT / "README.md", *sorted(path for path in ROOT.glob("docs/**/*.md") if "records" not in path.parts)]
FENCE = re.compile(r"(?:^<!-- (?P<note>.*?) -->\n)?^```(?P<language>\w*)\n(?P<code>.*?)^```$", re.MULTILINE | re.DOTALL)
COMMAND = re.compile(r"^(?!#)(?:.*\\\n)*.*$", re.MULTILINE)  # a line with those that continue it
TIMEOUT = 300.0  # seconds, of a block

# Flags that make commands small, for those that match; of flags that are set twice the last one counts.
SMALL_RUN = (
    "--config.train.num_steps=4 --config.train.batch_size=8 --config.train.log_every=1 --config.train.eval_every=0 "
    "--config.train.eval_batch_size=8 --config.train.eval_examples=16 --config.optimizer.warmup_steps=2 "
    "--config.checkpoint.every=2"
)
SMALL_MODEL = (
    "--config.model.num_layers=2 --config.model.hidden_size=32 --config.model.num_heads=4 "
    "--config.model.intermediate_size=64"
)
SMALLER = {
    r"bert_jax\.pretrain .*--config=|launch/local.sh": SMALL_RUN,
    r"--config=configs/(quickstart|small|continue)\.py": "--config.data.sequence_length=32",
    r"--config=configs/(quickstart|small)\.py": SMALL_MODEL,
    r"--config=configs/roberta\.py": f"{SMALL_MODEL} --config.data.sequence_length=32",
    r"--config=configs/bert_base\.py": f"{SMALL_MODEL} --config.phases='()' --config.data.sequence_length=32",
    r"bert_jax\.finetune ": "--config.train.num_steps=4 --config.train.batch_size=8 --config.data.sequence_length=32",
    r"--source=(python-docs|'text:texts)": "--source='text:texts/*.txt'",
    r"tools/python_docs_task\.py": "--docstrings=docstrings.jsonl",
    r"tools/prepare_corpus\.py": "--held_out=0.2 --workers=1",
    r"--step=12345": "--step=3",
    r"tools/train_tokenizer\.py .*wikipedia-xml": "--vocab_size=1000 --workers=1",
    r"tools/extend_vocabulary\.py": "--held_out=0.2",
    r"tools/linear_models\.py": "--config.data.sequence_length=32",
}


class Block(NamedTuple):
    """A code block of a page."""

    page: Path
    line: int
    note: str  # the comment above it
    language: str  # '' and 'bash' are commands
    code: str

    @property
    def is_output(self) -> bool:
        return self.language == "text" and not self.note

    @property
    def is_run(self) -> bool:
        return not self.note and not self.is_output

    @property
    def place(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def blocks_of(page: Path) -> list[Block]:
    """Returns the blocks of a page in their order."""
    text = page.read_text()
    return [
        Block(page, text.count("\n", 0, match.start()) + 1, match["note"] or "", match["language"], match["code"])
        for match in FENCE.finditer(text)
    ]


def smaller(code: str) -> str:
    """Returns commands with the flags that make them small."""

    def shrunk(match: re.Match[str]) -> str:
        command, hash_sign, comment = match[0].partition("  #")
        line = command.replace("\\\n", " ")
        flags = " ".join(flags for pattern, flags in SMALLER.items() if re.search(pattern, line))
        return f"{command.rstrip()} {flags}{hash_sign}{comment}" if flags else match[0]

    return COMMAND.sub(shrunk, code)


def run_block(block: Block, folder: Path) -> str:
    """Runs a block in a folder and returns what it prints; asserts that it succeeds."""
    is_python = block.language == "python"
    code = block.code if is_python else f"set -euo pipefail\n{smaller(block.code)}"
    program = [sys.executable, "-c", code] if is_python else ["bash", "-c", code]
    variables = environment(1)
    variables["PATH"] = f"{Path(sys.executable).parent}:{variables['PATH']}"
    done = subprocess.run(
        program,
        cwd=folder,
        env=variables,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,  # both in the order in which a reader sees them
        text=True,
        timeout=TIMEOUT,
    )
    assert done.returncode == 0, f"{block.place}: exit code {done.returncode}: {code}\n{done.stdout[-6000:]}"
    return done.stdout
