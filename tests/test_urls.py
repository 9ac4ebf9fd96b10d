"""Everything at URLs, through the commands: from text in a bucket to a run that is stopped, resumed and evaluated."""

import shutil
from pathlib import Path

import pytest

from bert_jax import run as run_module
from bert_jax.data import remote
from bert_jax.data.corpus.format import Corpus
from bert_jax.data.corpus.prepare import prepare
from bert_jax.data.corpus.remote_folder import prepare_at
from bert_jax.data.remote import Url
from bert_jax.errors import UserError
from bert_jax.run_folder.folder import read_config
from tests.data.urls import change, requests_of, upload
from tests.running import assert_one_line, command, config_flag, losses, run
from tests.tools.test_prepare_corpus import command as tool
from tests.tools.test_prepare_corpus import contents

SETTINGS = {"source": "tests", "held_out_fraction": 0.15, "shard_megabytes": 0.03}


@pytest.fixture
def text(documents, tmp_path) -> Path:
    folder = tmp_path / "text"
    for number in range(2):
        (folder / str(number)).mkdir(parents=True)
        texts = [document.text for document in documents[number::2]]
        (folder / str(number) / "text.txt").write_text("\n\n".join(texts))
    return folder


def test_from_text_to_a_run(s3, home, text, tiny_config, tmp_path):
    """The files are those of a local preparation, and the losses those of a local run."""
    folder = upload(text, f"{s3}/run/text")
    here, there = tmp_path / "corpora" / "mine", f"{s3}/run/corpora/mine"
    tokenizers = [tmp_path / "tokenizer", tmp_path / "same"]
    for base, tokenizer in zip((text, folder), tokenizers, strict=True):
        flags = [f"--source=text:{base}/*/text.txt", "--vocab_size=128", f"--output={tokenizer}"]
        run(tool("train_tokenizer", *flags))
    assert contents(tokenizers[0]) == contents(tokenizers[1])

    flags = [f"--source=text:{folder}/*/text.txt", f"--tokenizer={tokenizers[0]}", "--held_out=0.15"]
    flags += ["--shard_megabytes=0.03", "--workers=2"]
    said = [run(tool("prepare_corpus", *flags, f"--output={output}")).stdout for output in (here, there, there)]
    assert said[0].replace(str(here), there) == said[1] and "already finished" in said[2]
    assert not list((home / ".cache/bert_jax/remote/prepared").iterdir()), "nothing is left of the local copy"
    prepared = {name: content for name, content in contents(here).items() if "/" not in name}
    assert Url(there).sizes() == {name: len(content) for name, content in prepared.items()}
    changed = run(tool("prepare_corpus", *flags[:-2], "--shard_megabytes=1", f"--output={there}"), code=2)
    settings = "started with other settings (shard_megabytes was 0.03, now 1.0); use these or a new folder"
    assert_one_line(changed.stderr, f"{there}: {settings}")

    other = upload(here, f"{s3}/run/corpora/other")
    shutil.copytree(here, tmp_path / "corpora" / "other")
    for name, first, second in (("local", here, tmp_path / "corpora" / "other"), ("remote", there, other)):
        options = {"data.corpus": str(first), "data.mixture": (f"0.2:{second}",), "data.eval_corpora": (str(second),)}
        for steps in (2, 4):  # the second time it is resumed
            config = tiny_config(**options | {"train.num_steps": steps, "data.workers": int(steps > 2)})
            flag = config_flag(config, tmp_path / f"config_{name}_{steps}")
            run(command("pretrain", flag, f"--workdir={tmp_path}/{name}"))
    assert losses(tmp_path / "remote") == losses(tmp_path / "local") and len(losses(tmp_path / "local")) == 4
    data = read_config(tmp_path / "remote")["data"]
    assert (data["corpus"], *data["mixture"], *data["eval_corpora"]) == (there, f"0.2:{other}", other)
    scores = [run(command("evaluate", f"--workdir={tmp_path}/{name}")).stdout for name in ("local", "remote")]
    assert scores[0].replace("/local", "/remote") == scores[1] and "other/" in scores[1]


