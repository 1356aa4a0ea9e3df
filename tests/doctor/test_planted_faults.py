"""Faults planted in a server, a template or a model, each blamed rightly; a sound one is not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from doctor_models import Serve, save_folder
from fake_server import FakeServer, HermesStream, hermes_complete
from served_model import arguments_first, broken, canonical, encode, silent, spelled
from smollora.doctor import Diagnosis, diagnose, read_reference
from smollora.endpoint import Endpoint
from smollora.endpoint.chat_form import reassemble
from smollora.types import EvalCase


def ask(server: FakeServer, folder: Path, cases: list[EvalCase], **more: Any) -> Diagnosis:
    with server, Endpoint(server.url) as endpoint:
        return diagnose(endpoint, read_reference(str(folder)), cases, **more)


def causes(found: Diagnosis) -> set[tuple[str, str]]:
    return {(finding.blame, finding.cause) for finding in found.findings}


# ── the fake is faithful ──────────────────────────────────────────────────────────────────────

BENCH = Path(__file__).parents[2] / "bench"
RECORDED = json.loads((BENCH / "vllm_answers.json").read_text(encoding="utf-8"))["answers"]
ANSWERS = yaml.safe_load((BENCH / "format_cases.yaml").read_text(encoding="utf-8"))
HERMES_CASES = next(f for f in ANSWERS["formats"] if f["name"] == "hermes")["cases"]


@pytest.mark.parametrize("name", HERMES_CASES)
def test_the_fake_servers_parser_answers_as_vllms_did(name: str) -> None:
    text, recorded = HERMES_CASES[name], RECORDED["hermes"][name]
    content, calls = hermes_complete(text)
    assert {"calls": calls, "content": content or ""} == recorded["complete"]
    stream = HermesStream()
    deltas = [delta for letter in text if (delta := stream.feed(letter))]
    streamed, _, pieces = reassemble(deltas)
    read = [{"name": call.name, "arguments": call.arguments} for call in pieces]
    assert {"calls": read, "content": streamed} == recorded["streamed"]


# ── nothing wrong ─────────────────────────────────────────────────────────────────────────────


def test_a_healthy_server_raises_no_alarm_over_sixty_conversations(
    serve: Serve, folder: Path, cases: list[EvalCase]
) -> None:
    found = ask(serve(), folder, cases)
    assert (found.verdict, found.findings) == ("nothing wrong", ())
    assert (found.conversations, found.wanting) == (60, 30)
    assert found.counts == {
        way: {"call": 30, "silent": 30} for way in ("complete", "streamed", "by ids")
    }
    assert (found.parity, found.same_ids, found.follow_ups) == ((60, 60), (60, 60), (8, 8))
    assert found.groups["nested arguments"]["streamed"] == {"call": 6}
    assert found.pieces is not None
    assert found.pieces > 5
    assert not found.failures


def test_a_server_without_ids_is_judged_by_its_text_and_that_is_said(
    serve: Serve, folder: Path, few: list[EvalCase]
) -> None:
    found = ask(serve(ids=False, takes_ids=False), folder, few)
    assert found.verdict == "nothing wrong"
    assert found.parity is None
    said = " ".join(found.notes)
    for word in ("does not tell its prompts", "no ids of its answers", "no prompts as token ids"):
        assert word in said


# ── templates ─────────────────────────────────────────────────────────────────────────────────


CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
"""As most small models carry it: tools and calls are lost."""


def without_calls(template: str) -> str:
    """As SmolLM3's stock template: an earlier call is an empty turn."""
    start = template.index("    {%- for call in message.tool_calls or [] -%}")
    end = template.index("    {%- endfor -%}\n", start) + len("    {%- endfor -%}\n")
    return template[:start] + template[end:]


