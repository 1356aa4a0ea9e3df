"""Starter data: authored cases -> Hermes-V1 rows, as `prepare` reads the real data set.

In: `authored/*.jsonl` (training) and `authored/heldout/*.jsonl` (measuring only: domains and tools
that training never sees). People edit those: first a domain's tools, then its cases; FORMAT.md
beside them lists the keys. Out: dicts with the keys of NousResearch/Hermes-Function-Calling-V1.
Nothing is random but the choice of tool lists, which the seed fixes.

The surprise: one authored request becomes several rows, because the *tool list* decides the right
answer. With the needed tool offered the row calls it; with that tool taken out of the list the same
request is answered in words. Rows that share a tool list stand together, so that training computes
their common prompt once.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib import resources
from typing import Any, Literal

Split = Literal["train", "heldout"]
Record = dict[str, Any]

PREAMBLE = (
    "You are a function calling AI model. You are provided with function signatures within"
    " <tools> </tools> XML tags. You may call one or more functions to assist with the user query."
    " Don't make assumptions about what values to plug into functions.\n<tools>\n{tools}"
    "\n</tools>\nFor each function call return a json object with function name and arguments"
    " within <tool_call> </tool_call> tags with the following schema:\n<tool_call>\n"
    "{{'arguments': <args-dict>, 'name': <function-name>}}\n</tool_call>\n"
)
"""The system text of Hermes-Function-Calling-V1, into which the tools are written."""

SYSTEM_TEXTS = (
    "You are a helpful assistant.",
    "You are a concise assistant. Answer in one or two sentences.",
    "You are the assistant of a small company. Be polite and brief.",
    "You help users with everyday tasks.",
    "Answer the user. Use a tool only when it fits the request.",
    "You are an assistant with access to tools.",
    "Be friendly, be short.",
    "You are a support agent. If you cannot do something, say so plainly.",
)


GENERAL_OFFERS = 80
"""Tool lists that general rows are put beside: few, so that many rows share one prompt."""
FORM_BESIDE_TOOLS = 3
"""Of so many cases with a demand of form, one is also put beside tools, once."""


LIST_SIZES = (1, 1, 2, 2, 3, 3, 4, 5)
"""Tools on one training list, drawn evenly."""
MOST_TOOLS = 4
"""Tools on a list for cases that need several."""
LIST_CASES = 5
"""Cases of a list, but for what is rare: other tools teach more than more requests for the same."""
SEVERAL_CALLS = 2
"""Requests for several calls at once that a list has beside those, where it fits so many."""
HARD_CASES = 2
"""Calls that are easily written wrong that a list has at least, where it fits so many."""
GLUED = re.compile(r"(?<![\w.,:])\d+(?:\.\d+)?(?:[^\W\d_]|°|')")
"""A number with a unit glued to it: 5kg, 20°, 6'2. (A price is glued the other way round: $5.)"""
NEAR_ONE_IN = 5
"""A request whose tool was taken out of the list, for every so many rows of the list."""
KNOWN_ONE_IN = 1.4
"""One more whose answer is a figure, worked out or known, for every so many rows of the list in a
domain of nothing else; in others as many fewer as such requests are fewer."""
FOREIGN_CASES = 1
"""Requests of another domain that a list has; declined too."""


@dataclass(frozen=True)
class Domain:
    """One authored file."""

    name: str
    tools: Mapping[str, Record]
    cases: tuple[Record, ...]

    @cached_property
    def declined(self) -> tuple[tuple[set[str], Record], ...]:
        """(tools that can serve it, case) of each that is declined where none of them is on offer.

        Found once: every tool list of every domain draws from them.
        """
        return tuple((_servers(case), case) for case in self.cases if "no" in case)


def load_domains(split: Split) -> tuple[Domain, ...]:
    """The authored files of a split, in alphabetical order."""
    folder = resources.files(__package__) / "authored"
    if split == "heldout":
        folder = folder / "heldout"
    domains = []
    for entry in sorted(folder.iterdir(), key=lambda item: item.name):
        if not entry.name.endswith(".jsonl"):
            continue
        rows = [json.loads(line) for line in entry.read_text(encoding="utf-8").splitlines() if line]
        tools = {row["tool"]["name"]: row["tool"] for row in rows if "tool" in row}
        cases = tuple(row for row in rows if "tool" not in row)
        domains.append(Domain(entry.name.removesuffix(".jsonl"), tools, cases))
    return tuple(domains)


