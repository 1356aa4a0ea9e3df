"""Faults planted in a model, each of which has one cheapest cure: the verdict must name it.

Templates, tokenizer, prompts, generation, grammar and scoring are real; the weights are scripted.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from scripted_weights import ScriptedWeights
from smollora.templates.engine import load_shipped
from tiny_models import TAGS
from tiny_runs import CHATML, CITIES, WEATHER, smollora, write_model, write_rows

REQUEST, OTHER, PLAIN = "What is the weather in {}?", "Who is the mayor of {}?", "Say hi to {}."
WORDS = "I can tell you that without a tool."
SOUND = load_shipped("chatml_tools")


def cases() -> list[dict[str, Any]]:
    """Eight requests that want a call, eight beside an unfitting tool, eight without tools."""
    made = []
    for number, city in enumerate(CITIES):
        for category, request, tools, calls in (
            ("single", REQUEST, [WEATHER], True),
            ("irrelevant", OTHER, [WEATHER], False),
            ("no_tools", PLAIN, [], False),
        ):
            expected = [{"name": "get_weather", "arguments": {"city": city}}] if calls else []
            made.append(
                {
                    "id": f"{category}-{number}",
                    "category": category,
                    "messages": [{"role": "user", "content": request.format(city)}],
                    "tools": tools,
                    "expected": expected,
                }
            )
    return made


def written(city: str) -> str:
    """A right call, as the hermes form has it."""
    body = {"name": "get_weather", "arguments": {"city": city}}
    return f"<tool_call>\n{json.dumps(body)}\n</tool_call>"


Answer = Callable[[str, str, bool], tuple[str, ...]]
"""(prompt, city where a call is wanted else "", trained) to favourite and second answers."""


def sound(prompt: str, city: str, trained: bool) -> tuple[str, ...]:
    """Calls when it is shown the tool."""
    return (written(city),) if city and "get_weather" in prompt else (WORDS,)


def needs_examples(prompt: str, city: str, trained: bool) -> tuple[str, ...]:
    """Calls once it has seen how that is done."""
    seen = '{"name": "library_hours", "arguments"' in prompt
    return (written(city),) if city and seen and "get_weather" in prompt else (WORDS,)


def writes_python(prompt: str, city: str, trained: bool) -> tuple[str, ...]:
    """Decides rightly, and writes Python's repr where JSON belongs."""
    right = sound(prompt, city, trained)[0]
    return right.replace('"', "'"), right


def needs_training(prompt: str, city: str, trained: bool) -> tuple[str, ...]:
    """Calls after training; before, it never does, though it could write one if it had to."""
    return (written(city),) if city and trained else (WORDS, written(city or "Oslo"))


def trained_to_write_python(prompt: str, city: str, trained: bool) -> tuple[str, ...]:
    """Calls after training, in Python's repr."""
    return writes_python(prompt, city, trained) if trained else (WORDS,)


def never(prompt: str, city: str, trained: bool) -> tuple[str, ...]:
    """Talks."""
    return (WORDS,)


def calls_for_everything(prompt: str, city: str, trained: bool) -> tuple[str, ...]:
    """Calls whenever a tool is there."""
    return (written(city or "Oslo"),) if "get_weather" in prompt else (WORDS,)


Plant = Callable[..., Path]


@pytest.fixture
def plant(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, one_thread: None) -> Plant:
    """A model folder whose weights are scripted."""

    def make(answer: Answer, *, template: str = CHATML) -> Path:
        folder = write_model(tmp_path / "model", template=template, tags=TAGS)

        def load(path: Path, adapter: Path | None) -> ScriptedWeights:
            from smollora.models import load_tokenizer

            tokenizer = load_tokenizer(folder)

            def script(prompt: list[int]) -> tuple[str, ...]:
                text = tokenizer.decode(prompt)
                city = next((c for c in CITIES if text.rfind(REQUEST.format(c)) > 0), "")
                return answer(text, city, path != folder or adapter is not None)

            return ScriptedWeights(tokenizer, script)

        monkeypatch.setattr("smollora.cures.ways.load_with_adapter", load)
        return folder

    return make


