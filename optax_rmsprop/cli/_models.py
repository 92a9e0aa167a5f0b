"""The shapes of the parameters of well-known models, by their paths, as JAX lays them out."""

from typing import TypeAlias

Shapes: TypeAlias = dict[str, tuple[int, ...]]


def llama_2_7b() -> Shapes:
    """Llama 2 7B, of 6.74 billion parameters.

    Source: Touvron et al., Llama 2, 2023; the config.json of meta-llama/Llama-2-7b-hf.
    """
    width, hidden, vocabulary = 4096, 11008, 32000
    found: Shapes = {"embed_tokens/embedding": (vocabulary, width)}
    for i in range(32):
        at = f"layers/{i}"
        found |= {f"{at}/self_attn/{x}_proj/kernel": (width, width) for x in "qkvo"}
        found |= {f"{at}/mlp/{x}_proj/kernel": (width, hidden) for x in ("gate", "up")}
        found[f"{at}/mlp/down_proj/kernel"] = (hidden, width)
        found |= {f"{at}/{x}_layernorm/weight": (width,) for x in ("input", "post_attention")}
    return found | {"norm/weight": (width,), "lm_head/kernel": (width, vocabulary)}


def vit_h_14() -> Shapes:
    """ViT-H/14 for 1000 classes and images of 224 x 224, of 632 million parameters.

    Source: Dosovitskiy et al., An image is worth 16x16 words, 2021, Table 1; the shapes of their
    code in Flax, google-research/vision_transformer.
    """
    width, hidden, heads, patch = 1280, 5120, 16, 14
    found = _layer("embedding", (patch, patch, 3, width))
    found |= {"cls": (1, 1, width), "Transformer/posembed_input/pos_embedding": (1, 257, width)}
    for i in range(32):
        at = f"Transformer/encoderblock_{i}"
        attention = f"{at}/MultiHeadDotProductAttention_1"
        head = (heads, width // heads)
        for x in ("query", "key", "value"):
            found |= {f"{attention}/{x}/kernel": (width, *head), f"{attention}/{x}/bias": head}
        found |= _layer(f"{attention}/out", (*head, width))
        found |= _layer(f"{at}/MlpBlock_3/Dense_0", (width, hidden))
        found |= _layer(f"{at}/MlpBlock_3/Dense_1", (hidden, width))
        found |= _norm(f"{at}/LayerNorm_0", width) | _norm(f"{at}/LayerNorm_2", width)
    return found | _norm("Transformer/encoder_norm", width) | _layer("head", (width, 1000))


def resnet_50() -> Shapes:
    """ResNet-50 for 1000 classes, of 25.56 million parameters.

    Source: He et al., Deep residual learning for image recognition, 2015, Table 1.
    """
    kernels: Shapes = {"stem": (7, 7, 3, 64)}
    channels = 64
    for stage, blocks in enumerate((3, 4, 6, 3)):
        width = 64 * 2**stage
        for block in range(blocks):
            at = f"stage_{stage}/block_{block}"
            if block == 0:
                kernels[f"{at}/projection"] = (1, 1, channels, 4 * width)
            kernels[f"{at}/conv_0"] = (1, 1, channels, width)
            kernels[f"{at}/conv_1"] = (3, 3, width, width)
            kernels[f"{at}/conv_2"] = (1, 1, width, 4 * width)
            channels = 4 * width
    found = _layer("head", (channels, 1000))
    for name, kernel in kernels.items():
        found |= {f"{name}/kernel": kernel} | _norm(f"{name}/norm", kernel[-1])
    return found


def _layer(name: str, kernel: tuple[int, ...]) -> Shapes:
    return {f"{name}/kernel": kernel, f"{name}/bias": kernel[-1:]}


def _norm(name: str, width: int) -> Shapes:
    return {f"{name}/scale": (width,), f"{name}/bias": (width,)}


MODELS = {"llama-2-7b": llama_2_7b, "vit-h-14": vit_h_14, "resnet-50": resnet_50}
