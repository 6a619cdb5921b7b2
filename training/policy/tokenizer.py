"""Tokenizers for models made from nothing: one token per character, or learnt byte pairs."""

from __future__ import annotations

from collections.abc import Iterable

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

PAD, BOS, EOS, UNKNOWN = "<pad>", "<bos>", "<eos>", "<unk>"
_SPECIAL = (PAD, BOS, EOS, UNKNOWN)
_PRINTABLE = "\n" + "".join(chr(code) for code in range(ord(" "), ord("~") + 1))

# A chat is its messages, one a line; the template writes <bos> itself, because servers encode
# chat prompts without special tokens.
_CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{{ message['content'] }}"
    "{{ eos_token if message['role'] == 'assistant' else '\n' }}{% endfor %}"
)


def character_tokenizer(max_length: int) -> PreTrainedTokenizerFast:
    """Newline and printable ASCII, one token each, after four special tokens: 100 in all.

    Encoding puts <bos> in front; the chat of one user message "1+2=?" encodes as "1+2=?\n" does.
    """
    vocabulary = {token: index for index, token in enumerate([*_SPECIAL, *_PRINTABLE])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), behavior="isolated")
    tokenizer.decoder = decoders.Fuse()
    return _wrapped(tokenizer, max_length)


def byte_pair_tokenizer(
    texts: Iterable[str], vocabulary: int, max_length: int
) -> PreTrainedTokenizerFast:
    """Byte-level BPE learnt from texts: frequent words are one token, and any text has tokens.

    vocabulary  how many tokens, of which 256 are bytes and four special.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=list(_SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return _wrapped(tokenizer, max_length)


def _wrapped(tokenizer: Tokenizer, max_length: int) -> PreTrainedTokenizerFast:
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", special_tokens=[(BOS, tokenizer.token_to_id(BOS))]
    )
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer,
        pad_token=PAD,
        bos_token=BOS,
        eos_token=EOS,
        unk_token=UNKNOWN,
        chat_template=_CHAT_TEMPLATE,
        model_max_length=max_length,
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )
