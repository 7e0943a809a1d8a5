"""Tiny vision-language models with random weights and whole processors, saved as folders that transformers opens.

Every answer is one word of the vocabulary, and the words that may be generated are whole answers: the model chooses among
them (by picture and question, through its random weights), so that the path of a usable answer is real from end to end.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

#: Most chat templates, reduced: roles and parts in their order.
TEMPLATE = (
    "{% for m in messages %}{{ m['role'] }} {% if m['content'] is string %}{{ m['content'] }}{% else %}"
    "{% for c in m['content'] %}{% if c['type'] == 'image' %}PICTURE {% else %}{{ c['text'] }} {% endif %}{% endfor %}"
    "{% endif %} {% endfor %}assistant"
)


def answers(count: int = 4) -> list[str]:
    """Explanations as a model would write them."""
    return [
        json.dumps({"reason": f"clue {n}", "audio": f"voice {n}", "vision": f"face {n}", "comment": f"feeling {n}"})
        for n in range(count)
    ]


def _tokenizer(special: Sequence[str], said: Sequence[str]) -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = ["<unk>", "<pad>", "<s>", "</s>", *special, *(f"w{n}" for n in range(60)), "speaks", "English", *said]
    tokenizer = Tokenizer(models.WordLevel({word: n for n, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", pad_token="<pad>", bos_token="<s>", eos_token="</s>",
        additional_special_tokens=list(special),
    )  # fmt: skip


def _generation(size: int, said: Sequence[str]) -> Any:
    from transformers import GenerationConfig

    silent = list(range(size - len(said)))
    return GenerationConfig(bos_token_id=2, eos_token_id=3, pad_token_id=1, suppress_tokens=silent, do_sample=False)


def _text(size: int, **more: Any) -> dict[str, Any]:
    return {
        "vocab_size": size, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 4, "max_position_embeddings": 8192, "bos_token_id": 2, "eos_token_id": 3, "pad_token_id": 1, **more,
    }  # fmt: skip


def save_llava(folder: Path, said: Sequence[str]) -> Path:
    """A LLaVA of 0.12 M parameters that answers one of ``said``."""
    import torch
    from transformers import (
        CLIPImageProcessorPil,
        CLIPVisionConfig,
        LlamaConfig,
        LlavaConfig,
        LlavaForConditionalGeneration,
        LlavaProcessor,
    )

    tokenizer = _tokenizer(["<image>"], said)
    pictures = CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    processor = LlavaProcessor(
        pictures, tokenizer, patch_size=8, vision_feature_select_strategy="default",
        chat_template=TEMPLATE.replace("PICTURE", "<image>"), num_additional_image_tokens=1,
    )  # fmt: skip
    vision = CLIPVisionConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, image_size=32, patch_size=8
    )
    config = LlavaConfig(
        vision_config=vision,
        text_config=LlamaConfig(**_text(len(tokenizer))),
        image_token_id=4,
        image_token_index=4,
        vision_feature_layer=-1,
    )
    torch.manual_seed(0)
    model = LlavaForConditionalGeneration(config)
    model.generation_config = _generation(len(tokenizer), said)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def save_qwen(folder: Path, said: Sequence[str]) -> Path:
    """A Qwen2.5-VL of 0.2 M parameters with the files that its hub repositories have; its processor also knows videos."""
    import torch
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    special = ["<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"]
    tokenizer = _tokenizer(special, said)
    text = _text(
        len(tokenizer), rope_parameters={"rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 1e4}
    )
    vision = {
        "depth": 2, "hidden_size": 32, "intermediate_size": 64, "num_heads": 2, "out_hidden_size": 64, "patch_size": 14,
        "spatial_merge_size": 2, "temporal_patch_size": 2, "window_size": 56, "fullatt_block_indexes": [1],
    }  # fmt: skip
    ids = {"vision_start_token_id": 4, "vision_end_token_id": 5, "image_token_id": 6, "video_token_id": 7}
    torch.manual_seed(0)
    model = Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig(text_config=text, vision_config=vision, **ids))
    model.generation_config = _generation(len(tokenizer), said)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "chat_template.jinja").write_text(
        TEMPLATE.replace("PICTURE", "<|vision_start|><|image_pad|><|vision_end|>")
    )
    pictures = {
        "image_processor_type": "Qwen2VLImageProcessor", "processor_class": "Qwen2_5_VLProcessor", "patch_size": 14, "merge_size": 2,
        "temporal_patch_size": 2, "min_pixels": 28 * 28, "max_pixels": 56 * 56,
    }  # fmt: skip
    (folder / "preprocessor_config.json").write_text(json.dumps(pictures))
    return folder


def save_llama(folder: Path, said: Sequence[str]) -> Path:
    """A model of text alone, for the second stage."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = _tokenizer([], said)
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**_text(len(tokenizer))))
    model.generation_config = _generation(len(tokenizer), said)
    model.save_pretrained(folder)
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder)
    return folder