def build_rows(split: Split, *, seed: int = 7, share: float = 1.0) -> Iterator[Record]:
    """The split's tool rows (call, decline, ask) in Hermes-V1 form, deterministic for a seed.

    Args:
        split: "train" or "heldout".
        seed: chooses tool lists.
        share: share of the tool lists that are used (whole lists: rows keep sharing prompts).
    """
    dice = random.Random(seed)
    domains = [domain for domain in load_domains(split) if domain.tools]
    count = 0
    for domain in domains:
        foreign = [case for other in domains if other is not domain for _, case in other.declined]
        lists = _tool_lists(domain, dice) if split == "train" else _heldout_lists(domain, dice)
        for names, cases in lists:
            offered = [domain.tools[name] for name in names]
            system = dice.choice(SYSTEM_TEXTS) if dice.random() < 0.3 else ""
            amount = int(dice.random() < 0.25) if split == "heldout" else FOREIGN_CASES
            others = dice.sample(foreign, min(amount, len(foreign)))
            if dice.random() >= share:
                continue
            for kind, case in [*cases, *(("irrelevant", case) for case in others)]:
                count += 1
                yield _record(f"{split}-{count:05d}", domain.name, kind, case, offered, system)


def build_general_rows(split: Split, *, seed: int = 7, with_tools: int = 2) -> Iterator[Record]:
    """General rows: each request once without tools and `with_tools` times beside tools it does not
    need; of those that ask for a form, one in FORM_BESIDE_TOOLS stands beside tools, once.
    """
    dice = random.Random(seed + 1)
    domains = load_domains(split)
    offers = [
        (names, [domain.tools[name] for name in names])
        for domain in domains
        if domain.tools
        for names, _ in _tool_lists(domain, random.Random(seed))
        if len(names) <= 2
    ]
    offers = dice.sample(offers, min(GENERAL_OFFERS, len(offers)))
    general = [case for domain in domains if not domain.tools for case in domain.cases]
    count = 0
    for number, case in enumerate(general):
        form = has_form(case)
        # A drawn system text ("one or two sentences") would speak against the form.
        drawn = not form and dice.random() < 0.15
        system = dice.choice(SYSTEM_TEXTS) if drawn else case.get("s", "")
        lists = int(number % FORM_BESIDE_TOOLS == 0) if form else with_tools
        count += 1
        yield _record(f"{split}-general-{count:05d}", "general", "no_tools", case, [], system)
        for _, offered in dice.sample(offers, min(lists, with_tools)):
            count += 1
            row_id = f"{split}-general-{count:05d}"
            yield _record(row_id, "general", "needless", case, offered, case.get("s", ""))


def has_form(case: Record) -> bool:
    """True for a case whose answers must keep to a form that `checks` states."""
    return "checks" in case or any("checks" in turn for turn in case.get("turns", []))


Named = tuple[str, Record]


def _needs(case: Record) -> set[str]:
    calls = list(case.get("c", []))
    for turn in case.get("turns", []):
        calls.extend(turn.get("c", []))
    return {name for name, _ in calls}


def _servers(case: Record) -> set[str]:
    """Tools of its domain that can serve it."""
    return _needs(case) | set(case.get("could", []))


def _kind(case: Record) -> str:
    if "turns" in case:
        return "multi_turn"
    if "near" in case:
        return "near_miss"
    if "ask" in case:
        return "missing"
    return "parallel" if len(case["c"]) > 1 else "single"


def _fits(case: Record, names: set[str]) -> bool:
    """True if this tool list makes the authored answer the right one."""
    if "near" in case:
        return bool(set(case["near"]) & names)
    if "ask" in case:
        return case["ask"] in names
    return _needs(case) <= names and not set(case.get("could", [])) & names


def _absent(
    declined: Sequence[tuple[set[str], Record]],
    names: set[str],
    dice: random.Random,
    amount: int,
) -> list[Record]:
    """Call cases that no tool of the list can serve; their right answer is the authored decline."""
    able = [case for servers, case in declined if servers.isdisjoint(names)]
    return dice.sample(able, min(amount, len(able)))


