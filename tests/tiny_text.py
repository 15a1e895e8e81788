"""Parts of tiny checkpoints: tokenizers of single letters, and text and picture encoders of width 32."""

from __future__ import annotations

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import (
    CLIPImageProcessorPil,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    CLIPVisionConfig,
    PreTrainedTokenizerFast,
    T5Config,
    T5EncoderModel,
)

CHAT_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{m['role']}}\n"
    "{% if m['content'] is string %}{{m['content']}}"
    "{% else %}{% for c in m['content'] %}{{c.get('text','')}}{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def t5_tokenizer() -> PreTrainedTokenizerFast:
    """Letters and digits, one token each, as a unigram model like T5's."""
    vocabulary = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", -10.0)]
    vocabulary += [(letter, -5.0) for letter in "▁abcdefghijklmnopqrstuvwxyz0123456789,.!?'-"]
    tokenizer = Tokenizer(models.Unigram(vocabulary, unk_id=2, byte_fallback=False))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>",
                                   model_max_length=512)


def byte_tokenizer(special: list[str], *, pad: str, eos: str, chat: str = "", side: str = "right",
                   ) -> PreTrainedTokenizerFast:
    """Byte-level BPE without merges: one token per byte, then the special tokens."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={letter: i for i, letter in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in special])
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token=pad, eos_token=eos, padding_side=side,
                                   model_max_length=1024)
    fast.chat_template = chat or None
    return fast


def clip_tokenizer() -> CLIPTokenizer:
    """CLIP's byte tokenizer without merges."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = alphabet + [letter + "</w>" for letter in alphabet] + ["<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(vocab={token: i for i, token in enumerate(tokens)}, merges=[], model_max_length=77)


def clip_text(*, projected: bool) -> CLIPTextModel | CLIPTextModelWithProjection:
    """A CLIP text encoder of width 32."""
    config = CLIPTextConfig(bos_token_id=512, eos_token_id=513, hidden_size=32, intermediate_size=37,
                            num_attention_heads=4, num_hidden_layers=2, pad_token_id=1, vocab_size=514,
                            hidden_act="gelu", projection_dim=32)
    return (CLIPTextModelWithProjection if projected else CLIPTextModel)(config).eval()


def clip_vision_config() -> CLIPVisionConfig:
    """Four patches of 112 px: the pipelines insist on 224 px pictures."""
    return CLIPVisionConfig(hidden_size=32, projection_dim=32, num_hidden_layers=2, num_attention_heads=4,
                            image_size=224, intermediate_size=37, patch_size=112)


def clip_pictures() -> CLIPImageProcessorPil:
    """CLIP's resize, crop and normalise."""
    return CLIPImageProcessorPil(size={"shortest_edge": 224}, crop_size={"height": 224, "width": 224})


def t5(vocabulary: int = 64) -> T5EncoderModel:
    """A T5 encoder, width 32."""
    config = T5Config(vocab_size=vocabulary, d_model=32, d_kv=8, d_ff=37, num_layers=2, num_heads=4)
    return T5EncoderModel(config).eval()