def ask(folder: Path, tmp_path: Path, *more: object) -> tuple[int, dict[str, Any], str]:
    """(exit code, cures.json, standard error)."""
    file = write_rows(tmp_path / "cases.jsonl", cases())
    ended = smollora(
        *("doctor", folder, "--cures", "--cases", file, "--max-tokens", 80, "--json", *more)
    )
    return ended.code, json.loads(ended.out) if ended.out else {}, ended.err


def merged(tmp_path: Path) -> Path:
    """A trained model's folder: tokenizer and template are all that is read of it."""
    return write_model(tmp_path / "merged", template=SOUND, tags=TAGS)


def calls(found: dict[str, Any], cure: str) -> tuple[int, int]:
    """(calls made where one is wanted, false calls)."""
    rates = found["lines"][cure]["rates"]
    return rates["emission"]["k"], rates["false_call"]["k"]


def test_a_sound_model_under_a_sound_template_has_nothing_to_cure(
    plant: Plant, tmp_path: Path
) -> None:
    code, found, err = ask(plant(sound, template=SOUND), tmp_path)
    assert (code, found["verdict"], found["enough"]) == (0, "nothing to cure", "stock"), err
    assert found["lines"]["repaired"]["same_as"] == "stock"
    assert calls(found, "stock") == calls(found, "repaired") == (8, 0)


def test_whose_fault_is_the_template_is_not_sent_to_train(plant: Plant, tmp_path: Path) -> None:
    code, found, err = ask(plant(sound), tmp_path, "--adapter", merged(tmp_path))
    assert (code, found["verdict"], found["enough"]) == (0, "template", "repaired"), err
    assert "not the model" in found["says"] and "smollora repair" in found["fix"]
    assert "tools_reach_prompt" in found["template_faults"]
    assert calls(found, "stock") == (0, 0) and calls(found, "repaired") == (8, 0)
    assert found["lines"]["trained"]["enough"]


def test_a_model_that_needs_to_see_it_done_gets_examples(plant: Plant, tmp_path: Path) -> None:
    code, found, err = ask(plant(needs_examples), tmp_path)
    assert (code, found["verdict"], found["enough"]) == (0, "examples", "examples"), err
    assert calls(found, "repaired") == (0, 0) and calls(found, "examples") == (8, 0)
    lines = found["lines"]
    assert lines["examples"]["prompt_tokens"] > lines["repaired"]["prompt_tokens"]


def test_a_model_that_writes_broken_calls_gets_a_grammar(plant: Plant, tmp_path: Path) -> None:
    code, found, err = ask(plant(writes_python), tmp_path)
    assert (code, found["verdict"], found["enough"]) == (0, "grammar", "grammar"), err
    rates = found["lines"]["repaired"]["rates"]
    assert (rates["emission"]["k"], rates["valid_json"]["k"]) == (8, 0)
    rates = found["lines"]["grammar"]["rates"]
    assert (rates["valid_json"]["k"], rates["right_call"]["k"], rates["false_call"]["k"]) == (
        *(8, 8),
        0,
    )


def test_a_model_that_must_be_trained_is_sent_to_train(plant: Plant, tmp_path: Path) -> None:
    folder = plant(needs_training)
    code, found, err = ask(folder, tmp_path, "--adapter", merged(tmp_path))
    assert (code, found["verdict"], found["enough"]) == (0, "training", "trained"), err
    # a grammar does not decide, and a required call is made where words are wanted
    assert calls(found, "grammar") == (0, 0)
    assert calls(found, "required") == (8, 8) and not found["lines"]["required"]["enough"]


