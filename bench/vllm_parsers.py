"""What vLLM's tool-call parsers make of an answer, complete and streamed token by token.

Runs in vLLM's own environment (docs/formats.md says how to make one) and knows nothing of smollora.
In: bench/format_cases.yaml. Out: a JSON file with the calls and the content that a client would
get. The answers go through the same object as in vLLM's server: the parser class that `vllm serve
--tool-call-parser NAME --enable-auto-tool-choice` composes, `parse` for a complete answer,
`parse_delta` for each token of a streamed one. No model and no GPU is needed.

    python bench/vllm_parsers.py bench/format_cases.yaml bench/vllm_answers.json
"""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

STOP = "<|im_end|>"


def tokenizer_for(tokens: list[str], special: bool) -> PreTrainedTokenizerFast:
    """Bytes as tokens, and each of `tokens` as one; the stop token is always special."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE({letter: i for i, letter in enumerate(letters)}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(STOP, normalized=False)])
    backend.add_tokens([AddedToken(text, special=special, normalized=False) for text in tokens])
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=STOP)


def encode(tokenizer: Any, case: str, text: str) -> list[int]:
    """Ids of an answer; in a case whose name begins with "spelled" no delimiter is a token."""
    pieces = text if case.startswith("spelled") else [text]
    return [i for piece in pieces for i in tokenizer.encode(piece, add_special_tokens=False)]


def read_cases(path: Path) -> Iterator[tuple[dict[str, Any], str, str]]:
    """(format, case name, answer), in the order of the file."""
    for fmt in yaml.safe_load(path.read_text(encoding="utf-8"))["formats"]:
        for name, text in fmt["cases"].items():
            yield fmt, name, text


def deltas(tokenizer: Any, token_ids: list[int], skip: bool) -> Iterator[tuple[str, list[int]]]:
    """What each token adds to the text; a letter of several bytes comes with its last one."""
    shown = ""
    for end in range(1, len(token_ids) + 1):
        text = tokenizer.decode(token_ids[:end], skip_special_tokens=skip)
        if text.endswith("\ufffd"):
            yield "", [token_ids[end - 1]]
            continue
        yield text[len(shown) :], [token_ids[end - 1]]
        shown = text


def ask(fmt: dict[str, Any], tools: list[dict[str, Any]], case: str, text: str) -> dict[str, Any]:
    """The complete and the streamed reading of one answer."""
    from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
    from vllm.parser.parser_manager import ParserManager

    tokenizer = tokenizer_for(fmt["tokens"], fmt["special"])
    token_ids = encode(tokenizer, case, text)
    parser_class = ParserManager.get_parser(
        tool_parser_name=fmt["parser"], enable_auto_tools=True, tokenizer=tokenizer
    )
    answers: dict[str, Any] = {}
    for way in ("complete", "streamed"):
        request = ChatCompletionRequest(
            model="m", messages=[{"role": "user", "content": "?"}], tools=tools, stream=True
        )
        parser = parser_class(tokenizer, request.tools)
        request = parser.adjust_request(request)
        skip = request.skip_special_tokens
        try:
            if way == "complete":
                answers[way] = complete(parser, tokenizer, token_ids, request, skip)
            else:
                answers[way] = streamed(parser, tokenizer, token_ids, request, skip)
        except Exception as error:  # what the server would answer with an error
            answers[way] = {"error": f"{type(error).__name__}: {error}"}
    return answers


def complete(
    parser: Any, tokenizer: Any, token_ids: list[int], request: Any, skip: bool
) -> dict[str, Any]:
    """As `ChatCompletion` without `stream`."""
    text = tokenizer.decode(token_ids, skip_special_tokens=skip)
    _, content, calls = parser.parse(
        text, request, enable_auto_tools=True, model_output_token_ids=token_ids
    )
    read = [{"name": call.name, "arguments": call.arguments} for call in calls or ()]
    return {"calls": read, "content": content or ""}


def streamed(
    parser: Any, tokenizer: Any, token_ids: list[int], request: Any, skip: bool
) -> dict[str, Any]:
    """As a client of a stream puts it together: names as given, pieces of arguments joined."""
    calls: dict[int, dict[str, str]] = {}
    content = ""
    pieces = [(*piece, False) for piece in deltas(tokenizer, token_ids, skip)]
    pieces.append(("", [tokenizer.eos_token_id], True))
    for text, ids, finished in pieces:
        delta = parser.parse_delta(text, ids, request, prompt_token_ids=[], finished=finished)
        if delta is None:
            continue
        content += delta.content or ""
        for piece in delta.tool_calls or ():
            call = calls.setdefault(piece.index, {"name": "", "arguments": ""})
            if piece.function is not None:
                call["name"] += piece.function.name or ""
                call["arguments"] += piece.function.arguments or ""
    return {"calls": [calls[index] for index in sorted(calls)], "content": content}


def main(cases: str, out: str) -> None:
    """Ask all cases and write the answers."""
    import vllm

    logging.disable(logging.CRITICAL)
    tools = yaml.safe_load(Path(cases).read_text(encoding="utf-8"))["tools"]
    answers: dict[str, dict[str, Any]] = {}
    for fmt, case, text in read_cases(Path(cases)):
        answers.setdefault(fmt["name"], {})[case] = ask(fmt, tools, case, text)
    written = {"vllm": vllm.__version__, "answers": answers}
    Path(out).write_text(json.dumps(written, indent=1, ensure_ascii=False) + "\n", "utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