def _tool_lists(domain: Domain, dice: random.Random) -> list[tuple[tuple[str, ...], list[Named]]]:
    """Tool lists of one domain with the cases that each decides.

    Lists are made twice: the tools that a case needs together, gathered to at most MOST_TOOLS; and
    all tools, shuffled and cut by LIST_SIZES. Every case then stands in one list that fits it,
    drawn by chance: beside tools that it must not be confused with, and with a prompt that many
    rows share. Twins stand in the same list, so that nothing but the request decides. Of a list
    with more than LIST_CASES, so many are drawn.
    """
    lists = [*_lists_for_several(domain), *_cut(list(domain.tools), dice)]
    groups: list[list[list[Named]]] = [[] for _ in lists]
    for group in _with_twins(domain.cases):
        fitting = [
            index
            for index, offer in enumerate(lists)
            if all(_fits(case, set(offer)) for case in group)
        ]
        if not fitting:
            lists.append(_list_for(group[-1], domain, dice, (0, 1, 2)))
            groups.append([])
            fitting = [len(lists) - 1]
        groups[dice.choice(fitting)].append([(_kind(case), case) for case in group])
    known = [each for each in domain.declined if any(c.isdigit() for c in each[1]["no"])]
    share = len(known) / max(1, len(domain.declined))
    chosen = []
    for offer, found in zip(lists, groups, strict=True):
        named = _drawn(found, dice)
        absent = _absent(domain.declined, set(offer), dice, len(named) // NEAR_ONE_IN + 1)
        more = _absent(known, set(offer), dice, round(len(named) * share / KNOWN_ONE_IN))
        absent += [case for case in more if case not in absent]
        names = list(offer)
        dice.shuffle(names)
        if named:
            chosen.append((tuple(names), named + [("near_absent", case) for case in absent]))
    return chosen


def _drawn(groups: list[list[Named]], dice: random.Random) -> list[Named]:
    """LIST_CASES of a list's cases and SEVERAL_CALLS with several calls at once, where there are so
    many; among them, whatever their number, all that is rare: twins, longer conversations, texts of
    several lines, requests that are not English; then HARD_CASES at least of what is easily written
    wrong. In their order.
    """
    chosen = {n for n, group in enumerate(groups) if len(group) > 1 or _is_rare(group[0][1])}
    room = max(0, LIST_CASES - sum(len(groups[number]) for number in chosen))
    others = [number for number in range(len(groups)) if number not in chosen]
    dice.shuffle(others)
    several = [number for number in others if groups[number][0][0] == "parallel"][:SEVERAL_CALLS]
    rest = [number for number in others if number not in several]
    hard = [number for number in rest if _is_hard_to_write(groups[number][0][1])]
    hard = hard[: max(HARD_CASES, room)]
    plain = [number for number in rest if number not in hard][: max(0, room - len(hard))]
    chosen.update(several, hard, plain)
    return [named for number, group in enumerate(groups) if number in chosen for named in group]


def _is_rare(case: Record) -> bool:
    """True for a longer conversation, another language, and a call with lines in an argument."""
    calls = case.get("c", [])
    lines = any("\\n" in json.dumps(arguments) for _, arguments in calls)
    return lines or "turns" in case or "lang" in case


def _is_hard_to_write(case: Record) -> bool:
    """True for a call with an array or an object in it, and for a number that the request glues to
    its unit (`5kg`): a model that is still learning breaks their JSON.
    """
    values = [value for _, arguments in case.get("c", []) for value in arguments.values()]
    nested = any(isinstance(value, list | dict) for value in values)
    number = any(type(value) in (int, float) for value in values)
    return nested or (number and bool(GLUED.search(case.get("u", ""))))


def _with_twins(cases: Sequence[Record]) -> list[list[Record]]:
    """The cases; one that asks back or is a near miss together with the twin that follows it."""
    groups: list[list[Record]] = []
    for case in cases:
        if case.get("twin"):
            groups[-1].append(case)
        else:
            groups.append([case])
    return groups


def _lists_for_several(domain: Domain) -> list[tuple[str, ...]]:
    """Lists for the cases that need several tools, as few as MOST_TOOLS allows."""
    lists: list[set[str]] = []
    for case in domain.cases:
        needs = _needs(case)
        if len(needs) < 2 or any(_fits(case, offer) for offer in lists):
            continue
        roomy = [o for o in lists if len(o | needs) <= MOST_TOOLS and _fits(case, o | needs)]
        if roomy:
            roomy[0].update(needs)
        else:
            lists.append(set(needs))
    order = list(domain.tools).index
    return [tuple(sorted(offer, key=order)) for offer in lists]


def _cut(names: list[str], dice: random.Random) -> list[tuple[str, ...]]:
    """The names, shuffled and cut into lists of LIST_SIZES."""
    dice.shuffle(names)
    lists: list[tuple[str, ...]] = []
    start = 0
    while start < len(names):
        size = dice.choice(LIST_SIZES)
        lists.append(tuple(names[start : start + size]))
        start += size
    return lists


def _heldout_lists(
    domain: Domain, dice: random.Random
) -> list[tuple[tuple[str, ...], list[Named]]]:
    """Every held-out case once, in a list of its own of 2 to 5 tools; a quarter of the calls again
    with the needed tool taken out.
    """
    chosen: list[tuple[tuple[str, ...], list[Named]]] = []
    for number, case in enumerate(domain.cases):
        offer = _list_for(case, domain, dice, (1, 2, 3, 4))
        chosen.append((offer, [(_kind(case), case)]))
        if "no" in case and number % 4 == 0:
            able = [n for n in domain.tools if n not in _servers(case)]
            absent = tuple(dice.sample(able, min(len(able), dice.choice((1, 2, 3, 4)))))
            chosen.append((absent, [("near_absent", case)]))
    return chosen


def _list_for(
    case: Record, domain: Domain, dice: random.Random, extra_tools: Sequence[int]
) -> tuple[str, ...]:
    """A list with the tools that a case is about and some more of its domain."""
    wanted = (
        set(case.get("near", [])[:1]) | ({case["ask"]} if "ask" in case else set()) | _needs(case)
    )
    rest = [n for n in domain.tools if n not in wanted and n not in case.get("could", [])]
    extra = dice.sample(rest, min(len(rest), dice.choice(extra_tools)))
    names = [*wanted, *extra]
    names.sort(key=list(domain.tools).index)
    dice.shuffle(names)
    return tuple(names)


def _record(
    row_id: str, domain: str, kind: str, case: Record, offered: Sequence[Record], system: str
) -> Record:
    tools = [{"type": "function", "function": tool} for tool in offered]
    texts = [system] if system else []
    if tools:
        texts.append(PREAMBLE.format(tools=json.dumps(tools, ensure_ascii=False)))
    turns: list[Record] = [{"from": "system", "value": "\n\n".join(texts)}] if texts else []
    for turn in _turns(kind, case):
        turns.extend(_hermes_turns(turn))
    return {
        "id": row_id,
        "conversations": turns,
        "tools": json.dumps(tools, ensure_ascii=False) if tools else "null",
        "category": domain,
        "subcategory": kind,
        "task": case.get("lang", "en"),
    }


def _turns(kind: str, case: Record) -> list[Record]:
    """The authored case as a list of {"u"}, {"c", "r"} and {"a"} steps."""
    if "turns" in case:
        return list(case["turns"])
    first = {"u": case["u"]}
    if kind in ("irrelevant", "near_absent"):
        return [first, {"a": case["no"]}]
    if "ask" in case:
        steps = [first, {"a": case["a"]}]
        return [*steps, {"u": case["u2"]}, {"c": case["c"]}] if "u2" in case else steps
    if "c" in case:
        call = {"c": case["c"], **({"r": case["r"]} if "r" in case else {})}
        return [first, call, {"a": case["a"]}] if "r" in case else [first, call]
    return [first, {"a": case["a"]}]


def _hermes_turns(step: Record) -> Iterator[Record]:
    if "u" in step:
        yield {"from": "human", "value": step["u"]}
    elif "a" in step:
        yield {"from": "gpt", "value": step["a"]}
    else:
        blocks = [
            json.dumps({"arguments": arguments, "name": name}, ensure_ascii=False)
            for name, arguments in step["c"]
        ]
        yield {
            "from": "gpt",
            "value": "\n".join(f"<tool_call>\n{block}\n</tool_call>" for block in blocks),
        }
        if step.get("r"):
            results = [
                json.dumps({"name": name, "content": result}, ensure_ascii=False)
                for (name, _), result in zip(step["c"], step["r"], strict=True)
            ]
            yield {
                "from": "tool",
                "value": "\n".join(
                    f"<tool_response>\n{text}\n</tool_response>" for text in results
                ),
            }
