"""Eight virtual CPU devices for every test, and what tests share: tiny corpora, models, the folder of real texts."""

import os

os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
os.environ["JAX_PLATFORMS"] = "cpu"

from pathlib import Path

import jax
import pytest

ROOT = Path(__file__).parent.parent
REAL_DATA = Path(os.environ.get("BERT_JAX_DATA", ROOT.parent / "shared" / "data"))

jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.fixture
def real_data() -> Path:
    """The folder of real texts and tasks; a test that asks for it is skipped where there is none."""
    if not REAL_DATA.is_dir():
        pytest.skip("no real data beside the checkout, and BERT_JAX_DATA names none")
    return REAL_DATA
