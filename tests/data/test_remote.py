"""Files at URLs: read as local ones are, in ranges, through failures; mistakes are one line."""

import random
import shutil

import numpy as np
import pytest

from bert_jax.data import remote
from bert_jax.data.remote import Url, is_url
from bert_jax.errors import UserError
from tests.data.urls import requests_of, upload

CONTENT = np.random.default_rng(0).bytes(20_000_000)


def test_what_is_a_url():
    assert is_url("s3://bucket/x") and is_url("hf://datasets/a/b") and is_url("memory://x")
    assert not any(map(is_url, ("", "corpora/mine", "/a/b", "C:/corpus", "text:x.txt", "0.3:s3://bucket/x")))


def test_any_place_of_a_file(memory, tmp_path):
    (tmp_path / "file").write_bytes(CONTENT[:300_000])
    url = Url(upload(tmp_path, memory)) / "file"
    draw = random.Random(0)
    with (tmp_path / "file").open("rb") as local, url.open() as file:
        for _ in range(300):
            whence = draw.choice([0, 1, 2])
            place = draw.randrange(300_000) - (300_000 if whence == 2 else 150_000 if whence == 1 else 0)
            place = max(place, -local.tell()) if whence == 1 else place
            assert file.seek(place, whence) == local.seek(place, whence)
            size = draw.choice([1, 10, 70_000, 400_000])
            assert file.read(size) == local.read(size)
            assert file.tell() == local.tell()


def test_a_file_is_read_in_few_requests_and_a_part_of_it_in_few_bytes(memory, tmp_path):
    (tmp_path / "file").write_bytes(CONTENT)
    url = Url(upload(tmp_path, memory)) / "file"
    with requests_of(memory) as noted, url.open() as file:
        assert b"".join(iter(lambda: file.read(1000), b"")) == CONTENT
    assert len(noted) < 12 and max(stop - start for _, start, stop in noted) <= 1 << 23
    with requests_of(memory) as noted, url.open() as file:
        file.seek(-1000, 2)
        assert file.read(1000) == CONTENT[-1000:]
    assert sum(stop - start for _, start, stop in noted) < 100_000


def test_reading_goes_on_where_the_network_failed(memory, tmp_path, caplog):
    (tmp_path / "file").write_bytes(CONTENT)
    url = Url(upload(tmp_path, memory)) / "file"
    with requests_of(memory, fail=lambda number: number % 4 > 0) as noted, url.open() as file:
        assert file.read() == CONTENT
    read = [part for number, part in enumerate(noted) if number % 4 == 0]
    assert sum(stop - start for _, start, stop in read) == len(CONTENT), "nothing is read twice"
    assert f"{url}: Connection reset by peer; trying again in 0 s" in caplog.messages


def test_a_network_that_stays_away_is_one_line(memory, tmp_path):
    (tmp_path / "file").write_bytes(CONTENT)
    url = Url(upload(tmp_path, memory)) / "file"
    message = f"^{url}: Connection reset by peer, 4 times; check the network"
    with (
        requests_of(memory, fail=lambda number: number > 2) as noted,
        url.open() as file,
        pytest.raises(UserError, match=message) as error,
    ):
        file.read()
    assert "\n" not in str(error.value) and len(noted) == 3 + 4


def test_a_file_that_gets_shorter(memory, tmp_path, monkeypatch):
    (tmp_path / "file").write_bytes(CONTENT[:200_000])
    url = Url(upload(tmp_path, memory)) / "file"
    monkeypatch.setattr(remote, "PAUSES", ())
    with url.open() as file:
        assert file.read(10) == CONTENT[:10]
        (tmp_path / "file").write_bytes(CONTENT[:100_000])
        upload(tmp_path, memory)
        with pytest.raises(UserError, match="bytes instead of"):
            file.read()


@pytest.fixture(params=["memory", "s3"])
def service(request) -> str:
    return request.getfixturevalue(request.param)


def test_patterns_match_what_they_match_on_a_disk(service, tmp_path):
    from bert_jax.data.sources.files import find_files

    for name in ("b.txt", "a.txt", "a-b.txt", "a/x.txt", "a/b/x.txt", "c.md", "é [1].txt"):
        path = tmp_path / "names" / name
        path.parent.mkdir(exist_ok=True, parents=True)
        path.write_text(name)
    url = upload(tmp_path / "names", f"{service}/names")
    for pattern in ("*.txt", "**/*.txt", "a*", "a/**/*.txt", "[ab].txt", "a.txt", "a/b/x.txt", "?/x.txt"):
        local, there = (
            [(file.name, file.size) for file in find_files(f"{base}/{pattern}", lambda share: None)]
            for base in (tmp_path / "names", url)
        )
        assert local == there and local, pattern
    shutil.rmtree(tmp_path / "names")


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("s3://bucket/tests/none.txt", "^s3://bucket/tests/none.txt: missing"),
        ("s3://no-such-bucket/x.txt", r"^s3://no-such-bucket/x.txt: missing \(The specified bucket does not exist\)"),
        ("s3://not!a!bucket/x", "^s3://not!a!bucket/x: cannot be read .*Invalid bucket name"),
        ("abc://bucket/x", "^abc://bucket/x: Protocol not known: abc; use s3://, gs://, hf:// or another"),
    ],
)
def test_mistakes_are_one_line(s3, url, message):
    with pytest.raises(UserError, match=message):
        Url(url).read_all()


def test_no_credentials(s3, fsspec, monkeypatch, tmp_path):
    s3fs = fsspec.get_filesystem_class("s3")
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    s3fs.clear_instance_cache()
    try:
        with pytest.raises(UserError, match=f"^{s3}/x: no access .*credentials.*; set the credentials .* AWS_PROFILE"):
            Url(f"{s3}/x").read_all()
    finally:
        s3fs.clear_instance_cache()


def test_a_package_that_is_missing(monkeypatch, fsspec):
    def missing(name):
        raise ImportError("Install s3fs to access S3")

    monkeypatch.setattr(fsspec.core, "get_filesystem_class", missing)
    with pytest.raises(UserError, match=r"not installed \(Install s3fs.*\); pip install -r requirements-cloud.txt"):
        Url("s3://bucket/x").read_all()
