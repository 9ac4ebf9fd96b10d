"""Instances as a stream: the same batches in any order and process, the same masks in every epoch, and errors on one line."""

import json
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tensorflow_datasets.proto import tf_example_pb2

from bert_jax import run
from bert_jax.data.pretraining.instances import FEATURES, Instances, encode_instance, holds_instances
from bert_jax.data.pretraining.stream import DataConfig, evaluation_batches, held_out_stream, training_stream
from bert_jax.data.tfrecord import RecordFile, write_record
from bert_jax.objectives.base import default_options, load
from bert_jax.run_folder.folder import get_config
from tests.data.pretraining.instance_files import LENGTH, instance_folder, random_instances
from tests.hostile.limits import accepted_or_refused, refused
from tests.running import rows

NAMES = ("mlm", "nsp")


@pytest.fixture(scope="module")
def written(tokenizer, tmp_path_factory) -> tuple[Path, dict]:
    """A folder of instances, to be read or copied only, and what is in it."""
    folder = tmp_path_factory.mktemp("instances") / "folder"
    return folder, instance_folder(folder, tokenizer)


@pytest.fixture
def copied(written, tmp_path) -> Path:
    return Path(shutil.copytree(written[0], tmp_path / "copy"))


def stream_of(folder, tokenizer, names=NAMES, seed=0, held_out=False, **changes):
    config = DataConfig(**({"corpus": str(folder), "sequence_length": LENGTH, "masking": "static"} | changes))
    objectives = load(names, default_options(), tokenizer)
    return (
        held_out_stream(config, tokenizer, objectives)
        if held_out
        else training_stream(config, tokenizer, objectives, seed)
    )


def assert_equal(one: dict, other: dict) -> None:
    assert one.keys() == other.keys()
    for name in one:
        assert one[name].dtype == other[name].dtype and np.array_equal(one[name], other[name]), name


# ----------------------------------------------------------------------------------------------------------------------
# The stream
# ----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("split", ["train", "validation"])
def test_what_is_written_is_read(written, tokenizer, split):
    folder, batches = written
    instances = Instances.open(folder, split)
    expected = {name: array for name, array in batches[split].items() if name != "example_weights"}
    assert instances.size == len(expected["input_ids"]) and instances.sequence_length == LENGTH
    assert_equal(instances.rows(np.arange(instances.size), tokenizer), expected)
    order = np.random.default_rng(0).permutation(instances.size)
    assert_equal(
        pickle.loads(pickle.dumps(instances)).rows(order, tokenizer),
        {name: array[order] for name, array in expected.items()},
    )


def test_an_epoch_has_each_instance_once_and_all_epochs_the_same_masks(written, tokenizer):
    folder, batches = written
    stream = stream_of(folder, tokenizer)
    assert stream.size == 51
    epochs = [stream.batch(51 * epoch + np.arange(51)) for epoch in range(3)]
    assert_equal(
        epochs[0],
        {name: batches["train"][name][stream.order.epochs_and_indices(np.arange(51))[1]] for name in epochs[0]},
    )
    contents = [
        sorted(b"".join(array[row].tobytes() for array in batch.values()) for row in range(51)) for batch in epochs
    ]
    assert contents[0] == contents[1] == contents[2], "masks or labels change"
    assert not np.array_equal(epochs[0]["input_ids"], epochs[1]["input_ids"]), "the order does not change"
    other = stream_of(folder, tokenizer, seed=1).batch(np.arange(51))
    assert not np.array_equal(epochs[0]["input_ids"], other["input_ids"]), "the seed does not change the order"


def test_a_row_is_the_same_in_any_batch_and_process(written, tokenizer):
    stream = stream_of(written[0], tokenizer)
    whole = stream.batch(np.arange(120))
    for numbers in ([5], [119, 0, 51], range(40, 60)):
        assert_equal(stream.batch(np.array(numbers)), {name: array[list(numbers)] for name, array in whole.items()})
    again = pickle.loads(pickle.dumps(stream))  # as worker processes get it
    assert_equal(again.batch(np.arange(120)), whole)


