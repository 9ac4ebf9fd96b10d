"""Tables as sources: Parquet, folders of save_to_disk, datasets of TFDS; the corpora made from them are the same."""

import json
import shutil
import sys

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from bert_jax.data.corpus.prepare import prepare
from bert_jax.data.sources.documents import FORMS, KINDS, read_documents
from tests import running
from tests.data.sources import tables
from tests.hostile.limits import accepted_or_refused, damaged_bytes, limited, python, refused

TEXTS = ["First title\nA paragraph.", "שלום עולם 🙂", "", "last"]
FORMATS = ("tfrecord", "array_record")


def texts_of(spec: str) -> list[str]:
    return [document.text for document in read_documents(spec)]


def read(spec: str) -> list[tuple[str, str]]:
    """The documents of a source, whose reports of progress rise from 0 to 1."""
    shares: list[float] = []
    documents = [tuple(document) for document in read_documents(spec, progress=shares.append)]
    assert shares == sorted(shares) and shares[0] == 0.0 and shares[-1] == 1.0
    return documents


def test_parquet(tmp_path):
    tables.write_parquet(tmp_path / "b.parquet", ["second file"], row_group_size=1)
    tables.write_parquet(tmp_path / "a.parquet", [*TEXTS[:2], None], row_group_size=2)
    expected = [
        ("a.parquet:1", TEXTS[0]),
        ("a.parquet:2", TEXTS[1]),
        ("a.parquet:3", ""),
        ("b.parquet:1", "second file"),
    ]
    assert read(f"parquet:{tmp_path}/*.parquet") == expected, "null is an empty document"
    tables.write_parquet(tmp_path / "c.parquet", TEXTS, "a.body", compression="zstd")
    assert texts_of(f"parquet:{tmp_path}/c.parquet:a.body") == TEXTS


@pytest.mark.parametrize(
    "kind", [pa.string(), pa.large_string(), pa.string_view(), pa.dictionary(pa.int32(), pa.string())]
)
def test_every_kind_of_string(tmp_path, kind):
    data = pa.table({"text": pa.array(TEXTS).cast(kind)})
    if not pa.types.is_string_view(kind):  # pyarrow does not write these to Parquet
        parquet.write_table(data, tmp_path / "a.parquet")
        assert texts_of(f"parquet:{tmp_path}/a.parquet") == TEXTS
    folder = tables.write_arrow(tmp_path / "saved", [[]])
    with (
        pa.OSFile(str(folder / "data-00000-of-00001.arrow"), "wb") as file,
        pa.ipc.new_stream(file, data.schema) as writer,
    ):
        writer.write_table(data)
    assert texts_of(f"arrow:{folder}") == TEXTS


def test_arrow(tmp_path):
    folder = tables.write_arrow(tmp_path / "saved", [TEXTS[:3], [], [None, "x"]], rows=2)
    first, last = (f"data-{number:05d}-of-00003.arrow" for number in (0, 2))
    expected = [(f"{first}:{row}", text) for row, text in enumerate(TEXTS[:3], 1)]
    assert read(f"arrow:{folder}") == [*expected, (f"{last}:1", ""), (f"{last}:2", "x")]
    tables.write_state(folder, [last, first])
    assert texts_of(f"arrow:{folder}/") == ["", "x", *TEXTS[:3]], "the files are in the order of state.json"
    tables.write_arrow(tmp_path / "other", [TEXTS], "body")
    assert texts_of(f"arrow:{tmp_path}/other:body") == TEXTS


@pytest.mark.parametrize("file_format", FORMATS)
def test_tfds(tmp_path, file_format):
    splits = {"train": [f"text {number}" for number in range(150)], "test": TEXTS}
    folder = tables.write_tfds(tmp_path / "a:b", splits, file_format)
    assert read(f"tfds:{folder}") == [(f"tiny/train:{number}", text) for number, text in enumerate(splits["train"])]
    assert (
        read(f"tfds:{folder}:test")
        == read(f"tfds:{folder}:test:text")
        == [(f"tiny/test:{number}", text) for number, text in enumerate(TEXTS)]
    )
    with refused(f"tfds:{folder}:dev: no split 'dev', only train, test; use one of these"):
        texts_of(f"tfds:{folder}:dev")
    with refused("no text field 'number' (text fields: text); set it with tfds:NAME:train:FIELD"):
        texts_of(f"tfds:{folder}::number")
    with refused("too many colons; use tfds:NAME"):
        texts_of(f"tfds:{folder}:train:text:x")


