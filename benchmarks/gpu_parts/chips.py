"""What a chip can compute at most, by its vendor's data sheet."""

import re
from typing import Any

PEAKS: dict[str, float] = {
    # NVIDIA, H100 Tensor Core GPU data sheet: SXM 1,979, PCIe 1,513, NVL 1,671 with sparsity, which is twice the dense
    r"NVIDIA H100( SXM5)?( 80GB HBM3)?": 989.4,
    r"NVIDIA H100 PCIe": 756.5,
    r"NVIDIA H100 NVL": 835.5,
    # NVIDIA, H200 Tensor Core GPU data sheet: SXM 1,979, NVL 1,671 with sparsity
    r"NVIDIA H200": 989.4,
    r"NVIDIA H200 NVL": 835.5,
    # NVIDIA, A100 Tensor Core GPU data sheet: 312, without sparsity, all versions
    r"NVIDIA A100-(SXM4|PCIE)-(40|80)GB|NVIDIA A100 80GB PCIe": 312.0,
    # NVIDIA, L40S data sheet: 362.05, without sparsity
    r"NVIDIA L40S": 362.05,
    # NVIDIA, Ada GPU architecture whitepaper, appendix A: 165.2, products added up in float32, without sparsity
    r"NVIDIA GeForce RTX 4090": 165.2,
    # NVIDIA, DGX B200 data sheet: 36 PFLOPS for 8 GPUs with sparsity, which is twice the dense
    r"NVIDIA B200": 2250.0,
}
"""Dense bfloat16 TFLOP/s of matrix products, by what torch calls the device. Slices of a chip (MIG) are not in it."""


def peak_flops(name: str) -> float | None:
    """Dense bfloat16 FLOP/s of the chip; None if it is not known, and then no share of it is shown."""
    return next((tera * 1e12 for pattern, tera in PEAKS.items() if re.fullmatch(pattern, name.strip())), None)


def forward_flops(text_config: Any, tokens: int, pairs: int, scored: int) -> float:
    """FLOP of a forward pass: matrix products of the layers over `tokens`, attention over `pairs` of a query and a key,
    and the output head over `scored` positions. A product and its addition count as 2 (Kaplan et al., arXiv
    2001.08361, section 2.1, without embeddings, and with pairs in place of a whole square).
    """
    hidden, layers, heads = text_config.hidden_size, text_config.num_hidden_layers, text_config.num_attention_heads
    size = getattr(text_config, "head_dim", None) or hidden // heads
    attention = hidden * size * (2 * heads + 2 * text_config.num_key_value_heads)
    matrices = attention + 3 * hidden * text_config.intermediate_size
    head = hidden * text_config.vocab_size
    return 2.0 * layers * matrices * tokens + 4.0 * layers * heads * size * pairs + 2.0 * head * scored


def causal_pairs(tokens: int, before: int = 0) -> int:
    """Pairs of a query and a key where each of `tokens` sees `before` others, itself, and the tokens between."""
    return tokens * before + tokens * (tokens + 1) // 2