def test_text_in_the_place_of_a_corpus(s3, home, text, tokenizer, tiny_config, tmp_path):
    """It is prepared once, until a file changes."""
    folder = upload(text, f"{s3}/source")
    tokenizer.save(tmp_path / "tokenizer")
    options = {"data.corpus": f"text:{folder}/**/*.txt", "data.tokenizer": str(tmp_path / "tokenizer")}
    flag = config_flag(tiny_config(objectives=("mlm",), **options | {"train.num_steps": 1}), tmp_path / "config")
    for start, corpora in (("first", 1), ("second", 1), ("changed", 2)):
        if start == "changed":
            change(f"{folder}/0/text.txt", lambda content: content + b"\n\nthe old river")
        run(command("pretrain", flag, f"--workdir={tmp_path}/{start}"))
        assert len(list((home / ".cache" / "bert_jax" / "corpora").iterdir())) == corpora


def test_an_upload_that_fails_is_repeated_by_the_same_command(
    memory, home, documents, tokenizer, tmp_path, monkeypatch
):
    url, uploaded = Url(f"{memory}/corpus"), list[str]()
    files = type(remote.file_system(str(url))[0])
    put_file = files.put_file

    def fails(self, path: str, key: str, **options: object) -> None:
        uploaded.append(Path(path).name)
        if len(uploaded) > 3:
            raise TimeoutError("timed out")
        put_file(self, path, key, **options)

    def prepared(folder: Path):
        return prepare(documents, tokenizer, folder, **SETTINGS)

    monkeypatch.setattr(remote, "PAUSES", (0.0,))
    with monkeypatch.context() as patch:
        patch.setattr(files, "put_file", fails)
        with pytest.raises(UserError, match=r"/corpus/.*: timed out, 2 times; check the network and the service"):
            prepare_at(url, prepared)
    with pytest.raises(UserError, match=r"/corpus: no finished corpus \(corpus.json is missing\)"):
        Corpus.open(str(url))
    assert prepare_at(url, lambda folder: prepare([], tokenizer, folder, **SETTINGS)).already, "only the upload is left"
    corpus = Corpus.open(str(url))
    assert corpus.token_counts().sum() == corpus.num_tokens


def test_one_preparation_at_a_time(memory, home, documents, tokenizer):
    url = Url(f"{memory}/corpus")

    def prepared(folder: Path):
        with pytest.raises(UserError, match=r"in use by process .*; wait for it, stop it, or choose another URL"):
            prepare_at(url, prepared)
        return prepare(documents, tokenizer, folder, **SETTINGS)

    assert not prepare_at(url, prepared).already
    assert prepare_at(url, lambda folder: prepare(documents, tokenizer, folder, **SETTINGS)).already


def test_other_files_are_not_overwritten(memory, home, tmp_path):
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / "thesis.tex").write_text("precious")
    url = upload(tmp_path / "files", f"{memory}/thesis")
    with pytest.raises(UserError, match=f"^{url}: holds other files; choose a new folder"):
        prepare_at(Url(url), lambda folder: None)


def test_a_run_whose_network_fails_loses_nothing(memory, corpus_dir, tiny_config, tmp_path, monkeypatch):
    url = upload(corpus_dir, f"{memory}/corpus")
    config = tiny_config(**{"data.corpus": url, "train.num_steps": 8, "data.prefetch": 1})
    monkeypatch.setenv("HOME", str(tmp_path / "one"))
    with requests_of(url) as noted:
        run_module.run_training(config, tmp_path / "undisturbed")
    shards = [number for number, (path, *_) in enumerate(noted) if "train.array_record" in path]
    monkeypatch.setenv("HOME", str(tmp_path / "other"))
    message = r"record \d+: Connection reset by peer, 4 times; check the network"
    with requests_of(url, fail=lambda number: number >= shards[-1]), pytest.raises(UserError, match=message):
        run_module.run_training(config, tmp_path / "run")
    run_module.run_training(config, tmp_path / "run")
    assert losses(tmp_path / "run") == losses(tmp_path / "undisturbed") and len(losses(tmp_path / "run")) == 8


def test_mistakes_are_one_line(s3, home, tokenizer, tiny_config, tmp_path):
    tokenizer.save(tmp_path / "tokenizer")
    for corpus, part in (
        ("s3://nowhere/corpus", "s3://nowhere/corpus: no finished corpus"),
        (f"text:{s3}/none/*.txt", "none/*.txt: missing"),
        ("abc://bucket/corpus", "Protocol not known: abc"),
    ):
        values = {"data.corpus": corpus, "data.tokenizer": str(tmp_path / "tokenizer")}
        flag = config_flag(tiny_config(**values), tmp_path / "config")
        done = run(command("pretrain", flag, f"--workdir={tmp_path}/run"), code=2)
        assert_one_line(done.stderr, part)
        assert not (tmp_path / "run").exists()