def test_fields_are_those_of_the_objectives(written, corpus_dir, tokenizer):
    for names in (("mlm",), ("nsp",), NAMES):
        own = stream_of(written[0], tokenizer, names).batch(np.arange(4))
        usual = stream_of(corpus_dir, tokenizer, names).batch(np.arange(4))
        assert own.keys() == usual.keys()
        assert {name: (array.shape, array.dtype) for name, array in own.items()} == {
            name: (array.shape, array.dtype) for name, array in usual.items()
        }


def test_held_out_instances_are_in_order(written, tokenizer):
    folder, batches = written
    stream = stream_of(folder, tokenizer, held_out=True, masking="dynamic")
    parts = list(evaluation_batches(stream, 8, np.arange(8), 1000))
    kept = np.concatenate([batch["input_ids"][batch["example_weights"] > 0] for batch in parts])
    assert np.array_equal(kept, batches["validation"]["input_ids"])
    assert parts[-1]["mlm_weights"][:4].any() and not parts[-1]["mlm_weights"][4:].any()


def test_description_names_instances(written, tokenizer):
    stream = stream_of(written[0], tokenizer)
    _, indices = stream.order.epochs_and_indices(np.array([51, 52]))
    assert stream.describe(np.array([51, 52])) == f"epoch 1: {indices[0]}, {indices[1]}"


# ----------------------------------------------------------------------------------------------------------------------
# TensorFlow
# ----------------------------------------------------------------------------------------------------------------------


def test_files_of_tensorflow_are_read(tmp_path, tokenizer, tensorflow):
    """As create_pretraining_data.py makes them: features in its order, lists of Python numbers."""
    batch = random_instances(tokenizer, 7, seed=5)
    folder = tmp_path / "folder"
    instance_folder(folder, tokenizer)
    with tensorflow.io.TFRecordWriter(str(folder / "a.tfrecord")) as writer:
        for row in range(7):
            features = {}
            for name, (field, _, kind) in FEATURES.items():
                values = np.atleast_1d(batch[field][row]).tolist()
                features[name] = (
                    tensorflow.train.Feature(float_list=tensorflow.train.FloatList(value=values))
                    if kind == "float_list"
                    else tensorflow.train.Feature(int64_list=tensorflow.train.Int64List(value=values))
                )
            example = tensorflow.train.Example(features=tensorflow.train.Features(feature=features))
            writer.write(example.SerializeToString())
    instances = Instances.open(folder)
    assert instances.size == 7 + 21
    read = instances.rows(np.arange(7), tokenizer)
    assert_equal(read, {name: batch[name] for name in read})


def test_tensorflow_reads_our_files(written, tensorflow):
    """With the features that run_pretraining.py of the original asks for."""
    folder, batches = written
    most = batches["validation"]["mlm_positions"].shape[1]
    sizes = {"L": LENGTH, "P": most, "": 1}
    types = {"int64_list": tensorflow.int64, "float_list": tensorflow.float32}
    features = {
        name: tensorflow.io.FixedLenFeature([sizes[feature.size]], types[feature.kind])
        for name, feature in FEATURES.items()
    }
    records = tensorflow.data.TFRecordDataset([str(folder / "c-validation.tfrecord")])
    parsed = [tensorflow.io.parse_single_example(record, features) for record in records]
    assert len(parsed) == 20
    for name, (field, *_) in FEATURES.items():
        values = np.stack([example[name].numpy() for example in parsed])
        assert np.array_equal(values.reshape(batches["validation"][field].shape), batches["validation"][field]), name


# ----------------------------------------------------------------------------------------------------------------------
# Training
# ----------------------------------------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def no_measurement(monkeypatch):
    monkeypatch.setattr(run, "measured_matmul_flops", lambda *_: 1e9)


