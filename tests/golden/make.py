"""Makes the golden cases of this folder with transformers: tiny random models of every family and head, and what they compute.

    python tests/golden/make.py

Needs requirements-parity.txt. A case is a folder FAMILY/HEAD: config.json and model.safetensors as `save_pretrained` writes
them, io.npz with the inputs, all hidden states and the outputs. The sizes are odd on purpose: nothing is a multiple of much.
"""

import shutil
from pathlib import Path

import numpy as np
import torch
import transformers

HERE = Path(__file__).resolve().parent
SHARED = {
    "vocab_size": 53,
    "num_hidden_layers": 3,
    "hidden_size": 12,
    "num_attention_heads": 3,
    "intermediate_size": 20,
}
CONFIGS = {
    "bert": {**SHARED, "max_position_embeddings": 17, "hidden_act": "gelu_new", "type_vocab_size": 2},
    "roberta": {**SHARED, "max_position_embeddings": 19, "hidden_act": "silu", "type_vocab_size": 1, "pad_token_id": 1},
    "albert": {
        **SHARED,
        "num_hidden_layers": 4,
        "num_hidden_groups": 2,
        "inner_group_num": 2,
        "embedding_size": 6,
        "max_position_embeddings": 17,
    },
    "distilbert": {
        "vocab_size": 53,
        "n_layers": 3,
        "dim": 12,
        "n_heads": 3,
        "hidden_dim": 20,
        "max_position_embeddings": 17,
        "activation": "relu",
    },
    "electra": {**SHARED, "embedding_size": 6, "max_position_embeddings": 17},
    "modernbert": {
        **SHARED,
        "num_hidden_layers": 4,
        "local_attention": 4,
        "global_attn_every_n_layers": 2,
        "max_position_embeddings": 17,
        "classifier_pooling": "mean",
        "cls_token_id": 2,
        "sep_token_id": 3,
        "bos_token_id": 2,
        "eos_token_id": 3,
        "pad_token_id": 0,
    },
}
HEADS = {
    "masked_lm": "AutoModelForMaskedLM",
    "pretraining": "AutoModelForPreTraining",
    "sequence_classification": "AutoModelForSequenceClassification",
    "token_classification": "AutoModelForTokenClassification",
    "question_answering": "AutoModelForQuestionAnswering",
    "base": "AutoModel",
}
NUM_LABELS = {"sequence_classification": 3, "token_classification": 4}
WITH_PRETRAINING = ("bert", "albert", "electra")  # elsewhere it is the same class as masked_lm


def make(family: str, head: str) -> None:
    torch.manual_seed(sum(map(ord, family + head)))
    config = transformers.AutoConfig.for_model(family, **CONFIGS[family], num_labels=NUM_LABELS.get(head, 2))
    model = getattr(transformers, HEADS[head]).from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # also of the norms and biases, which would be ones and zeros
            parameter.copy_(torch.randn_like(parameter) * 0.3 + (parameter == 1))
        model.tie_weights()
        inputs = random_inputs(config)
        outputs = model(**inputs, output_hidden_states=True)
    folder = HERE / family / head
    shutil.rmtree(folder, ignore_errors=True)
    model.save_pretrained(folder)
    for path in folder.iterdir():
        if path.name not in ("config.json", "model.safetensors"):
            path.unlink()
    arrays = {name: value.numpy() for name, value in inputs.items()}
    arrays |= {f"hidden_{number}": state.numpy() for number, state in enumerate(outputs.hidden_states)}
    arrays |= {name: value.numpy() for name, value in outputs.items() if "logits" in name}
    np.savez_compressed(folder / "io.npz", **arrays)


def random_inputs(config) -> dict[str, torch.Tensor]:
    ids = torch.randint(5, config.vocab_size, (2, 11))
    mask = torch.ones_like(ids)
    mask[1, 7:] = 0
    ids[1, 7:] = config.pad_token_id
    inputs = {"input_ids": ids, "attention_mask": mask}
    if getattr(config, "type_vocab_size", 0) > 1:
        inputs["token_type_ids"] = (torch.arange(11) > 4).long() * mask
    return inputs


if __name__ == "__main__":
    for family in CONFIGS:
        for head in HEADS:
            if head != "pretraining" or family in WITH_PRETRAINING:
                make(family, head)
    print(f"{sum(path.stat().st_size for path in HERE.rglob('*') if path.is_file()) / 1e6:.2f} MB")
