"""The pair that the trainer is for, tiny: Qwen2.5-VL as the student and Qwen3 as the teacher, with their real ids."""

import torch
from qwen_tokenizers import qwen
from tiny_students import QWEN_TEMPLATE, QWEN_TEXT_TEMPLATE
from transformers import AutoModelForImageTextToText, PreTrainedTokenizerFast

ROWS = 151_936
"""Of the output head: both models' padded size."""
DIFFERING = range(151_665, 151_669)
END_OF_TEXT = 151_643
DRAWN = (15, 16, 17, END_OF_TEXT, 151_645)
"""0, 1, 2, <|endoftext|> and <|im_end|>."""


def tokenizer_of(name):
    names = {"image_token": "image_pad", "video_token": "video_pad"}
    names |= {"vision_bos_token": "vision_start", "vision_eos_token": "vision_end"}
    return PreTrainedTokenizerFast(
        tokenizer_object=qwen(name),
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        extra_special_tokens={key: f"<|{token}|>" for key, token in names.items()} if name == "qwen2.5" else None,
        chat_template=QWEN_TEMPLATE if name == "qwen2.5" else QWEN_TEXT_TEMPLATE,
        clean_up_tokenization_spaces=False,
    )


def draws_few_ids(folder):
    """Raise the weights that lead to DRAWN and to DIFFERING, so that a student which was taught nothing draws little
    else: what it draws of DIFFERING are the tokens that it has.
    """
    model = AutoModelForImageTextToText.from_pretrained(folder)
    with torch.no_grad():
        rows_VH = model.get_output_embeddings().weight
        rows_VH[:, 0] = 1.0
        rows_VH[[*DIFFERING, *DRAWN], 0] = 6.0
    model.save_pretrained(folder)