@pytest.mark.slow
def test_a_run_on_instances_resumes_exactly(tiny_config, written, tmp_path, caplog):
    """In another epoch than it began: an epoch has 51 examples, the 8 steps of 8 have 64."""
    changes = {"data.corpus": str(written[0]), "data.masking": "static", "train.num_steps": 8, "checkpoint.every": 4}
    values = tiny_config(**changes, **{"train.eval_every": 8})
    caplog.set_level("INFO")
    final = run.run_training(values, tmp_path / "whole")
    assert "51 instances of 2 files to train on" in caplog.text
    assert np.isfinite(final["loss"]) and 0 < final["nsp/accuracy"] < 1
    resumed = Path(shutil.copytree(tmp_path / "whole", tmp_path / "resumed"))
    shutil.rmtree(resumed / "checkpoints" / "8")
    lines = (resumed / "metrics.jsonl").read_text().splitlines(keepends=True)
    kept = [line for line in lines if json.loads(line).get("step", 0) <= 4]
    (resumed / "metrics.jsonl").write_text("".join(kept))
    run.run_training(get_config(str(resumed)), resumed)  # the folder alone says how to go on
    losses = [[row["loss"] for row in rows(folder) if "loss" in row] for folder in (tmp_path / "whole", resumed)]
    assert losses[0] == losses[1] and len(losses[0]) == 8
    sums = [
        json.loads((folder / "checkpoints" / "8" / "checksums" / "metadata").read_text())
        for folder in (tmp_path / "whole", resumed)
    ]
    assert sums[0] == sums[1]


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        (
            {"data.masking": "dynamic"},
            ["data.masking='dynamic': ", "are masked already; set --config.data.masking=static"],
        ),
        ({"data.sequence_length": 16}, ["data.sequence_length=16, but the instances of ", " have 32 tokens; set it"]),
        ({"objectives": ("mlm", "sop")}, ["objectives: ", "have no labels for sop, only for mlm, nsp; use a corpus"]),
    ],
)
def test_runs_that_cannot_be(tiny_config, written, tmp_path, changes, parts):
    settings = {"data.corpus": str(written[0]), "data.masking": "static"} | changes
    with refused(*parts):
        run.run_training(tiny_config(**settings), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_another_tokenizer(written, documents, tokenizer):
    other = type(tokenizer).train((document.text for document in documents), 120)
    with refused("has another tokenizer (fingerprint"):
        stream_of(written[0], other)


# ----------------------------------------------------------------------------------------------------------------------
# Folders and files that are wrong
# ----------------------------------------------------------------------------------------------------------------------


def test_what_is_a_folder_of_instances(written, corpus_dir, tmp_path):
    assert holds_instances(written[0]) and not holds_instances(corpus_dir) and not holds_instances(tmp_path)
    assert not holds_instances(tmp_path / "nowhere")


def test_folders_that_lack_something(tiny_config, copied, tmp_path):
    def start():
        values = tiny_config(**{"data.corpus": str(copied), "data.masking": "static"})
        run.run_training(values, tmp_path / "run")

    (copied / "c-validation.tfrecord").rename(copied / "hidden")
    with refused(
        f"{copied}: no instances of the split validation, which are those in TFRecord files with 'validation'"
    ):
        start()
    (copied / "hidden").rename(copied / "c-validation.tfrecord")
    shutil.move(copied / "tokenizer", tmp_path / "tokenizer")
    with refused(f"{copied}/tokenizer: missing; put the vocab.txt there that the instances were made with"):
        start()
    shutil.move(tmp_path / "tokenizer", copied / "tokenizer")
    for path in (copied / "a.tfrecord", copied / "b.tf_record-00001-of-00002"):
        path.write_bytes(b"")
    with refused("no instances of the split train, which are those in TFRecord files without 'validation'"):
        start()
    assert not (tmp_path / "run").exists()


def changed_example(batch, row: int, name: str, values: list | None, kind: str | None = None) -> bytes:
    example = tf_example_pb2.Example.FromString(encode_instance(batch, row))
    del example.features.feature[name]
    if values is not None:
        getattr(example.features.feature[name], kind or FEATURES[name].kind).value.extend(values)
    return example.SerializeToString()


def ids_with(batch, place: int, value: int) -> list[int]:
    ids = batch["input_ids"][0].tolist()
    return [*ids[:place], value, *ids[place + 1 :]]


PROBLEMS = {
    "no feature": ("segment_ids", lambda batch: None, "not an instance, because it has no segment_ids (int64_list)"),
    "another length": ("input_ids", lambda batch: [2] * 16, "16 values of input_ids, not 32 as in the first record"),
    "more predictions": (
        "masked_lm_ids",
        lambda batch: [1] * 6,
        "6 values of masked_lm_ids, not 5 as in the first record",
    ),
    "a large token": ("input_ids", lambda batch: ids_with(batch, 3, 128), "a token outside the vocabulary of"),
    "a huge token": ("input_ids", lambda batch: ids_with(batch, 3, 1 << 40), "a token outside the vocabulary of"),
    "a negative token": ("input_ids", lambda batch: ids_with(batch, 3, -1), "a token outside the vocabulary of"),
    "a large label": ("masked_lm_ids", lambda batch: [999] * 5, "a token outside the vocabulary of"),
    "no [CLS]": (
        "input_ids",
        lambda batch: ids_with(batch, 0, 9),
        "begins with another token than [CLS] (2): made with",
    ),
    "a far position": ("masked_lm_positions", lambda batch: [1, 32, 0, 0, 0], "a position outside 0 to 31"),
    "a third segment": ("segment_ids", lambda batch: [2] * 32, "a value of segment_ids that is not 0 or 1"),
    "a third class": ("next_sentence_labels", lambda batch: [2], "a value of next_sentence_labels that is not 0 or 1"),
    "no number": (
        "masked_lm_weights",
        lambda batch: [float("nan")] * 5,
        "a value of masked_lm_weights that is not 0 or 1",
    ),
    "no weights": ("masked_lm_weights", lambda batch: [0.0] * 5, "nothing to predict"),
    "padding first": ("input_mask", lambda batch: [0] + [1] * 31, "no tokens, or tokens after padding"),
    "gaps": ("input_mask", lambda batch: [1, 0] * 16, "no tokens, or tokens after padding"),
}


@pytest.mark.parametrize("problem", PROBLEMS)
def test_records_that_hold_something_else(copied, tokenizer, problem):
    name, values, message = PROBLEMS[problem]
    batch = random_instances(tokenizer, 2, seed=9)
    with (copied / "b.tf_record-00001-of-00002").open("ab") as file:
        write_record(file, encode_instance(batch, 1))
        write_record(file, changed_example(batch, 0, name, values(batch)))
    stream = stream_of(copied, tokenizer)
    with refused(f"{copied}/b.tf_record-00001-of-00002: record 22: {message}", "; write the file again, or remove it"):
        stream.batch(np.arange(stream.size))


def test_first_records_that_hold_something_else(copied, tokenizer):
    batch = random_instances(tokenizer, 1, seed=9)
    first = copied / "a.tfrecord"
    for content, message in (
        (b"\xff" * 50, "record 0: not a tf.train.Example"),
        (b"", "record 0: not an instance, because it has no input_ids (int64_list)"),
        (changed_example(batch, 0, "input_ids", []), "record 0: no tokens, or nothing to predict"),
        (changed_example(batch, 0, "input_ids", [1.0], "float_list"), "it has no input_ids (int64_list)"),
        (
            changed_example(batch, 0, "input_ids", ids_with(batch, 0, 9)),
            "record 0: begins with another token than [CLS]",
        ),
    ):
        with first.open("wb") as file:
            write_record(file, content)
        with refused(str(first), message):
            stream_of(copied, tokenizer)


def test_a_flipped_byte_and_a_truncated_file(copied, tokenizer):
    path = copied / "a.tfrecord"
    content = bytearray(path.read_bytes())
    content[RecordFile(path)._starts[11] + 100] ^= 4
    path.write_bytes(content)
    stream = stream_of(copied, tokenizer)
    with refused(f"{path}: record 11: damaged; copy the file again or write it again"):
        stream.batch(np.arange(stream.size))
    path.write_bytes(content[:-7])
    with refused(f"{path}: record 29: truncated; copy the file again or write it again"):
        stream_of(copied, tokenizer)


def test_mutated_examples(copied, tokenizer):
    """Valid checksums around anything."""
    batch = random_instances(tokenizer, 1, seed=9)
    valid = encode_instance(batch, 0)

    @settings(max_examples=150, deadline=None)
    @given(st.lists(st.tuples(st.integers(0, len(valid) - 1), st.integers(0, 255)), min_size=1, max_size=3))
    def check(changes):
        content = bytearray(valid)
        for place, value in changes:
            content[place] = value
        with (copied / "a.tfrecord").open("wb") as file:
            write_record(file, bytes(content))
        read = accepted_or_refused(lambda: stream_of(copied, tokenizer).batch(np.array([0])))
        assert read is None or read["input_ids"].max() < tokenizer.vocab_size

    check()
