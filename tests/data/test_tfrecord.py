"""TFRecord files: what is written is read, TensorFlow reads and writes the same, and damage is one line."""

import gzip
import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tensorboard.compat.tensorflow_stub import pywrap_tensorflow

from bert_jax.data import tfrecord
from bert_jax.data.tfrecord import LARGEST_RECORD, RecordFile, crc32c, write_record
from bert_jax.errors import UserError
from tests.hostile.limits import accepted_or_refused, damaged_bytes, refused

RECORDS = [b"", b"a", b"bc" * 700, bytes(range(256)) * 9]


def write_records(path, records):
    with path.open("wb") as file:
        for record in records:
            write_record(file, record)
    return path


def read_records(path):
    file = RecordFile(path)
    return [file.read(number) for number in range(len(file))]


@pytest.fixture
def path(tmp_path):
    return write_records(tmp_path / "some.tfrecord", RECORDS)


# ----------------------------------------------------------------------------------------------------------------------
# Checksums
# ----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"", 0),
        (b"123456789", 0xE3069283),  # the check value of CRC-32C
        (bytes(32), 0x8A9136AA),  # this and the next two: RFC 3720, appendix B.4
        (b"\xff" * 32, 0x62A8AB43),
        (bytes(range(32)), 0x46DD794E),
    ],
)
def test_known_checksums(data, expected):
    assert crc32c(np.frombuffer(data, np.uint8)[None]).tolist() == [expected]


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 40) | st.integers(1010, 1030) | st.integers(2030, 2060), st.integers(1, 3), st.integers(0, 99))
def test_checksums_of_all_sizes(width, num_rows, seed):
    rows = np.random.default_rng(seed).integers(0, 256, (num_rows, width), np.uint8)
    assert crc32c(rows).tolist() == [pywrap_tensorflow.crc32c(row.tobytes()) for row in rows]


# ----------------------------------------------------------------------------------------------------------------------
# Files
# ----------------------------------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=40)
@given(st.lists(st.binary(max_size=3000), max_size=8))
def test_round_trip(tmp_path_factory, records):
    path = write_records(tmp_path_factory.getbasetemp() / "round_trip.tfrecord", records)
    assert read_records(path) == records


def test_in_any_order_and_pickled(path):
    file = RecordFile(path)
    assert [file.read(number) for number in (3, 0, 2, 2)] == [RECORDS[number] for number in (3, 0, 2, 2)]
    assert pickle.loads(pickle.dumps(file)).read(3) == RECORDS[3]


def test_a_changed_file_is_read_anew(path):
    assert len(RecordFile(path)) == 4
    write_records(path, RECORDS[:1])
    assert read_records(path) == RECORDS[:1]


def test_an_index_of_more_headers_than_are_checked_at_a_time(tmp_path, monkeypatch):
    monkeypatch.setattr("bert_jax.data.tfrecord._HEADERS_CHECKED", 3)
    path = write_records(tmp_path / "many", [bytes([number] * number) for number in range(11)])
    assert [len(record) for record in read_records(path)] == list(range(11))
    content = bytearray(path.read_bytes())
    content[RecordFile(path)._starts[7] + 9] ^= 1
    path.write_bytes(content)
    with refused("record 7: not a TFRecord, or damaged"):
        RecordFile(path)


def test_tensorflow_reads_and_writes_the_same(path, tmp_path, tensorflow):
    assert list(tensorflow.data.TFRecordDataset([str(path)]).as_numpy_iterator()) == RECORDS
    with tensorflow.io.TFRecordWriter(str(tmp_path / "theirs")) as writer:
        for record in RECORDS:
            writer.write(record)
    assert read_records(tmp_path / "theirs") == RECORDS
    assert (tmp_path / "theirs").read_bytes() == path.read_bytes()


# ----------------------------------------------------------------------------------------------------------------------
# Damage
# ----------------------------------------------------------------------------------------------------------------------