def results_as_user(template: str) -> str:
    start = template.index('  {%- elif message.role == "tool" -%}')
    end = template.index("  {%- else -%}", start)
    turn = '    {{- "<|im_start|>user\\n" ~ result_of(message.content) ~ "<|im_end|>\\n" -}}\n'
    return template[:start] + '  {%- elif message.role == "tool" -%}\n' + turn + template[end:]


def test_a_stock_template_that_drops_calls_is_the_templates_fault(
    serve: Serve, tmp_path: Path, template: str, few: list[EvalCase]
) -> None:
    stock = without_calls(template)
    found = ask(serve(served_template=stock), save_folder(tmp_path / "stock", stock), few)
    first = found.findings[0]
    assert (found.verdict, first.cause) == ("template", "calls_lost")
    assert "the model's own template" in first.says
    assert "smollora repair" in first.fix
    assert first.cases > 5
    assert first.at is not None


def test_a_server_with_a_template_without_tools_is_the_templates_fault(
    serve: Serve, folder: Path, few: list[EvalCase]
) -> None:
    found = ask(serve(served_template=CHATML), folder, few)
    first = found.findings[0]
    assert (found.verdict, first.cause) == ("template", "tools_lost")
    assert first.fix == f"start the server with --chat-template {folder}/chat_template.jinja"
    assert found.parity is not None
    assert found.parity[0] < 3  # a system message and no tools: the same in both
    assert found.counts["complete"]["no call"] == 12
    assert found.counts["by ids"]["call"] == 12  # the model is not to blame
    assert not any(finding.blame == "model" for finding in found.findings)


def test_a_server_with_another_template_that_loses_nothing_is_told_too(
    serve: Serve, folder: Path, template: str, few: list[EvalCase]
) -> None:
    other = template.replace("You may call one or more functions", "Functions may be called")
    assert other != template
    found = ask(serve(served_template=other), folder, few)
    assert causes(found) == {("template", "other_template")}
    first = found.findings[0]
    assert "Functions may be called" in first.evidence
    assert "You may call one or more functions" in first.instead


def test_a_result_shown_as_a_user_turn_is_the_templates_fault(
    serve: Serve, folder: Path, template: str, few: list[EvalCase]
) -> None:
    found = ask(serve(served_template=results_as_user(template)), folder, few)
    first = found.findings[0]
    assert (found.verdict, first.cause) == ("template", "result_as_user")
    assert "as if the user had typed it" in first.says
    assert "<|im_start|>user" in first.evidence
    assert found.follow_ups[0] == 0
    assert found.counts["complete"]["false call"] > 0  # it calls again and again
    assert "false call" not in found.counts["by ids"]


def test_the_models_own_template_that_shows_results_as_user_turns_is_blamed(
    serve: Serve, tmp_path: Path, template: str, few: list[EvalCase]
) -> None:
    own = results_as_user(template)
    found = ask(serve(served_template=own), save_folder(tmp_path / "own", own), few)
    assert (found.verdict, found.findings[0].cause) == ("template", "result_as_user")
    assert "smollora repair" in found.findings[0].fix


def test_lost_results_are_the_templates_fault(
    serve: Serve, folder: Path, template: str, few: list[EvalCase]
) -> None:
    lossy = template.replace("result_of(message.content)", "result_of('')")
    found = ask(serve(served_template=lossy), folder, few)
    assert (found.verdict, found.findings[0].cause) == ("template", "results_lost")


def test_a_server_that_was_given_the_repaired_template_is_not_blamed(
    serve: Serve, tmp_path: Path, template: str, few: list[EvalCase]
) -> None:
    found = ask(serve(), save_folder(tmp_path / "stock", without_calls(template)), few)
    assert found.verdict == "nothing wrong"
    assert any("another template than the model's own" in note for note in found.notes)


# ── prompts ───────────────────────────────────────────────────────────────────────────────────


def test_a_token_before_every_prompt_is_the_prompts_fault(
    serve: Serve, folder: Path, few: list[EvalCase]
) -> None:
    server = serve()
    extra = server.tokenizer.convert_tokens_to_ids("<|endoftext|>")
    server.extra_prompt = (extra,)
    found = ask(server, folder, few)
    assert causes(found) == {("prompt", "added_tokens")}
    assert "'<|endoftext|>'" in found.findings[0].says


def test_another_tokenizer_is_the_prompts_fault(
    serve: Serve, folder: Path, few: list[EvalCase]
) -> None:
    server = serve()
    render = server.render

    def letters(body: dict[str, Any]) -> list[int]:
        """The last word spelled out: the same text, other ids."""
        ids = render(body)
        tail = server.tokenizer.decode(ids[-2:])
        return [*ids[:-2], *(i for letter in tail for i in encode(server.tokenizer, letter))]

    server.render = letters  # type: ignore[method-assign]
    found = ask(server, folder, few)
    assert causes(found) == {("prompt", "other_tokens")}


# ── parsers ───────────────────────────────────────────────────────────────────────────────────


def test_a_wrong_parser_name_is_the_parsers_fault(
    serve: Serve, folder: Path, few: list[EvalCase]
) -> None:
    found = ask(serve(parser="mistral"), folder, few)
    assert causes(found) == {("parser", "lost")}
    first = found.findings[0]
    assert (first.cases, first.of) == (12, 12)
    assert first.fix.endswith("--enable-auto-tool-choice --tool-call-parser hermes")
    assert found.counts["complete"]["parser lost"] == 12
    assert found.counts["streamed"]["parser lost"] == 12
    assert found.counts["by ids"]["call"] == 12


def test_a_wrong_parser_is_found_without_ids(
    serve: Serve, folder: Path, few: list[EvalCase]
) -> None:
    found = ask(serve(parser="mistral", ids=False, takes_ids=False), folder, few)
    assert found.verdict == "parser"
    assert found.counts["complete"]["parser lost"] == 12


@pytest.mark.parametrize("takes_ids", [True, False])
def test_a_server_without_a_parser_refuses_tools_and_the_parser_is_to_blame(
    serve: Serve, folder: Path, few: list[EvalCase], takes_ids: bool
) -> None:
    found = ask(serve(parser="none", takes_ids=takes_ids), folder, few)
    assert (found.verdict, found.findings[0].cause) == ("parser", "no_parser")
    assert "--tool-call-parser hermes" in found.findings[0].fix


@pytest.mark.parametrize(
    ("cause", "edit"),
    [
        ("encoded_twice", json.dumps),
        ("changed", lambda arguments: arguments.replace("a", "b")),
        ("corrupt", lambda arguments: arguments[:-1]),
    ],
)
def test_arguments_that_the_server_changes_are_the_parsers_fault(
    serve: Serve, folder: Path, few: list[EvalCase], cause: str, edit: Any
) -> None:
    def edited(answer: dict[str, Any]) -> dict[str, Any]:
        for call in answer["choices"][0]["message"]["tool_calls"]:
            call["function"]["arguments"] = edit(call["function"]["arguments"])
        return answer

    found = ask(serve(edit=edited), folder, few)
    assert found.verdict == "parser"
    assert ("parser", cause) in causes(found)


def test_a_call_under_another_finish_reason_is_the_parsers_fault(
    serve: Serve, folder: Path, few: list[EvalCase]
) -> None:
    def edited(answer: dict[str, Any]) -> dict[str, Any]:
        answer["choices"][0]["finish_reason"] = "stop"
        return answer

    assert causes(ask(serve(edit=edited), folder, few)) == {("parser", "finish_reason")}


# ── streaming ─────────────────────────────────────────────────────────────────────────────────


def test_arguments_before_the_name_are_lost_in_streaming_alone(
    serve: Serve, folder: Path, few: list[EvalCase]
) -> None:
    found = ask(serve(write=arguments_first), folder, few)
    assert causes(found) == {("streaming", "arguments_first")}
    assert found.counts["complete"]["call"] == 12
    assert found.counts["streamed"]["parser lost"] == 12
    assert "stream: false" in found.findings[0].fix