def test_datasets_of_tfds_by_name(tmp_path, monkeypatch):
    """One that is prepared is read, and nothing is downloaded."""
    import tensorflow_datasets as tfds

    def fail(*_, **__):
        raise AssertionError("downloads")

    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    monkeypatch.setattr(tfds.core.dataset_builder.DatasetBuilder, "download_and_prepare", fail)
    monkeypatch.setattr(tfds.core.constants, "DATA_DIR", str(tmp_path))
    tables.write_tfds(tmp_path / "tiny" / "1.0.0", {"train": TEXTS}, "array_record")
    for name in ("tiny", "tiny:1.0.0", "tiny:1.0.0:train:text"):
        assert texts_of(f"tfds:{name}") == TEXTS
    command = "tfds.builder('imdb_reviews', file_format='array_record').download_and_prepare()"
    with refused("tfds:imdb_reviews: not prepared in", "prepare it: python -c", command):
        texts_of("tfds:imdb_reviews:test")
    for name in ("no_such_dataset", str(tmp_path), "imdb_reviews/no_such_config", ""):
        with refused(f"tfds:{name}: neither a folder with dataset_info.json nor a dataset", "check the name"):
            texts_of(f"tfds:{name}")


@settings(deadline=None, max_examples=15)
@given(st.lists(st.text(st.characters(codec="utf-8"), max_size=30), min_size=1, max_size=12), st.integers(1, 4))
def test_any_texts_come_back(tmp_path_factory, texts, rows):
    folder = tmp_path_factory.mktemp("any")
    middle = len(texts) // 2
    specs = [
        f"parquet:{tables.write_parquet(folder / 'a.parquet', texts, row_group_size=rows)}",
        f"arrow:{tables.write_arrow(folder / 'saved', [texts[:middle], texts[middle:]], rows=rows)}",
        *(f"tfds:{tables.write_tfds(folder / name, {'train': texts}, name)}" for name in FORMATS),
    ]
    for spec in specs:
        documents = list(read_documents(spec))
        assert [document.text for document in documents] == texts
        assert len({document.id for document in documents}) == len(texts) and documents == list(read_documents(spec))


def test_corpora_from_all_of_them_have_the_same_shards(tmp_path, documents, tokenizer):
    texts = [document.text for document in documents]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    tables.write_parquet(tmp_path / "a.parquet", texts, row_group_size=50)
    tables.write_arrow(tmp_path / "saved", [texts[:100], texts[100:]])
    for name in FORMATS:
        tables.write_tfds(tmp_path / name, {"train": texts}, name)
    specs = ["jsonl:a.jsonl", "parquet:a.parquet", "arrow:saved", *(f"tfds:{name}" for name in FORMATS)]
    made = []
    for spec in specs:
        kind, _, path = spec.partition(":")
        output = tmp_path / f"corpus_{len(made)}"
        # The ids are others, and with them what is held out.
        stream = read_documents(f"{kind}:{tmp_path}/{path}")
        prepare(stream, tokenizer, output, source="tests", held_out_fraction=0.0, shard_megabytes=0.03)
        made.append({file.name: file.read_bytes() for file in output.glob("*.array_record*")})
    assert len(made[0]) > 3 and all(files == made[0] for files in made)


@pytest.mark.real
@pytest.mark.parametrize("split, count", [("train", 1000), ("validation", 200)])
def test_web_text_in_both_formats(real_data, tmp_path, split, count):
    """The folder has both; dataset_info.json is of the TFRecord files, and made to be of the others in a copy."""
    folder = real_data / "records" / "c4_en_sample"
    for path in folder.glob("*array_record*"):
        (tmp_path / path.name).symlink_to(path)
    shutil.copy(folder / "features.json", tmp_path)
    info = json.loads((folder / "dataset_info.json").read_text())
    (tmp_path / "dataset_info.json").write_text(json.dumps(info | {"name": "c4", "fileFormat": "array_record"}))
    texts = texts_of(f"tfds:{folder}:{split}")
    assert len(texts) == count and min(map(len, texts)) > 20 and all(" " in text for text in texts)
    assert texts_of(f"tfds:{tmp_path}:{split}") == texts


