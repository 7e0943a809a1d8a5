"""A BERT of a few thousand random weights with its own vocabulary, in the Hugging Face layout."""

from __future__ import annotations

from pathlib import Path

WORDS = [
    "the",
    "film",
    "was",
    "good",
    "bad",
    "very",
    "not",
    "a",
    "story",
    "and",
    "i",
    "liked",
    "it",
    "low",
    "high",
    "pitch",
    "loud",
    "quiet",
    "##s",
    "##ly",
    ".",
]
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


def write(folder: Path, *, positions: int = 40, seed: int = 0) -> Path:
    """Write model and tokenizer to ``folder`` and return it."""
    import torch
    from transformers import BertConfig, BertModel, BertTokenizerFast

    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=len(SPECIAL) + len(WORDS),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=48,
        max_position_embeddings=positions,
    )
    BertModel(config).save_pretrained(folder)  # with pooler, as published weights have it
    (folder / "vocab.txt").write_text("\n".join([*SPECIAL, *WORDS]) + "\n")
    BertTokenizerFast(vocab=str(folder / "vocab.txt")).save_pretrained(folder)
    return folder