def test_arguments_before_the_name_are_found_without_ids(
    serve: Serve, folder: Path, few: list[EvalCase]
) -> None:
    found = ask(serve(write=arguments_first, ids=False, takes_ids=False), folder, few)
    assert causes(found) == {("streaming", "corrupt")}


def test_deltas_that_cannot_be_put_together_are_streamings_fault(
    serve: Serve, folder: Path, few: list[EvalCase]
) -> None:
    def without_id(delta: dict[str, Any]) -> dict[str, Any]:
        parts = [{k: v for k, v in p.items() if k != "id"} for p in delta.get("tool_calls", ())]
        return {**delta, **({"tool_calls": parts} if parts else {})}

    found = ask(serve(mangle=without_id), folder, few)
    assert causes(found) == {("streaming", "broken_deltas")}


def test_words_that_a_stream_drops_are_streamings_fault(
    serve: Serve, folder: Path, few: list[EvalCase]
) -> None:
    def mute(delta: dict[str, Any]) -> dict[str, Any]:
        return {k: v for k, v in delta.items() if k != "content"}

    assert causes(ask(serve(mangle=mute), folder, few)) == {("streaming", "words_lost")}


# ── models ────────────────────────────────────────────────────────────────────────────────────


def test_a_model_that_spells_its_delimiters_is_the_models_fault_although_calls_arrive(
    serve: Serve, folder: Path, few: list[EvalCase]
) -> None:
    found = ask(serve(write=spelled), folder, few, max_tokens=2048)
    assert causes(found) == {("model", "spelled_out")}
    assert found.counts["complete"]["spelled out"] == 12
    assert "ordinary tokens" in found.findings[0].says


def test_a_model_that_never_calls_is_the_models_fault(
    serve: Serve, folder: Path, few: list[EvalCase]
) -> None:
    found = ask(serve(write=silent), folder, few)
    assert causes(found) == {("model", "no_call")}
    assert found.counts["streamed"] == {"silent": 12, "no call": 12}


def test_broken_json_is_malformed_and_the_models_fault(
    serve: Serve, folder: Path, few: list[EvalCase]
) -> None:
    found = ask(serve(write=broken), folder, few)
    assert causes(found) == {("model", "malformed")}
    assert found.counts["complete"]["malformed"] == 12


def test_a_stop_token_that_the_server_passes_over_is_named(
    serve: Serve, folder: Path, few: list[EvalCase]
) -> None:
    junk = "\n<|im_start|>user\nThanks.<|im_end|>\n<|im_start|>assistant\nYou are welcome."
    found = ask(serve(after_stop=junk, stops=frozenset({0})), folder, few)
    first = found.findings[0]
    assert (found.verdict, first.cause) == ("model", "stop_ignored")
    assert "generation_config.json" in first.fix
    assert "<|im_end|>" in first.says
    assert first.at is not None


def test_a_model_without_stop_token_never_ends(
    serve: Serve, folder: Path, few: list[EvalCase]
) -> None:
    server = serve()
    scripted = server.model

    def on_and_on(prompt: Any) -> Any:
        ids = list(scripted(prompt))[:-1]
        while True:
            yield from ids
            ids = encode(server.tokenizer, " and so on")

    server.model = on_and_on
    found = ask(server, folder, few, max_tokens=300)
    assert ("model", "never_ends") in causes(found)
    assert found.verdict == "model"


def test_one_missed_call_in_twelve_is_no_fault(
    serve: Serve, folder: Path, few: list[EvalCase]
) -> None:
    missed = next(case.expected for case in few if case.expected)

    def mostly(tokenizer: Any, calls: Any) -> list[int]:
        return (silent if tuple(calls) == missed else canonical)(tokenizer, calls)

    found = ask(serve(write=mostly), folder, few)
    assert found.verdict == "nothing wrong"
    assert found.counts["complete"]["no call"] == 1