# ----------------------------------------------------------------------------------------------------------------------
# Mistakes
# ----------------------------------------------------------------------------------------------------------------------


def test_fields_that_are_not_there(tmp_path):
    tables.write_parquet(tmp_path / "a.parquet", TEXTS, "body")
    with refused("a.parquet: no text field 'text' (text fields: body); set it with parquet:GLOB:FIELD"):
        texts_of(f"parquet:{tmp_path}/a.parquet")
    with refused("no text field 'number' (text fields: body)"):
        texts_of(f"parquet:{tmp_path}/a.parquet:number")
    folder = tables.write_arrow(tmp_path / "saved", [TEXTS], "body")
    with refused("data-00000-of-00001.arrow: no text field 'text' (text fields: body); set it with arrow:FOLDER:FIELD"):
        texts_of(f"arrow:{folder}")


def test_folders_that_are_no_dataset(tmp_path):
    with refused(f"{tmp_path}: no saved dataset, because it has no state.json; use a folder made by", "parquet:GLOB"):
        texts_of(f"arrow:{tmp_path}")
    (tmp_path / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    with refused(f"{tmp_path}: holds the splits train, test; use one, as in arrow:{tmp_path}/train"):
        texts_of(f"arrow:{tmp_path}")
    (tmp_path / "dataset_info.json").write_text('{"name": 1}')
    with refused(f"{tmp_path}/dataset_info.json: damaged", "copy the dataset again"):
        texts_of(f"tfds:{tmp_path}")
    with refused("*.parquet: matches no file; use"):
        texts_of(f"parquet:{tmp_path}/*.parquet")


def test_states_that_lie(tmp_path):
    folder = tables.write_arrow(tmp_path / "saved", [TEXTS])
    name = "data-00000-of-00001.arrow"
    (tmp_path / "outside.arrow").write_bytes((folder / name).read_bytes())
    for names, message in [
        (["../outside.arrow"], "which is not in the folder; save it again"),
        ([str(tmp_path / "outside.arrow")], "which is not in the folder"),
        (["other.arrow"], "other.arrow: missing; get the file again"),
        ([], "holds no files of data; save it again"),
    ]:
        tables.write_state(folder, names)
        with refused(message):
            texts_of(f"arrow:{folder}")
    tables.write_state(folder, [name], _indices_data_files=[{"filename": "indices.arrow"}])
    with refused("has an order of its own (indices); call flatten_indices()"):
        texts_of(f"arrow:{folder}")
    (folder / "state.json").write_text('{"_data_files": [1]}')
    with refused(f"{folder}/state.json: damaged", "save it again with Dataset.save_to_disk"):
        texts_of(f"arrow:{folder}")


def test_truncated_files(tmp_path):
    texts = [f"a text with the number {number}" for number in range(3000)]
    whole = tables.write_parquet(tmp_path / "a.parquet", texts).read_bytes()
    (tmp_path / "a.parquet").write_bytes(whole[: len(whole) // 2])
    with refused(f"{tmp_path}/a.parquet: truncated, damaged or of another format", "get the file again"):
        texts_of(f"parquet:{tmp_path}/a.parquet")
    (tmp_path / "a.parquet").write_text("plain text")
    with refused(f"{tmp_path}/a.parquet: truncated, damaged or of another format"):
        texts_of(f"parquet:{tmp_path}/a.parquet")

    path = tables.write_arrow(tmp_path / "saved", [texts]) / "data-00000-of-00001.arrow"
    whole = path.read_bytes()
    for size in (0, 1, 100, len(whole) // 2, len(whole) - 9, len(whole) - 8, len(whole) - 1):
        path.write_bytes(whole[:size])
        with refused(f"{path}: truncated, damaged or of another format", "get the file again"):
            texts_of(f"arrow:{tmp_path}/saved")


def test_an_error_is_raised_when_it_is_reached(tmp_path):
    texts = [f"a text with the number {number}" for number in range(3000)]
    path = tables.write_arrow(tmp_path / "saved", [texts]) / "data-00000-of-00001.arrow"
    path.write_bytes(path.read_bytes()[:-1000])
    stream = read_documents(f"arrow:{tmp_path}/saved")
    assert [next(stream).text for _ in range(2000)] == texts[:2000]
    with refused(str(path)):
        next(stream)


@pytest.mark.parametrize("file_format", FORMATS)
def test_damaged_shards_of_tfds(tmp_path, file_format):
    folder = tables.write_tfds(
        tmp_path / "tiny", {"train": [f"text {number}" * 20 for number in range(100)]}, file_format
    )
    last = sorted(folder.glob(f"tiny-train.{file_format}*"))[-1]
    whole = last.read_bytes()
    for damaged in (whole[: len(whole) // 2 - 1], whole[:2000] + b"\xff" + whole[2001:], b""):
        last.write_bytes(damaged)
        with refused(str(folder)):
            texts_of(f"tfds:{folder}")
    last.unlink()
    with refused(str(folder)):
        texts_of(f"tfds:{folder}")


def test_a_dataset_that_has_fewer_records_than_it_says(tmp_path):
    folder = tables.write_tfds(tmp_path / "tiny", {"train": TEXTS}, "tfrecord", shards=1)
    path = folder / "tiny-train.tfrecord-00000-of-00001"
    content = path.read_bytes()
    path.write_bytes(content[: 12 + int.from_bytes(content[:8], "little") + 4])
    with refused(f"{path}: 1 records instead of 4; copy the file again"):
        texts_of(f"tfds:{folder}")


def test_the_libraries_are_imported_when_they_are_needed():
    code = (
        "import sys; import bert_jax.data.sources.documents\n"
        "print({'pyarrow', 'tensorflow_datasets', 'mwparserfromhell'} & set(sys.modules))"
    )
    assert running.run([sys.executable, "-c", code]).stdout.strip() == "set()"


def test_the_forms_are_those_of_the_kinds():
    assert [form.partition(":")[0] for form in FORMS.removeprefix("one of ").split(", ")] == list(KINDS)


READ = """
import sys
from bert_jax.data.sources.documents import read_documents
print(sum(len(document.text) for document in read_documents(sys.argv[1])))
"""


def test_memory_does_not_grow_with_the_files(tmp_path):
    """Also with one row group for all rows."""
    texts = [f"{number} " * 1000 for number in range(1000)]  # 4 MB
    for make in (
        lambda path, times: (
            f"parquet:{tables.write_parquet(path, texts * times, compression='none', use_dictionary=False)}"
        ),
        lambda path, times: f"arrow:{tables.write_arrow(path, [texts * times])}",
        lambda path, times: f"tfds:{tables.write_tfds(path, {'train': texts * times}, 'tfrecord')}",
        lambda path, times: f"tfds:{tables.write_tfds(path, {'train': texts * times}, 'array_record')}",
    ):
        peaks = []
        for times in (3, 12):
            spec = make(tmp_path / f"{len(list(tmp_path.iterdir()))}", times)
            ended = limited(python(READ, spec), megabytes=4000, seconds=60)  # array_record starts many threads
            assert ended.code == 0 and int(ended.stdout) == times * sum(map(len, texts)), ended
            peaks.append(ended.megabytes)
        assert peaks[1] < peaks[0] + 25, f"{spec}: {peaks} MB, for 12 and 47 MB of text"


@pytest.mark.parametrize("kind", ["parquet", "arrow", "tfrecord"])
def test_damaged_files(tmp_path_factory, kind):
    folder, texts = tmp_path_factory.mktemp("damaged"), [f"a text with the number {number}" for number in range(40)]
    if kind == "parquet":
        path = tables.write_parquet(folder / "a.parquet", texts, row_group_size=15)
        spec = f"parquet:{path}"
    elif kind == "arrow":
        spec = f"arrow:{tables.write_arrow(folder / 'saved', [texts], rows=15)}"
        path = folder / "saved" / "data-00000-of-00001.arrow"
    else:
        spec = f"tfds:{tables.write_tfds(folder / 'tiny', {'train': texts}, kind, shards=1)}"
        path = folder / "tiny" / "tiny-train.tfrecord-00000-of-00001"

    @settings(max_examples=100, deadline=None)
    @given(damaged_bytes(path.read_bytes()))
    def check(content):
        path.write_bytes(content)
        read = accepted_or_refused(lambda: texts_of(spec))
        assert read is None or len(read) == 40
        assert read is None or kind != "tfrecord" or read == texts, "TFRecord has checksums"

    check()
