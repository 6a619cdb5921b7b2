"""What a step of a pair costs: bytes, floating-point operations, messages, and from them seconds.

A roofline: each part of a step takes as long as the slower of reading its bytes and doing its
arithmetic, and parts follow one another. Left out: kernel launches and the host (one constant, the
device's `host`), activations between layers, norms and rotations, biases.

Weights and caches are in 16 bits. N requests in a decode step, T tokens of context each.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

BYTES = 2  # of a weight, a cached value, an activation
LOGIT_BYTES = 4


@dataclass(frozen=True, kw_only=True, slots=True)
class Shape:
    """A dense decoder with gated MLPs and grouped queries (Qwen2.5, Qwen3, Llama)."""

    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    tied: bool = False

    @property
    def matrices(self) -> list[tuple[int, int]]:
        """(outputs, inputs) of a layer's products: qkv, o, gate and up, down."""
        attention = self.heads * self.head_dim
        qkv = attention + 2 * self.kv_heads * self.head_dim
        return [
            (qkv, self.hidden),
            (self.hidden, attention),
            (2 * self.intermediate, self.hidden),
            (self.hidden, self.intermediate),
        ]

    @property
    def layer_weights(self) -> int:
        """Of all layers together."""
        return self.layers * sum(rows * columns for rows, columns in self.matrices)

    @property
    def head_weights(self) -> int:
        return self.vocab * self.hidden

    @property
    def weights(self) -> int:
        """With the embeddings, which a tied head shares."""
        return self.layer_weights + self.head_weights * (1 if self.tied else 2)

    @property
    def kv_bytes(self) -> int:
        """Of one token."""
        return BYTES * 2 * self.layers * self.kv_heads * self.head_dim

    def adapter_weights(self, rank: int) -> int:
        """Of a LoRA on every linear layer; a fused product has an A of its own for each slice."""
        slices = (3, 1, 2, 1)
        return self.layers * sum(
            rank * (rows + many * columns)
            for (rows, columns), many in zip(self.matrices, slices, strict=True)
        )


