"""Checkpoints whose bytes are others, or fewer: refused, or what is loaded is what was saved."""

import os
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import bert_jax
from tests.hostile import limits


@pytest.fixture(scope="module")
def sound(tiny_bert):
    return bert_jax.load(tiny_bert).params


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
@pytest.mark.slow
def test_damaged_files(tiny_bert, sound, tmp_path_factory, data):
    place = tmp_path_factory.getbasetemp() / "damaged"
    shutil.rmtree(place, ignore_errors=True)
    shutil.copytree(tiny_bert, place)
    files = sorted(path for path in (place / "checkpoints").rglob("*") if path.is_file() and path.stat().st_size)
    path = data.draw(st.sampled_from(files))
    path.write_bytes(data.draw(limits.damaged_bytes(path.read_bytes())))
    if (loaded := limits.accepted_or_refused(lambda: bert_jax.load(place))) is not None:
        jax.tree.map(np.testing.assert_array_equal, loaded.params, sound)


def test_every_file_missing(tiny_bert, sound, tmp_path):
    names = [path.relative_to(tiny_bert) for path in (tiny_bert / "checkpoints").rglob("*") if path.is_file()]
    for number, name in enumerate(sorted(names)):
        place = shutil.copytree(tiny_bert, tmp_path / str(number))
        (place / name).unlink()
        if (loaded := limits.accepted_or_refused(lambda place=place: bert_jax.load(place))) is not None:
            jax.tree.map(np.testing.assert_array_equal, loaded.params, sound)


@pytest.mark.slow
def test_pipes_and_devices(tiny_bert, tmp_path):
    """In a process of its own, as a hang would be one in C++."""
    code = "import sys, bert_jax.cli.main; path = sys.argv.pop(); bert_jax.cli.main.run_command(lambda: bert_jax.load(path))"
    names = ["_CHECKPOINT_METADATA", "state/_METADATA", "state/manifest.ocdbt", "checksums/metadata"]
    for number, name in enumerate(names):
        place = Path(shutil.copytree(tiny_bert, tmp_path / str(number)))
        (place / "checkpoints" / "0" / name).unlink()
        os.mkfifo(place / "checkpoints" / "0" / name)
        limits.assert_refused(
            limits.limited(limits.python(code, place), megabytes=3000, seconds=20), "not a regular file"
        )
