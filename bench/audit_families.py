"""Which families lose what: the audit and the repair of every chat template in the wheel of trl.

In: the PyPI wheel trl 1.16.0 (fetched once, sha256 checked), whose folder `chat_templates` holds
about forty templates of model families as published. Out: a Markdown table, printed or, with
`--write`, put into docs/audit.md.

    python bench/audit_families.py --write

The surprise: a template alone has no tokenizer. Its added tokens are read off its text, its stop
token is the one below, and text is letters; so what depends on the vocabulary is not judged here.
"""

from __future__ import annotations

import argparse
import re
import zipfile
from pathlib import Path

from smollora.errors import SmolloraError
from smollora.formats import FORMATS
from smollora.models import fetch_wheel
from smollora.templates.audit import CHECKS, audit, find_format
from smollora.templates.audit.letters import LetterTokenizer, likely_tokens
from smollora.templates.repair import NotRepairable, repair, show_diff

WHEEL = "trl==1.16.0"
SHA256 = "c4726e139dd40e1a41661511c639c8a68416782b2e3e8c0befebd77bb7ba0396"
STOPS = (
    ("cohere", "<|END_OF_TURN_TOKEN|>"),
    ("deepseek", "<｜end▁of▁sentence｜>"),
    ("diffusion_gemma", "<turn|>"),
    ("gemma4", "<turn|>"),
    ("gemma", "<end_of_turn>"),
    ("glm4", "<|user|>"),
    ("gptoss", "<|return|>"),
    ("idefics3", "<end_of_utterance>"),
    ("smolvlm", "<end_of_utterance>"),
    ("llama3", "<|eot_id|>"),
    ("llava_next", "</s>"),
    ("muse_glimmer", "<|eot|>"),
    ("phi3", "<|endoftext|>"),
    ("", "<|im_end|>"),
)
"""What the tokenizer of each family names as eos_token, by the beginning of the file's name."""
COLUMNS = {
    "tools": ("tools_reach_prompt", "tools_as_json", "tools_despite_control_words"),
    "calls": ("calls_rendered", "several_calls", "call_without_arguments"),
    "format": ("calls_in_format",),
    "arguments": ("arguments_as_object", "arguments_as_string"),
    "text beside": ("content_beside_call",),
    "reasoning": ("reasoning_kept",),
    "results": ("results_rendered", "results_unlike_user", "several_results"),
    "system": ("system_closed_with_tools", "system_closed_without_tools", "second_system_message"),
    "text": ("list_content", "text_survives"),
    "day": ("date_stable",),
    "history": ("history_stable",),
    "serving": ("serving_prompt_same",),
    "labels": ("generation_prompt_matches", "stop_token_trained", "generation_markers_exact"),
}
"""The checks under each column; `delimiter_injection` informs and never fails."""
START, END = "<!-- families: written by bench/audit_families.py -->", "<!-- end of families -->"


def stand_in(name: str, source: str) -> LetterTokenizer:
    """A tokenizer as far as the template's text tells of one."""
    stop = next(token for start, token in STOPS if name.startswith(start))
    return LetterTokenizer([*likely_tokens(source), stop], eos=stop, bos="<bos>")


def row(name: str, source: str) -> str:
    """One line of the table."""
    tokenizer = stand_in(name, source)
    fmt = find_format(source, tokenizer)
    failed = {check.name for check in audit(source, tokenizer, fmt=fmt) if not check.ok}
    cells = ["lost" if failed & set(names) else "" for names in COLUMNS.values()]
    written = "another format" if "calls_in_format" in failed else fmt.name
    written = "dropped" if "calls_rendered" in failed else written
    return (
        f"| {name} | {written} | {' | '.join(cells)} | {repaired(source, tokenizer, fmt, failed)} |"
    )


def repaired(source: str, tokenizer: LetterTokenizer, fmt: object, failed: set[str]) -> str:
    """What `smollora repair` makes of it."""
    if not failed:
        return "not needed"
    try:
        result = repair(source, tokenizer, fmt=fmt)  # type: ignore[arg-type]
    except NotRepairable as error:
        return f"no: {', '.join(f'`{check.name}`' for check in error.checks)}"
    except SmolloraError as error:
        return f"no: {error.message.splitlines()[0]}"
    lines = show_diff(source, result.source).splitlines()[2:]
    changed = (sum(line.startswith(sign) for line in lines) for sign in "+-")
    added, removed = changed
    return f"{result.shipped or 'edited'}, +{added} -{removed} lines"


def table(templates: dict[str, str]) -> str:
    """The whole table, with what it counts."""
    left_out = {check.__name__ for check in CHECKS} - set().union(*map(set, COLUMNS.values()))
    assert left_out == {"delimiter_injection"}, left_out
    head = f"| template | calls in | {' | '.join(COLUMNS)} | repair |"
    rows = [row(name, source) for name, source in templates.items()]
    passing = sum(line.endswith("| not needed |") for line in rows)
    mended = sum(not re.search(r"\| (no: .*|not needed) \|$", line) for line in rows)
    counts = f"Of {len(rows)} templates {passing} lose nothing, {mended} are repaired,"
    counts += f" {len(rows) - passing - mended} are not. Formats known: {len(FORMATS)}."
    return "\n".join([counts, "", head, "|---" * (len(COLUMNS) + 3) + "|", *rows])


def main() -> None:
    """Prints the table, or writes it into docs/audit.md."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", action="store_true", help="put it into docs/audit.md")
    asked = parser.parse_args()
    with zipfile.ZipFile(fetch_wheel(WHEEL, SHA256)) as archive:
        templates = {
            Path(name).stem: archive.read(name).decode()
            for name in sorted(archive.namelist())
            if name.endswith(".jinja") and not name.endswith("_training.jinja")
        }
    text = table(templates)
    if not asked.write:
        print(text)
        return
    page = Path(__file__).parent.parent / "docs" / "audit.md"
    before, _, rest = page.read_text(encoding="utf-8").partition(START)
    after = rest.partition(END)[2]
    page.write_text(f"{before}{START}\n\n{text}\n\n{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
