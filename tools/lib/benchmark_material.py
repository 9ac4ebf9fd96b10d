"""What the suites of `tools/benchmark.py` make for themselves: texts, a tokenizer, a corpus, a task, a run."""

import atexit
import dataclasses
import functools
import itertools
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import jax

from bert_jax.conversion.convert import import_run
from bert_jax.data.corpus.prepare import prepare
from bert_jax.data.datasets import glue
from bert_jax.data.inputs import json_line
from bert_jax.data.sources.documents import Document, read_documents
from bert_jax.data.tokenizer.tokenizer import Tokenizer
from bert_jax.errors import UserError
from bert_jax.files import read_json, write_json, write_text
from bert_jax.formats import huggingface, huggingface_config
from bert_jax.formats.families import HEADS
from bert_jax.formats.tensors import WEIGHTS, write_safetensors
from bert_jax.model.build import Model
from bert_jax.run_folder import folder as run_folder
from tools.lib.benchmark_settings import Settings
from tools.lib.corpus_flag import check_corpus_flag

TEXT_BYTES, QUICK_BYTES = 4_000_000, 60_000  # of the source
GLUE_PAIRS, QUICK_PAIRS = 2000, 64
_ORIGIN = "origin.json"
CHARACTERS = (20, 240)  # of a sentence of a pair, at least and at most


@functools.cache
def temporary_folder(source: str, is_quick: bool) -> str:
    """Returns a folder for the material of a source, which is removed when the process ends."""
    folder = tempfile.TemporaryDirectory(prefix="bert_jax_benchmark_")
    atexit.register(folder.cleanup)
    return folder.name


class Material:
    """A folder with what was made already; nothing in it is made twice."""

    def __init__(self, settings: Settings):
        """Opens --data, or a temporary folder. Raises UserError if its texts are from another source."""
        self.settings = settings
        self.folder = Path(settings.data or temporary_folder(settings.source, settings.quick))
        self.folder.mkdir(parents=True, exist_ok=True)
        origin = {"source": settings.source, "quick": settings.quick}
        if not (self.folder / _ORIGIN).exists():
            write_json(self.folder / _ORIGIN, origin)
        if (before := read_json(self.folder / _ORIGIN)) != origin:
            raise UserError(f"--data={self.folder}: was made with {before}, not {origin}; use another folder")

    def documents(self) -> list[Document]:
        """Returns the first documents of the source."""
        path = self.folder / "documents.jsonl"
        if not path.exists():
            most = QUICK_BYTES if self.settings.quick else TEXT_BYTES
            lines, size = [], 0
            for document in read_documents(self.settings.source):
                lines.append(json_line({"text": document.text}))
                size += len(document.text)
                if size > most:
                    break
            write_text(path, "".join(lines))
        return list(read_documents(f"jsonl:{path}"))

    def texts(self) -> list[str]:
        """Returns the paragraphs of the documents."""
        return list(itertools.chain.from_iterable(document.text.splitlines() for document in self.documents()))

    def tokenizer(self) -> Path:
        """Returns the folder of a WordPiece tokenizer with as many tokens as the model's vocabulary, or fewer."""
        size = self.settings.encoder.vocab_size
        folder = self.folder / f"tokenizer_{size}"
        if not (folder / "tokenizer.json").exists():
            Tokenizer.train((document.text for document in self.documents()), size).save(folder)
        return folder

    def lengths(self, longest: int) -> list[int]:
        """Returns the numbers of tokens of paragraphs, special tokens included, cut at `longest`."""
        tokenizer = Tokenizer.load(self.tokenizer())
        special = tokenizer.num_special_tokens(1)
        return [min(longest, len(ids) + special) for ids in tokenizer.encode(self.texts()[:20_000])]

    def corpus(self) -> str:
        """Returns the folder of --corpus, or of a corpus of the documents."""
        if corpus := self.settings.corpus:
            check_corpus_flag(corpus)
            return corpus
        tokenizer = Tokenizer.load(self.tokenizer())
        folder = self.folder / f"corpus_{tokenizer.vocab_size}"
        prepare(self.documents(), tokenizer, folder, source=self.settings.source, shard_megabytes=1.0)
        return str(folder)

    def glue(self) -> str:
        """Returns --glue_dir, or a folder with pairs of sentences in the format of MRPC.

        Raises:
          UserError: --glue_task is another task, which only --glue_dir can have, or --glue_dir has no such task.
        """
        if directory := self.settings.glue_dir:
            if self.settings.glue_task not in (known := glue.available(directory)):
                remedy = f"choose --glue_task from {', '.join(known)}" if known else "set it to GLUE's official folders"
                raise UserError(f"--glue_dir={directory}: has no {self.settings.glue_task}/train.tsv; {remedy}")
            return directory
        if self.settings.glue_task != "MRPC":
            raise UserError(f"--glue_task={self.settings.glue_task}: needs --glue_dir, the folder with GLUE's folders")
        folder = self.folder / "MRPC"
        folder.mkdir(exist_ok=True)
        pairs = list(itertools.islice(self._pairs(), QUICK_PAIRS if self.settings.quick else GLUE_PAIRS))
        held_out = len(pairs) // 8
        for split, rows in {"dev": pairs[:held_out], "train": pairs[held_out:]}.items():
            lines = [f"{number % 2}\t{number}\t{number}\t{a}\t{b}\n" for number, (a, b) in enumerate(rows)]
            write_text(folder / f"{split}.tsv", "Quality\t#1 ID\t#2 ID\t#1 String\t#2 String\n" + "".join(lines))
        return str(self.folder)

    def _pairs(self) -> Iterator[tuple[str, str]]:
        """Yields pairs of neighbouring paragraphs of some length."""
        low, high = CHARACTERS
        texts = (" ".join(text.split()) for text in self.texts())
        usable = (text for text in texts if low <= len(text) <= high and '"' not in text)
        return zip(usable, usable, strict=False)

    def run(self) -> str:
        """Returns the run folder of a classifier of texts with random weights and the encoder of --size."""
        encoder = self.settings.encoder
        encoder = dataclasses.replace(encoder, pooler=encoder.classifier == "pooled")
        name = f"{self.settings.model_size}_{encoder.dtype}"
        folder, source = self.folder / f"run_{name}", self.folder / f"model_{name}"
        if run_folder.exists(folder):
            return str(folder)
        tokenizer = Tokenizer.load(self.tokenizer())
        family, config = huggingface_config.family_of(encoder)
        architecture, heads = huggingface_config.architecture_of(family, ("classification",))
        labels = {"id2label": {"0": "LABEL_0", "1": "LABEL_1"}, "architectures": [architecture]}
        model = Model.build(encoder, {name: HEADS[name].factory(2) for name in heads})
        params = jax.jit(model.init)(jax.random.key(0))
        tokenizer.save(source)
        tensors = huggingface.exported_tensors(model, params, family, heads)
        write_safetensors(source / WEIGHTS, huggingface.exported_shapes(model, family, heads), tensors)
        write_json(source / huggingface_config.CONFIG, config | labels | {"pad_token_id": tokenizer.pad_id})
        shutil.rmtree(folder, ignore_errors=True)  # of an import that was interrupted
        import_run(source, folder)
        values = run_folder.read_config(folder)  # in float32: the format of the source does not say how to compute
        run_folder.write_config(folder, values | {"model": values["model"] | {"dtype": encoder.dtype}})
        return str(folder)
