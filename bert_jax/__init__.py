"""bert_jax: pretrain BERT-family encoders on TPUs and GPUs, exact on resume, and fine-tune them."""
