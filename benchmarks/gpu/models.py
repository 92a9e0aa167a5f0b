"""The shapes of the parameters whose update is timed."""

Shapes = dict[str, tuple[int, ...]]
DTYPES = ("float32", "bfloat16")


def resnet50(
    width: int = 64, stages: tuple[int, ...] = (3, 4, 6, 3), classes: int = 1000
) -> Shapes:
    """He et al. 2015: bottlenecks of three convolutions, each with a normalization after it."""
    shapes: Shapes = {}

    def convolution(name: str, *shape: int) -> None:
        shapes.update({f"{name}.kernel": shape, f"{name}.scale": shape[-1:]})
        shapes[f"{name}.bias"] = shape[-1:]

    convolution("stem", 7, 7, 3, width)
    before = width
    for stage, blocks in enumerate(stages):
        inner = width * 2**stage
        for block in range(blocks):
            name = f"stage{stage}.block{block}"
            convolution(f"{name}.reduce", 1, 1, before, inner)
            convolution(f"{name}.middle", 3, 3, inner, inner)
            convolution(f"{name}.expand", 1, 1, inner, 4 * inner)
            if block == 0:
                convolution(f"{name}.shortcut", 1, 1, before, 4 * inner)
            before = 4 * inner
    return shapes | {"head.kernel": (before, classes), "head.bias": (classes,)}


def transformer(
    layers: int = 12, width: int = 768, vocabulary: int = 50257, context: int = 1024
) -> Shapes:
    """GPT-2 (Radford et al. 2019), whose head is its table of tokens."""
    shapes: Shapes = {"tokens": (vocabulary, width), "positions": (context, width)}
    linear = {
        "attention_in": (width, 3 * width), "attention_out": (width, width),
        "mlp_in": (width, 4 * width), "mlp_out": (4 * width, width),
    }  # fmt: skip
    for layer in range(layers):
        for name, shape in linear.items():
            shapes[f"layer{layer}.{name}.kernel"] = shape
            shapes[f"layer{layer}.{name}.bias"] = shape[-1:]
    norms = [f"layer{layer}.norm{i}" for layer in range(layers) for i in (1, 2)]
    for name in [*norms, "norm"]:
        shapes |= {f"{name}.scale": (width,), f"{name}.bias": (width,)}
    return shapes


def models(small: bool) -> dict[str, Shapes]:
    """Return the models by name, the first one with the most leaves."""
    if small:
        return {
            "ResNet": resnet50(32, (1,), 10),
            "transformer": transformer(1, 64, 512, 64),
            "one leaf": {"kernel": (256, 512)},
        }
    return {
        "ResNet-50": resnet50(),
        "transformer": transformer(),
        "one leaf": {"kernel": (19_532, 20_480)},
    }


def calls_matter(shapes: Shapes, dtype: str) -> bool:
    """Whether the calls from Python are timed apart: with many leaves, and once is enough."""
    return len(shapes) > 1 and dtype == DTYPES[0]
