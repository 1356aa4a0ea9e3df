"""Cutting texts changes no token: the expected side is the tokenizer, given the text whole."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from tokenizers.trainers import BpeTrainer

from smollora.pieces import PATTERNS, PieceEncoder, ascii_words, words_of

TAGS = ["<|im_start|>", "<|im_end|>", "<|im_", "<tool_call>", "</tool_call>"]
LONG_LINE = '{"name": "get_weather", "description": "What the weather is like"}' * 2
CORPUS = [
    LONG_LINE,
    "It's 1234 o'clock, isn't it?\n\nWE'LL see:  a\tb \r\n(x == y);",
    "Łódź, 東京 und Überraschung",
]
SPACE = [" ", "  ", "\n", "\n\n", "\t", "\r\n", "\x0b", "\x1c", "\u2028"]
SIGNS = ["'s", "'LL", "'", "{", "}}", '": "', "/", "_", "|", ">"]
WORDS = ["a", "The", "B7", "4242", "é", "\u0301", "東", "x" * 80]
LINES = [LONG_LINE, f"\n{LONG_LINE}\n", f"\n/{LONG_LINE}\n", f"\n{LONG_LINE}é\n"]
PART = st.sampled_from([*SPACE, *SIGNS, *WORDS, *TAGS, *LINES])
TEXTS = st.lists(st.lists(PART, max_size=12).map("".join), max_size=4)


def trained(
    before: Any, *, tags: list[AddedToken] | None = None, normalizer: Any = None
) -> Tokenizer:
    """A small byte-level BPE behind a pre-tokenizer, trained on a few lines."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = before
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    made.train_from_iterator(
        CORPUS, BpeTrainer(vocab_size=400, initial_alphabet=alphabet, show_progress=False)
    )
    made.normalizer = normalizer
    made.add_tokens(tags or [AddedToken(tag, normalized=False) for tag in TAGS])
    return made


def split_by(pattern: str) -> Any:
    """How Llama 3 and Qwen write their pre-tokenizer."""
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


GPT2 = trained(pre_tokenizers.ByteLevel(add_prefix_space=False))
SPLITTING = {
    pattern: trained(split_by(pattern), normalizer=normalizers.NFC() if index % 2 else None)
    for index, pattern in enumerate(sorted(PATTERNS))
}


def whole(tokenizer: Tokenizer, text: str) -> list[int]:
    """What the tokenizer makes of a text."""
    ids: list[int] = tokenizer.encode(text, add_special_tokens=False).ids
    return ids


@pytest.mark.parametrize("tokenizer", [GPT2, *SPLITTING.values()], ids=lambda _: "")
def test_pieces_have_the_ids_of_the_whole(tokenizer: Tokenizer) -> None:
    encoder = PieceEncoder(tokenizer)
    assert encoder.pattern

    @settings(max_examples=150)
    @given(TEXTS)
    def check(texts: list[str]) -> None:
        for _ in range(2):  # the second time from memory
            made = encoder.encode(texts)
            assert [list(item.ids) for item in made] == [whole(tokenizer, t) for t in texts]
            for item, text in zip(made, texts, strict=True):
                assert "".join(piece.text for piece in item.pieces) == text
                ids = [token for piece in item.pieces for token in piece.ids]
                assert ids == list(item.ids)
                for piece in item.pieces:
                    assert text.startswith(piece.text, piece.start)
                    assert item.ids[piece.token :][: len(piece.ids)] == tuple(piece.ids)

    check()


@pytest.mark.parametrize("pattern", sorted(PATTERNS))
def test_ascii_text_is_divided_as_the_tokenizer_divides_it(pattern: str) -> None:
    divide, split = ascii_words(pattern), pre_tokenizers.Split(Regex(pattern), "isolated")

    @settings(max_examples=300)
    @given(st.text(st.characters(max_codepoint=127), max_size=40))
    def check(text: str) -> None:
        assert divide(text) == [word for word, _ in split.pre_tokenize_str(text)]

    check()


def test_a_line_that_comes_again_is_encoded_once() -> None:
    encoder = PieceEncoder(GPT2)
    asked: list[str] = []
    encode = encoder._by_backend
    encoder._by_backend = lambda texts: (asked.extend(texts), encode(texts))[1]  # type: ignore
    text = f"Tools:\n{'é'.join(LONG_LINE)}\nend"
    first = encoder.encode([text, text])
    assert sum("é" in item for item in asked) == 1
    asked.clear()
    assert encoder.encode([text]) == first[:1]
    assert not asked


def test_what_is_remembered_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("smollora.pieces.REMEMBERED", 20_000)
    monkeypatch.setattr("smollora.pieces.WORDS", 50)
    encoder = PieceEncoder(GPT2)
    for number in range(200):
        text = f"{LONG_LINE} w{number} {'y' * number}\n{LONG_LINE} ü{number}\nend"
        assert list(encoder.encode([text])[0].ids) == whole(GPT2, text)
    assert len(encoder._words) < 100
    assert sum(map(len, (*encoder._young, *encoder._old))) < 10_000


def test_other_tokenizers_get_their_texts_whole() -> None:
    odd = split_by(r"\w+|\W+")
    digits = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(False)]
    )
    greedy = trained(
        pre_tokenizers.ByteLevel(add_prefix_space=False),
        tags=[AddedToken("<|im_end|>", lstrip=True, normalized=False)],
    )
    normalizing = trained(
        pre_tokenizers.ByteLevel(add_prefix_space=False), normalizer=normalizers.Lowercase()
    )
    spaced = trained(pre_tokenizers.ByteLevel(add_prefix_space=True))
    for tokenizer in (trained(odd), trained(digits), greedy, normalizing, spaced):
        assert words_of(tokenizer) is None
        text = f"a b\n{LONG_LINE}\n<|im_end|> e\u0301\n"
        made = PieceEncoder(tokenizer).encode([text])[0]
        assert [piece.text for piece in made.pieces] == [text]
        assert list(made.ids) == whole(tokenizer, text)
