"""`EncoderConfig`: every way in which the encoders of the BERT family differ, as values. Nothing below asks for a family."""

import dataclasses

ACTIVATIONS = ("gelu", "gelu_tanh", "relu", "silu", "tanh")
CHOICES = {
    "positions": ("learned", "rope"),
    "norm": ("layernorm", "rmsnorm"),
    "norm_position": ("post", "pre"),
    "activation": ACTIVATIONS,
    "head_activation": ("", *ACTIVATIONS),
    "classifier": ("pooled", "tanh", "relu", "gelu", "transform"),
    "classifier_pooling": ("first", "mean"),
    "exported_as": ("", "camembert", "xlm-roberta", "data2vec-text"),
    "attention_direction": ("both", "left", "right"),
    "attention": ("auto", "plain", "chunked", "cudnn", "splash"),
    "remat": ("none", "dots", "mlp", "full"),
    "dtype": ("float32", "bfloat16", "float16"),
    "param_dtype": ("float32", "bfloat16"),
}
# The highest sizes are far beyond what was ever trained; programs for larger ones could not even be written down.
_SIZE, _OPTIONAL_SIZE, _SHARE = (1, 1 << 24), (0, 1 << 24), (0.0, 0.99)
RANGES: dict[str, tuple[float, float]] = {
    **dict.fromkeys(("vocab_size", "hidden_size", "intermediate_size"), _SIZE),
    **dict.fromkeys(("num_layers", "num_heads", "layers_per_group", "global_attention_every"), (1, 1024)),
    **dict.fromkeys(("num_layer_groups", "scan_unroll"), (0, 1024)),
    **dict.fromkeys(("embedding_size", "num_token_types", "position_offset", "local_window"), _OPTIONAL_SIZE),
    "max_positions": (1, 1 << 20),
    **dict.fromkeys(("dropout", "attention_dropout"), _SHARE),
    "norm_epsilon": (1e-30, 1.0),
    "initializer_range": (0.0, 100.0),
    **dict.fromkeys(("rope_theta", "local_rope_theta"), (1.0, 1e12)),
}


@dataclasses.dataclass(frozen=True)
class EncoderConfig:
    """An encoder. The defaults are BERT-base, uncased (Devlin et al. 2019, section 3; google-research/bert modeling.py).

    Raises:
      ValueError: a value outside its choices, or sizes that do not fit together.
    """

    vocab_size: int = 30522  # rows of the token table; may exceed the tokenizer's, e.g. rounded up for the hardware
    hidden_size: int = 768  # width of the hidden states
    num_layers: int = 12  # transformer layers
    num_heads: int = 12  # attention heads of a layer
    intermediate_size: int = 3072  # width of the feed-forward layers
    max_positions: int = 512  # longest sequence, in tokens

    # Embeddings
    embedding_size: int = 0  # of the tables, then projected to hidden_size (ALBERT: 128); 0: no projection
    num_token_types: int = 2  # 0: no token types (DistilBERT, modern encoders)
    positions: str = "learned"  # 'learned': a table; 'rope': rotary positions in attention
    # Row of the position table for the first token (RoBERTa: 2). The id before it is that of padding, which is not counted.
    position_offset: int = 0
    rope_theta: float = 160_000.0  # rotary base of layers that attend globally (ModernBERT)
    local_rope_theta: float = 10_000.0  # and of layers that attend within a window

    # Layers
    norm: str = "layernorm"  # 'rmsnorm' neither centres nor adds a bias
    norm_position: str = "post"  # 'pre' adds a norm after the last layer
    norm_epsilon: float = 1e-12  # added to the variance
    activation: str = "gelu"  # exact (erf) GELU; the original BERT code uses the tanh approximation
    gated_mlp: bool = False  # GeGLU and its kin: activation(x W) * (x V)
    use_bias: bool = True  # of every dense layer and norm
    num_layer_groups: int = 0  # sets of layer weights (ALBERT: 1); 0: one for each layer
    layers_per_group: int = 1  # layers with weights of their own inside one group (ALBERT's inner_group_num)
    global_attention_every: int = 1  # layer i attends to all positions where i % this == 0, else within local_window
    local_window: int = 0  # positions attended to on each side in local layers
    # Where the tokens are that each token attends to besides itself: 'left' is causal; only `plain` attention does one side.
    attention_direction: str = "both"
    first_attention_norm: bool = True  # pre-norm only: False leaves it out in the first layer (ModernBERT)
    pooler: bool = True  # tanh dense layer over the first position

    # Heads
    head_activation: str = ""  # of the dense layer in the MLM head; '': `activation`
    scalar_mix: bool = False  # heads and pooler read a learned mean of all layers instead of the last one
    classifier: str = "pooled"  # what a sequence classifier reads: see model/classifiers.py, `SequenceClassifier`
    classifier_pooling: str = "first"  # the position(s) it reads where that is not the pooled state

    # Training
    dropout: float = 0.1  # of embeddings, and of the outputs of attention and feed-forward layers
    attention_dropout: float = 0.1  # of attention's probabilities
    initializer_range: float = 0.02  # standard deviation of initial weights (truncated normal)

    # Family name in Hugging Face's format, where several share a layout; only exports use it. '': the first of them.
    exported_as: str = ""

    # Execution
    # Of the computation; norms, softmax and losses are float32 always. 'float16' is not for training (see train/step.py).
    dtype: str = "float32"
    param_dtype: str = "float32"  # of parameters; the moments of optimizers are float32 always
    # Implementation of attention: see model/attention/attend.py. 'auto': by platform, length and options; the log names it.
    attention: str = "auto"
    # What the backward pass computes again: 'none'; 'dots' all but products with weights, so attention's scores too; 'mlp'
    # the first products of the feed-forward layers as well; 'full' whole layers.
    remat: str = "none"
    # Layers in a step of the scan over layers, at least those of a pattern of `global_attention_every`: more of them take
    # longer to compile and may run faster. 0: the least, but in training on CPU all, where stacking what the backward pass
    # needs takes a fifth of the time.
    scan_unroll: int = 0

    def __post_init__(self):
        for field, choices in CHOICES.items():
            if getattr(self, field) not in choices:
                raise ValueError(f"model.{field}={getattr(self, field)!r} is not one of {', '.join(choices)}")
        for field, (low, high) in RANGES.items():
            if not low <= getattr(self, field) <= high:
                raise ValueError(f"model.{field}={getattr(self, field)} must be from {low:,} to {high:,}")
        if self.hidden_size % self.num_heads:
            raise ValueError(
                f"model.hidden_size={self.hidden_size} does not divide into model.num_heads={self.num_heads}"
            )
        if self.positions == "rope" and self.head_size % 2:
            raise ValueError(f"rotary positions need an even head size; hidden_size / num_heads is {self.head_size}")
        if self.num_layers % (self.groups * self.layers_per_group):
            raise ValueError(
                f"model.num_layers={self.num_layers} does not divide into {self.groups} groups "
                f"of {self.layers_per_group} layers"
            )
        if self.global_attention_every > 1 and self.local_window < 1:
            raise ValueError("model.global_attention_every > 1 needs model.local_window >= 1")
        if self.repeats > 1 and self.layers_per_group % self.global_attention_every:
            raise ValueError(
                f"model.layers_per_group={self.layers_per_group} does not divide into patterns of "
                f"model.global_attention_every={self.global_attention_every} layers: those that share weights attend alike"
            )

    @property
    def head_size(self) -> int:
        return self.hidden_size // self.num_heads

    @property
    def table_width(self) -> int:
        return self.embedding_size or self.hidden_size

    @property
    def groups(self) -> int:
        return self.num_layer_groups or self.num_layers // self.layers_per_group

    @property
    def repeats(self) -> int:
        """Times that each group runs, one after the other."""
        return self.num_layers // (self.groups * self.layers_per_group)

    def window(self, layer: int) -> int | None:
        """Positions on each side that a layer attends to; None for all."""
        return self.local_window if layer % self.global_attention_every else None
