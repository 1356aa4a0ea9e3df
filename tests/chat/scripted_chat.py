"""`smollora chat` with the weights replaced by a script; the tests run it in a terminal.

`python scripted_chat.py SCRIPT.json ARGUMENTS...`: the script is a list of answers, one for each
time that the model is asked. `{"repeat": TEXT}` says it again and again, until it is stopped.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from smollora import cli
from smollora.chat import local
from smollora.tokenizer_file import load_tokenizer_files


class ScriptedStream:
    """A `TokenStream` that says what is in a script."""

    def __init__(self, tokenizer: Any, answers: Sequence[Any], pause: float = 0.0) -> None:
        self.tokenizer, self.answers, self.pause = tokenizer, list(answers), pause
        self.prompts: list[tuple[int, ...]] = []

    def warm(self, prompt_ids: Sequence[int]) -> None:
        pass

    def tokens(
        self,
        prompt_ids: Sequence[int],
        settings: Any,
        stop_ids: Sequence[int],
        stopped: Callable[[], bool],
    ) -> Iterator[int]:
        self.prompts.append(tuple(prompt_ids))
        answer = self.answers.pop(0)
        if isinstance(answer, dict):
            ids = self.tokenizer.encode(answer["repeat"], add_special_tokens=False) * 10_000
        else:
            ids = [*self.tokenizer.encode(answer, add_special_tokens=False), stop_ids[0]]
        for count, token in enumerate(ids, 1):
            yield token
            if stopped() or count == settings.max_new_tokens:
                return
            time.sleep(self.pause if isinstance(answer, str) else 0.02)


def main() -> None:
    answers = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))

    def open_stream(folder: Path, *, alone: bool) -> ScriptedStream:
        return ScriptedStream(load_tokenizer_files(folder), answers)

    local.open_stream = open_stream  # type: ignore[assignment]
    sys.argv[1:] = ["chat", *sys.argv[2:]]
    cli.main()


if __name__ == "__main__":
    main()