QWEN2_5 = {
    "7B": Shape(
        hidden=3584, intermediate=18944, layers=28, heads=28, kv_heads=4, head_dim=128, vocab=152064
    ),
    "32B": Shape(
        hidden=5120, intermediate=27648, layers=64, heads=40, kv_heads=8, head_dim=128, vocab=152064
    ),
    "72B": Shape(
        hidden=8192, intermediate=29568, layers=80, heads=64, kv_heads=8, head_dim=128, vocab=152064
    ),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Device:
    """What a GPU reaches, not what its data sheet promises.

    bandwidth  bytes a second from memory.
    flops      16-bit operations a second in matrix products.
    memory     bytes.
    link       bytes a second to the other GPUs of its node, one way.
    latency    seconds that a collective takes apart from its bytes.
    host       seconds a step that are not the model: scheduling, sampling, launches.
    """

    bandwidth: float
    flops: float
    memory: float = 0.0
    link: float = 1.0
    latency: float = 0.0
    host: float = 0.0


# Data sheet: 4.8 TB/s, 989 TFLOP/s dense bf16, 141 GB, 450 GB/s NVLink. Reached: 85 %, 65 %, 75 %.
H200 = Device(
    bandwidth=0.85 * 4.8e12,
    flops=0.65 * 989e12,
    memory=141e9,
    link=0.75 * 450e9,
    latency=10e-6,
    host=300e-6,
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Variant:
    """A way to serve a pair.

    copies  sets of weights, each read once a step.
    bodies  models run on each token, so sets of keys and values too.
    heads   rows of the head for each request. An adapter pair without a gate needs one: its
            logits are linear in the hidden states, so the extrapolated state goes through the head.
    passes  over a row of float32 logits until a token is drawn. Of a gate, without truncation:
            top-k and top-p add 62 passes over both rows, in the cache where they fit.
    rank    of the adapter.
    """

    copies: int
    bodies: int
    heads: int
    passes: int
    rank: int = 0


VARIANTS = {
    "single": Variant(copies=1, bodies=1, heads=1, passes=3),
    "full pair": Variant(copies=2, bodies=2, heads=2, passes=6),
    "full pair, gated": Variant(copies=2, bodies=2, heads=2, passes=11),
    "adapter pair": Variant(copies=1, bodies=2, heads=1, passes=3, rank=16),
    "adapter pair, gated": Variant(copies=1, bodies=2, heads=2, passes=11, rank=16),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Part:
    """A part of a step on one GPU."""

    name: str
    bytes: float = 0.0
    flops: float = 0.0
    collectives: int = 0
    sent: float = 0.0

    def seconds(self, device: Device) -> float:
        roofline = max(self.bytes / device.bandwidth, self.flops / device.flops)
        return roofline + self.collectives * device.latency + self.sent / device.link


def parts(
    shape: Shape, variant: Variant, *, tokens: float, logits: float, read: float, gpus: int = 1
) -> Iterator[Part]:
    """A step over `tokens` new tokens, on one of `gpus` that share each matrix.

    logits  how many of the tokens have their logits computed.
    read    cached tokens that the new ones attend to, added up over them, for one body.
    """
    linear = shape.layer_weights / gpus
    for _ in range(variant.copies):
        rows = tokens * variant.bodies / variant.copies
        yield Part(name="layers", bytes=BYTES * linear, flops=2 * rows * linear)
    if variant.rank:
        adapter = shape.adapter_weights(variant.rank) / gpus
        yield Part(name="adapter", bytes=BYTES * adapter, flops=2 * tokens * adapter)
    # A GPU holds whole heads of keys and values, at least one.
    kv = shape.kv_bytes / min(gpus, shape.kv_heads)
    products = 4 * shape.layers * shape.heads * shape.head_dim / gpus
    yield Part(
        name="attention", bytes=variant.bodies * read * kv, flops=variant.bodies * read * products
    )
    head = shape.head_weights / gpus
    for _ in range(variant.copies):
        rows = logits * variant.heads / variant.copies
        yield Part(name="head", bytes=BYTES * head, flops=2 * rows * head)
    yield Part(name="logits", bytes=LOGIT_BYTES * variant.passes * logits * shape.vocab)
    if gpus > 1:
        yield communication(shape, variant, tokens=tokens, logits=logits, gpus=gpus)


def communication(
    shape: Shape, variant: Variant, *, tokens: float, logits: float, gpus: int
) -> Part:
    """Two ring all-reduces a layer, after o and down, and a gathering of the logits."""
    share = (gpus - 1) / gpus
    reduced = 2 * shape.layers * variant.bodies * tokens * shape.hidden * BYTES
    gathered = variant.heads * logits * shape.vocab * BYTES
    return Part(
        name="communication",
        collectives=(2 * shape.layers + 1) * variant.copies,
        sent=2 * share * reduced + share * gathered,
    )


def decode_seconds(
    shape: Shape, variant: Variant, device: Device, *, requests: int, context: int, gpus: int = 1
) -> float:
    """A step in which each of `requests` gets a token."""
    step = parts(
        shape, variant, tokens=requests, logits=requests, read=requests * context, gpus=gpus
    )
    return device.host + sum(part.seconds(device) for part in step)


def prefill_seconds(
    shape: Shape, variant: Variant, device: Device, *, prompt: int, gpus: int = 1
) -> float:
    """A step over one prompt, of which the last token's logits are computed.

    Attention keeps a prompt's keys and values on the chip, so its bytes are those of one reading.
    """
    step = parts(shape, variant, tokens=prompt, logits=1, read=prompt * prompt / 2, gpus=gpus)
    seconds = device.host
    for part in step:
        if part.name == "attention":
            part = Part(name=part.name, flops=part.flops, bytes=part.bytes * 2 / prompt)
        seconds += part.seconds(device)
    return seconds


def weight_bytes(shape: Shape, variant: Variant) -> float:
    """Of all GPUs together."""
    return BYTES * (variant.copies * shape.weights + shape.adapter_weights(variant.rank))


def requests_that_fit(
    shape: Shape, variant: Variant, device: Device, *, context: int, gpus: int = 1
) -> int:
    """How many requests of `context` tokens have their keys and values in memory at once.

    A tenth of the memory is left for activations and graphs; 0 if the weights do not fit.
    """
    free = 0.9 * device.memory * gpus - weight_bytes(shape, variant)
    copies_of_kv = max(1, gpus // shape.kv_heads)
    return max(0, int(free / (context * variant.bodies * shape.kv_bytes * copies_of_kv)))