def test_a_model_that_was_taught_to_decide_and_not_to_write_gets_both(
    plant: Plant, tmp_path: Path
) -> None:
    folder, tuned = plant(trained_to_write_python), merged(tmp_path)
    code, found, err = ask(folder, tmp_path, "--adapter", tuned)
    expected = (0, "training and grammar", "trained_grammar")
    assert (code, found["verdict"], found["enough"]) == expected, err
    assert calls(found, "trained") == (8, 0) and not found["lines"]["trained"]["enough"]
    rates = found["lines"]["trained_grammar"]["rates"]
    assert (rates["right_call"]["k"], rates["false_call"]["k"]) == (8, 0)
    # without the last line the verdict must wait for it
    out, every = tmp_path / "out", ("stock", "repaired", "examples", "grammar", "trained")
    asked = [word for cure in every for word in ("--cure", cure)]
    code, found, err = ask(folder, tmp_path, "--adapter", tuned, "--out", out, *asked)
    assert (code, found["verdict"]) == (0, "unfinished") and "trained_grammar" in found["fix"]


def test_without_a_trained_model_training_is_what_is_left(plant: Plant, tmp_path: Path) -> None:
    code, found, err = ask(plant(needs_training), tmp_path)
    assert (code, found["verdict"], found["enough"]) == (1, "training is left", None)
    assert "fell short" in err and "smollora run" in err


def test_a_model_that_training_did_not_help_is_said_to_have_no_cure(
    plant: Plant, tmp_path: Path
) -> None:
    code, found, _ = ask(plant(never), tmp_path, "--adapter", merged(tmp_path))
    assert (code, found["verdict"], found["enough"]) == (1, "nothing is enough", None)


def test_a_model_that_calls_for_everything_is_not_cured_by_its_template(
    plant: Plant, tmp_path: Path
) -> None:
    code, found, _ = ask(plant(calls_for_everything), tmp_path)
    assert (code, found["verdict"]) == (1, "training is left")
    assert calls(found, "repaired") == (8, 8)
    assert "the template is at fault as well (8 calls more" in found["says"]


def test_where_every_request_wants_a_call_a_required_one_is_enough(
    plant: Plant, tmp_path: Path
) -> None:
    folder = plant(lambda prompt, city, trained: (WORDS, written(city)))
    rows = [row for row in cases() if row["expected"]]
    file = write_rows(tmp_path / "calls.jsonl", rows)
    ended = smollora("doctor", folder, "--cures", "--cases", file, "--max-tokens", 80, "--json")
    found = json.loads(ended.out)
    assert (ended.code, found["verdict"]) == (0, "required")
    assert found["notes"] == ["no case wants words, so nothing here says what calls for everything"]


def test_cures_asked_one_at_a_time_make_the_same_verdict(plant: Plant, tmp_path: Path) -> None:
    folder, out = plant(needs_examples), tmp_path / "out"
    verdicts = []
    for cure in ("stock", "examples", "repaired", "grammar"):
        code, found, err = ask(folder, tmp_path, "--cure", cure, "--out", out)
        assert code == 0, err
        verdicts.append(found["verdict"])
    assert verdicts == ["unfinished", "unfinished", "examples", "examples"]
    assert list(found["lines"]) == ["stock", "repaired", "examples", "grammar"]
    assert json.loads((out / "cures.json").read_text()) == found
    records = [json.loads(line) for line in (out / "cures_records.jsonl").open()]
    assert len(records) == 4 * 24 and len({(r["model"], r["case_id"]) for r in records}) == 4 * 24


def test_the_verdict_stands_first_on_a_terminal(plant: Plant, tmp_path: Path) -> None:
    file = write_rows(tmp_path / "cases.jsonl", cases())
    ended = smollora("doctor", plant(sound), "--cures", "--cases", file, "--max-tokens", 80)
    assert ended.code == 0 and ended.out.startswith("verdict: template\n")
    assert "8/8 (68%-100%)" in ended.out  # Wilson's interval of 8 of 8
    assert ended.out.count("\n") > 10
