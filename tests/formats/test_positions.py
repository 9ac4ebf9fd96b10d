"""Positions as the originals count them: what is padded on the left, and padding within a text.

The numbers are what transformers computes with the golden models (three hidden states of the first token and of the last).
"""

import json
import logging
import shutil
from pathlib import Path

import numpy as np
import pytest

import bert_jax
from bert_jax.conversion import convert as conversion
from bert_jax.data.tokenizer.tokenizer import Tokenizer
from bert_jax.model.encoder import position_rows
from bert_jax.run_folder import folder as run_folder

GOLDEN = Path(__file__).parents[1] / "golden"
TEXT = [2, 7, 9, 5, 30, 11, 3]
LEFT_PADDED = {
    "bert": ([-0.630299, 3.161757, -0.034389], [-0.593798, 3.422615, -0.498333]),
    "roberta": ([-0.208762, -1.177872, 0.485971], [-0.074812, -1.449748, 0.391015]),
    "albert": ([-1.768027, -0.252497, -0.268813], [-1.701872, -0.179749, -0.430340]),
    "distilbert": ([-0.567623, 1.182174, 0.284504], [-0.093865, -0.740848, -0.784663]),
    "electra": ([-0.052468, 0.187161, -0.395756], [-0.030127, 0.373263, -0.515643]),
    "modernbert": ([0.890759, 1.544322, -0.259533], [-0.482809, 3.719478, 0.473637]),
}


def hidden(folder: Path, ids: list[int], mask: list[int] | None = None) -> np.ndarray:
    mask = mask or [1] * len(ids)
    return np.asarray(bert_jax.load(folder)(np.array([ids]), np.array([mask])).hidden_states[-1])[0]


@pytest.mark.parametrize("family", LEFT_PADDED)
def test_padding_on_the_left(family):
    """RoBERTa counts tokens; in the other families padding has positions, too."""
    folder = GOLDEN / family / "base"
    padding = json.loads((folder / "config.json").read_text())["pad_token_id"]
    ids, mask = [padding] * 3 + TEXT, [0] * 3 + [1] * len(TEXT)
    ours = hidden(folder, ids, mask)
    np.testing.assert_allclose(ours[[3, 9], :3], LEFT_PADDED[family], atol=2e-5)
    right_padded = hidden(folder, TEXT + [padding] * 3, mask[::-1])
    is_equal = np.abs(ours[3:] - right_padded[:7]).max() < 2e-5
    assert is_equal == (family in ("roberta", "modernbert")), "ModernBERT sees distances alone"


def test_padding_within_a_text():
    """The token has the row of the padding, and those after it are counted on from those before."""
    ids = [2, 7, 1, 9, 5, 1, 30, 11, 3, 1]
    ours = hidden(GOLDEN / "roberta/base", ids)
    expected = [[-0.314315, -1.361063, 0.385202], [0.139113, -1.560636, 0.437526]]
    np.testing.assert_allclose(ours[[2, 8], :3], expected, atol=2e-5)


@pytest.mark.parametrize("family", LEFT_PADDED)
def test_positions_are_those_of_transformers(family, torch, transformers):
    folder = GOLDEN / family / "base"
    model = transformers.AutoModel.from_pretrained(folder).eval()
    padding = model.config.pad_token_id
    ids, mask = [padding] * 3 + [*TEXT[:3], padding, *TEXT[3:]], [0] * 3 + [1] * 8
    with torch.no_grad():
        theirs = model(torch.tensor([ids]), attention_mask=torch.tensor([mask])).last_hidden_state.numpy()[0]
    np.testing.assert_allclose(hidden(folder, ids, mask)[3:], theirs[3:], atol=2e-5)


def test_rows_of_the_position_table():
    ids = np.array([[1, 1, 5, 6, 7], [5, 1, 6, 7, 1]])
    assert position_rows(2, ids, None).tolist() == [[1, 1, 2, 3, 4], [2, 1, 3, 4, 1]]
    assert position_rows(0, ids, None) is None
    position_ids = np.array([[0, 1, 2, 0, 1], [0, 1, 0, 1, 2]])  # two examples in each row
    assert position_rows(0, ids, position_ids).tolist() == position_ids.tolist()
    assert position_rows(2, ids, position_ids).tolist() == [[1, 1, 2, 2, 3], [2, 1, 2, 3, 1]]


def test_a_config_that_pads_with_another_token_than_the_tokenizer(tmp_path, caplog):
    """Both ways it is the config's that counts, as in the original; importing it says so."""
    source = tmp_path / "model"
    shutil.copytree(GOLDEN / "roberta/masked_lm", source)
    tokenizer = Tokenizer.train(["the old river and a quiet ship"] * 3, 48)  # pads with 0
    tokenizer.save(source)
    with caplog.at_level(logging.WARNING):
        conversion.import_run(source, tmp_path / "run")
    (warning,) = [record.getMessage() for record in caplog.records if "positions" in record.getMessage()]
    assert "do not count the token 1 ([UNK])" in warning and "pads with 0 ([PAD])" in warning
    conversion.export_run(tmp_path / "run", tmp_path / "exported")
    assert json.loads((tmp_path / "exported" / "config.json").read_text())["pad_token_id"] == 1

    ids = [2, 7, 1, 9, 5, 0, 30, 11, 3, 1]
    before = hidden(source, ids)
    for folder in (tmp_path / "run", tmp_path / "exported"):
        np.testing.assert_allclose(hidden(folder, ids), before, atol=2e-5)
    assert np.abs(before[2:] - hidden(source, [*ids[:2], 8, *ids[3:]])[2:]).max() > 0.1
    assert run_folder.read_config(tmp_path / "run")["model"]["position_offset"] == 2
