"""Which words decided about a label: the gradient of its logit, times the vectors of the tokens, summed for each word.

Integrated gradients (Sundararajan et al. 2017): the gradient is a mean over POINTS on the way from a text whose words are all
masked to the text itself, so that the scores of all words add up to the difference of the two logits. The gradient at the
text alone says little, because the embeddings are normalised after they are summed (docs/results.md, negative results).

Shapes: P points, R rows, L length, K texts in a row, T tokens of all rows, E width of the token table, C outputs.
"""

import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bert_jax.data import joining
from bert_jax.data.tokenizer.tokenizer import Tokenizer
from bert_jax.data.words import words_of
from bert_jax.model.build import Model, Params
from bert_jax.model.classifiers import positions_read, sequence_state
from bert_jax.tasks.common.packing import Item, Output, joined
from bert_jax.tasks.common.prediction import Answer, Prediction, Prepared
from bert_jax.tasks.finetuning.texts import TextTask

POINTS = 4


@dataclasses.dataclass(frozen=True)
class Explanation(Prediction):
    """Computes {'label', 'words': [[{'text', 'start', 'end', 'score'}] for each text]} for inputs of a task on texts.

    The label is the likeliest one, or that of the input's optional 'label'; None where the run predicts a number.
    """

    task: TextTask

    @property
    def tokenizer(self) -> Tokenizer:  # type: ignore[override]
        return self.task.tokenizer

    @property
    def row_length(self) -> int:
        return self.task.row_length

    def prepare(self, inputs: list[dict[str, Any]]) -> Prepared:
        texts = [tuple(values[field] for field in self.task.input_fields) for values in inputs]
        encoded = [self.tokenizer.encode_with_offsets(list(segments)) for segments in texts]
        items = [self._item(segments, values) for segments, values in zip(encoded, inputs, strict=True)]

        def postprocess(outputs: list[Output]) -> list[Answer]:
            rows = zip(texts, encoded, items, outputs, strict=True)
            return [self._answer(*row) for row in rows]

        return Prepared(items, postprocess)

    def compute(self, params: Params, batch: Any) -> dict[str, jax.Array]:
        return _scores(self.task.losses.model, self.tokenizer.mask_id, params, batch)

    def _item(self, segments: list[tuple[np.ndarray, np.ndarray]], values: dict[str, Any]) -> Item:
        space = self.row_length - self.tokenizer.num_special_tokens(len(segments))
        ids = [ids for ids, _ in segments]
        kept = joining.kept_lengths(len(ids[0]), len(ids[1]), space) if len(ids) == 2 else (space,)
        tokens = joined(self.tokenizer, *(part[:size] for part, size in zip(ids, kept, strict=True)))
        label = self.task.labels.index(values["label"]) if values.get("label") in self.task.labels else -1
        ends = [self.tokenizer.cls_id, self.tokenizer.sep_id]
        is_word = np.isin(tokens["input_ids"], ends, invert=True).astype(np.int32)
        return Item(tokens | {"is_word": is_word}, {"explained": np.int32(label)})

    def _answer(
        self, texts: tuple[str, ...], segments: list[tuple[np.ndarray, np.ndarray]], item: Item, output: Output
    ) -> Answer:
        scores, words, first = output["token_scores"], [], 1
        for text, (_, offsets) in zip(texts, segments, strict=True):
            text_words = words_of(text)
            sums = np.zeros(len(text_words))
            ends = np.array([word.end for word in text_words])
            space = item.length - first - 1
            for number, start in enumerate(offsets[:space, 0]):
                word = int(np.searchsorted(ends, start, side="right"))
                if word < len(text_words):
                    sums[word] += scores[first + number]
            words.append(
                [word._asdict() | {"score": float(score)} for word, score in zip(text_words, sums, strict=True)]
            )
            first += min(len(offsets), space) + self.tokenizer.separators_between
        labels = self.task.labels
        return {"label": labels[int(output["label"])] if labels else None, "words": words}


@partial(jax.jit, static_argnums=(0, 1))
def _scores(model: Model, mask_id: int, params: Params, batch: Any) -> dict[str, jax.Array]:
    """Returns `token_scores` [R, L] and `label` [R, K]."""
    batch = {name: array[0] for name, array in batch.items()}
    ids_RxL, starts_RxK = batch["input_ids"], batch["starts"]
    embeddings = params["encoder"]["embeddings"]
    table = embeddings["tokens"]["embedding"]
    # A table with a row for each token of the batch, so that its gradient is one for each token. The rows before are for
    # positions that count other ids than that of padding (see model/encoder.py, `position_rows`).
    offset = model.config.position_offset
    own_ids_RxL = offset + jnp.arange(ids_RxL.size).reshape(ids_RxL.shape)

    def logits_of(vectors_TxE: jax.Array) -> jax.Array:
        own_table = jnp.concatenate([table[:offset], vectors_TxE])
        own = {"embeddings": embeddings | {"tokens": {"embedding": own_table}}}
        bound = model.bind(params | {"encoder": params["encoder"] | own})
        output = bound.encoder(
            own_ids_RxL,
            token_type_ids_BxL=batch["token_type_ids"],
            segment_ids_BxL=batch["segment_ids"],
            position_ids_BxL=batch["position_ids"],
            starts_BxK=starts_RxK,
            positions_BxP=positions_read(model.config, ids_RxL.shape[1], starts_RxK),
        )
        state = sequence_state(model.config, output, batch["segment_ids"], starts_RxK)
        return bound.heads["classification"](state)

    vectors_TxE = table[ids_RxL.ravel()]
    masked_TxE = jnp.where(batch["is_word"].reshape(-1, 1) == 1, table[mask_id], vectors_TxE)
    label_RxK = jnp.where(batch["explained"] < 0, logits_of(vectors_TxE).argmax(-1), batch["explained"])

    def logit_at(point: jax.Array, vectors_TxE: jax.Array) -> jax.Array:
        logits_RxKxC = logits_of(masked_TxE + point * (vectors_TxE - masked_TxE))
        chosen_RxK = jnp.take_along_axis(logits_RxKxC, label_RxK[..., None], axis=-1)[..., 0]
        return (chosen_RxK * batch["example_weights"]).sum()

    points_P = (jnp.arange(POINTS, dtype=table.dtype) + 0.5) / POINTS
    # That of the vectors, which is the gradient at the point times `point`.
    gradients_PxTxE = (
        jax.vmap(jax.grad(logit_at, argnums=1), (0, None))(points_P, vectors_TxE) / points_P[:, None, None]
    )
    scores_T = (gradients_PxTxE.mean(0) * (vectors_TxE - masked_TxE)).sum(-1).astype(jnp.float32)
    return {"token_scores": scores_T.reshape(ids_RxL.shape), "label": label_RxK}
