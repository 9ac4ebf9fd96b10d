"""Segments of token ids joined to what an encoder reads: [CLS] a [SEP] or [CLS] a [SEP] b [SEP], padded.

Shapes: n rows, L length.
"""

from typing import Any

import numpy as np

from bert_jax.data.tokenizer.tokenizer import Tokenizer

Example = dict[str, Any]  # arrays, and scalars
HostBatch = dict[str, np.ndarray]  # arrays [n, ...]


def kept_lengths(length_a, length_b, max_tokens):
    """Returns the tokens to keep of two segments: the longer one loses tokens, the second where equal, until both fit.

    Of numbers or of arrays [n]. Source: google-research/bert create_pretraining_data.py, truncate_seq_pair.
    """
    kept_b = np.minimum(length_b, np.maximum(max_tokens - length_a, max_tokens // 2))
    return np.minimum(length_a, max_tokens - kept_b), kept_b


def join(tokenizer: Tokenizer, length: int, *segments: np.ndarray) -> Example:
    """Joins one or two segments of one text as `join_rows`: arrays [L], and the scalar example_weights."""
    rows = join_rows(tokenizer, length, *((segment, np.array([len(segment)])) for segment in segments))
    return {name: array[0] for name, array in rows.items()}


def number_segments(is_begin: np.ndarray, attention_mask: np.ndarray) -> HostBatch:
    """Returns the layout of rows of several examples, which do not see each other.

    Args:
      is_begin: bool [n, L], true at the first token of each example.
      attention_mask: int32 [n, L], 0 for padding, which is on the right.

    Returns:
      segment_ids, the number of each token's example from 1, and 0 for padding; and position_ids, its position there. Both are
      int32 [n, L].
    """
    places = np.arange(is_begin.shape[1], dtype=np.int32)
    starts = np.maximum.accumulate(np.where(is_begin, places, 0), axis=1)
    segments = np.cumsum(is_begin, axis=1, dtype=np.int32)
    return {"segment_ids": segments * attention_mask, "position_ids": (places - starts) * attention_mask}


def join_rows(tokenizer: Tokenizer, length: int, *segments: tuple[np.ndarray, np.ndarray]) -> HostBatch:
    """Joins the segments of rows, with the tokenizer's separators.

    BERT's rows are [CLS] a [SEP] b [SEP], and RoBERTa's <s> a </s></s> b </s>. An empty second segment keeps its separator. The
    separators between two segments are of the first one's token type.

    Args:
      tokenizer: of the ids.
      length: L.
      segments: one or two: the tokens of all rows one after the other, and the number of each row's [n].

    Returns:
      input_ids, attention_mask and token_type_ids int32 [n, L], and example_weights float32 [n], all 1.
    """
    shape = len(segments[0][1]), length
    positions = np.arange(length, dtype=np.int32)
    input_ids, token_type_ids = np.full(shape, tokenizer.pad_id, np.int32), np.zeros(shape, np.int32)
    input_ids[:, 0] = tokenizer.cls_id
    end = np.ones(shape[0], np.int32)
    for number, (tokens, lengths) in enumerate(segments):
        separators = tokenizer.separators_between if number < len(segments) - 1 else 1
        start, stop = end, end + lengths.astype(np.int32)
        end = stop + separators
        is_after, is_within = positions >= stop[:, None], positions < end[:, None]
        is_begun = positions >= start[:, None]
        input_ids[is_begun & ~is_after] = tokens
        input_ids[is_after & is_within] = tokenizer.sep_id
        if number:
            token_type_ids[is_begun & is_within] = number
    return {
        "input_ids": input_ids,
        "attention_mask": (positions < end[:, None]).astype(np.int32),
        "token_type_ids": token_type_ids,
        "example_weights": np.ones(shape[0], np.float32),
    }
