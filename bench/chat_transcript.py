"""A chat with a trained model in a real terminal, written down, with times.

`python bench/chat_transcript.py MODEL`: starts `smollora chat MODEL --tools bench/chat_tools.py` in
a pseudo-terminal, approves one tool and refuses one, and prints what stood on the screen; then the
time from the start of the process to the first letter of an answer, through a pipe, and from Enter
to the first letter. Run it twice: the first start reads the files from disk.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tests" / "chat"))

from pseudo_terminal import PseudoTerminal  # noqa: E402

SMOLLORA = [sys.executable, "-m", "smollora.cli"]
ENV = {**os.environ, "TERM": "dumb", "SMOLLORA_CACHE": "/tmp/smollora-chat-transcript"}
TURNS = (
    ("What is the weather in Lisbon today?", "y"),
    ("/raw", None),
    ("Please delete the file notes/old.txt.", "n"),
    ("/set max_new_tokens 64", None),
    ("What is the capital of France?", None),
)


def answer(chat: PseudoTerminal, yes: str | None) -> None:
    """Wait until the model has ended its turn, saying `yes` to each tool it wants to run."""
    while True:
        while not chat.text.endswith(("\n> ", "[y/N] ")):
            if not chat._read(120):
                raise SystemExit(f"nothing more came after:\n{chat.text}")
        if chat.text.endswith("\n> "):
            chat._seen = len(chat.text)
            return
        chat.type(yes or "n")
        chat._read(5)


def transcript(model: str) -> str:
    """What stood on the screen."""
    tools = ROOT / "bench" / "chat_tools.py"
    chat = PseudoTerminal([*SMOLLORA, "chat", model, "--tools", str(tools)], env=ENV)
    try:
        chat.wait_for("> ", 120)
        for said, yes in TURNS:
            chat.type(said)
            chat._read(5)
            answer(chat, yes)
        start = time.monotonic()
        chat.type("And of Italy?")
        chat.wait_for("Italy?\n", 30)
        while not chat.text[chat._seen :].strip():
            chat._read(60)
        first = time.monotonic() - start
        answer(chat, "n")
        chat.type("/quit")
        chat.ends()
        return f"{chat.text}\n--- from Enter to the first letter: {first:.2f} s"
    finally:
        chat.close()


def from_nothing(model: str, *more: str) -> float:
    """Seconds from the start of the process to the first letter of the answer, in a pipe."""
    start = time.monotonic()
    child = subprocess.Popen(
        [*SMOLLORA, "chat", model, *more], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=ENV
    )
    assert child.stdin and child.stdout
    child.stdin.write(b"What is the capital of France?\n")
    child.stdin.close()
    child.stdout.read(1)
    found = time.monotonic() - start
    child.stdout.read()
    child.wait()
    return found


def main() -> None:
    model = sys.argv[1]
    print(transcript(model), flush=True)
    times = [f"{from_nothing(model):.2f}" for _ in range(3)]
    print(
        f"--- from the start of the process to the first letter, three times: {', '.join(times)} s"
    )


if __name__ == "__main__":
    main()