def test_every_flipped_bit_is_noticed(tmp_path):
    path = write_records(tmp_path / "x", [b"first", b"second"])
    content = path.read_bytes()
    for place in range(len(content)):
        path.write_bytes(content[:place] + bytes([content[place] ^ 1 << place % 8]) + content[place + 1 :])
        with refused(f"{path}: record {int(place >= 21)}: "):
            read_records(path)


def test_every_truncation_is_noticed(tmp_path):
    path = write_records(tmp_path / "x", [b"first", b"second"])
    content = path.read_bytes()
    for size in range(len(content)):
        path.write_bytes(content[:size])
        if size in (0, 21):  # a border between records
            assert len(read_records(path)) == (size == 21)
        else:
            with refused(f"{path}: record {int(size > 21)}: truncated; copy the file again or write it again"):
                read_records(path)


def test_random_damage(path, tmp_path):
    content = path.read_bytes()

    @settings(max_examples=100, deadline=None)
    @given(damaged_bytes(content))
    def check(damaged):
        (tmp_path / "damaged").write_bytes(damaged)
        records = accepted_or_refused(lambda: read_records(tmp_path / "damaged"))
        assert records is None or records == RECORDS[: len(records)]

    check()


def test_files_that_are_no_record_files(path, tmp_path):
    compressed = tmp_path / "x.gz"
    compressed.write_bytes(gzip.compress(path.read_bytes()))
    with refused(f"{compressed}: compressed, ", "unpack it with gunzip"):
        RecordFile(compressed)
    (tmp_path / "text").write_text("input_ids input_mask segment_ids" * 10)
    with refused("text: record 0: not a TFRecord, or damaged"):
        RecordFile(tmp_path / "text")
    (tmp_path / "zeros").write_bytes(bytes(10_000))
    with refused("zeros: record 0: not a TFRecord, or damaged"):
        RecordFile(tmp_path / "zeros")
    with refused("nowhere: missing"):
        RecordFile(tmp_path / "nowhere")
    with refused("a folder"):
        RecordFile(tmp_path)


@pytest.mark.parametrize("magic", [b"\x1f\x8b", b"\x1f\x8b\x08"])
def test_a_length_that_begins_like_a_gzip_file(tmp_path, magic):
    record = bytes(int.from_bytes(magic, "little"))
    assert read_records(write_records(tmp_path / "x", [record, b"next"])) == [record, b"next"]


def test_a_record_that_is_too_large(tmp_path):
    assert read_records(write_records(tmp_path / "x", [bytes(LARGEST_RECORD)])) == [bytes(LARGEST_RECORD)]
    with refused(f"record 1: {LARGEST_RECORD + 1:,} bytes, more than {LARGEST_RECORD:,}"):
        RecordFile(write_records(tmp_path / "x", [b"", bytes(LARGEST_RECORD + 1)]))


def test_a_file_that_gets_shorter(path):
    file = RecordFile(path)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(UserError, match=r"some.tfrecord: record 3: damaged; copy the file again or write it again$"):
        file.read(3)


# ----------------------------------------------------------------------------------------------------------------------
# One record after the other
# ----------------------------------------------------------------------------------------------------------------------


def records_of(path, largest=LARGEST_RECORD):
    with path.open("rb") as file:
        return list(tfrecord.read_records(file, path, largest))


def test_records_one_after_the_other(path, tmp_path):
    assert records_of(path) == RECORDS and records_of(write_records(tmp_path / "empty", [])) == []
    assert records_of(path, 9 * 256) == RECORDS
    with refused(f"{path}: record 3: 2,304 bytes, more than 2,303; copy the file again"):
        records_of(path, 9 * 256 - 1)


def test_damage_is_found_when_it_is_reached(path):
    whole = path.read_bytes()
    second = len(RECORDS[0]) + 16
    for content, message in [
        (whole[: second + 5], "record 1: truncated"),
        (whole[:-1], "record 3: truncated"),
        (whole[:second] + b"\xff" + whole[second + 1 :], "record 1: not a TFRecord, or damaged"),
        (whole[:-1] + bytes([whole[-1] ^ 1]), "record 3: damaged"),
    ]:
        path.write_bytes(content)
        with refused(f"{path}: {message}; copy the file again"):
            records_of(path)
