"""How fast a probe's prompts are answered: smollora, transformers' pipeline and a server, in turn.

usage: python bench/probe_speed.py MODEL_FOLDER [--limit 4] [--max-new-tokens 96] [--rounds 2]
       python bench/probe_speed.py MODEL_FOLDER --count --limit 1000
       python bench/probe_speed.py MODEL_FOLDER --endpoint http://127.0.0.1:8000

The prompts are the probe's own (starter:probe, --limit of each category), the same ids for all:

  smollora   `LocalGenerator` over all prompts, as `smollora probe` uses it
  pipeline   `transformers.pipeline("text-generation")`, one prompt at a time, greedy
  served     with --endpoint: the server's own batching (`ServedGenerator`, 16 requests at a time)

A server remembers prompts between rounds (vLLM's prefix cache), which no other way does; the cache
is emptied before each of its rounds where the server allows it (vLLM: VLLM_SERVER_DEV_MODE=1), and
the line says whether.

--count prints how many tokens the prompts have, and how many with what they share once, and stops.
Every way answers in each round, one after the other (smollora, pipeline, served, smollora, ...).
Prints one JSON object a line. The last one holds medians, ratios, and how many answers have the ids
of the pipeline; for those that have not, how far apart the two likeliest tokens were where they
part (logits, of a pass over prompt and answer so far): a near-tie in bf16 is decided by rounding,
and the order of a sum is enough to turn it. Processor time is that of this process, so a server has
none here; wall time means something on a machine that does nothing else.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import time
import urllib.request
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from smollora.endpoint import Endpoint, ServedGenerator
from smollora.generate import local_generator
from smollora.generate.prompt_tree import lay_out, order_for_sharing
from smollora.generate.slot_run import chunk_of
from smollora.models import load_model, open_renderer
from smollora.probe.run import find_cases

Ids = list[tuple[int, ...]]


def pipeline_way(
    model: Any, tokenizer: Any, prompts: Sequence[Sequence[int]], most: int
) -> Callable[[], Ids]:
    """One prompt at a time, as a first script does it."""
    from transformers import pipeline

    generate = pipeline("text-generation", model=model, tokenizer=tokenizer)
    texts = [tokenizer.decode(list(prompt)) for prompt in prompts]
    for prompt, text in zip(prompts, texts, strict=True):
        assert tuple(tokenizer.encode(text, add_special_tokens=False)) == tuple(prompt)

    def answer() -> Ids:
        made = []
        for prompt, text in zip(prompts, texts, strict=True):
            (found,) = generate(
                text,
                max_new_tokens=most,
                do_sample=False,
                return_tensors=True,
                add_special_tokens=False,
            )
            made.append(tuple(found["generated_token_ids"])[len(prompt) :])
        return made

    return answer


def forget_prompts(url: str) -> bool:
    """Empty the server's prefix cache; False where it cannot be asked to."""
    request = urllib.request.Request(f"{url}/reset_prefix_cache", method="POST")
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def chunk_sizes(prompts: Sequence[Sequence[int]]) -> list[int]:
    """Tokens of each tree that `LocalGenerator` computes."""
    queue = deque(order_for_sharing(prompts))
    sizes = []
    while queue:
        part = [prompts[index] for index in chunk_of(prompts, queue, most=96)]
        sizes.append(len(lay_out(part).token_ids))
    return sizes


def margin_where_they_part(
    model: Any, prompt: Sequence[int], left: Sequence[int], right: Sequence[int]
) -> float:
    """Difference of the two likeliest logits where two answers first differ."""
    place = next(
        (n for n, (a, b) in enumerate(zip(left, right, strict=False)) if a != b),
        min(len(left), len(right)),
    )
    with torch.no_grad():
        logits = model(torch.tensor([[*prompt, *left[:place]]]), logits_to_keep=1).logits[0, -1]
    first, second = logits.float().topk(2).values.tolist()
    return float(round(first - second, 4))


def measure(arguments: argparse.Namespace) -> None:
    """Every way in turn."""
    renderer = open_renderer(arguments.model, None)
    facts, tokenizer = renderer.facts, renderer.tokenizer
    cases, _ = find_cases("starter:probe", arguments.limit)
    prompts = [renderer.prompt_ids(case.messages, case.tools) for case in cases]
    most = arguments.max_new_tokens
    about = {
        "prompts": len(prompts),
        "prompt_tokens": sum(len(prompt) for prompt in prompts),
        "tree_tokens": len(lay_out(prompts).token_ids),
        "tree_tokens_in_chunks": sum(chunk_sizes(prompts)),
        "dtype": arguments.dtype,
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
    }
    print(json.dumps(about), flush=True)
    if arguments.count:
        return
    model = load_model(arguments.model, dtype=arguments.dtype)
    ours = local_generator(model, facts, arguments.batch_tokens)
    ways: dict[str, Callable[[], Ids]] = {
        "smollora": lambda: [a.token_ids for a in ours.generate(prompts, max_new_tokens=most)]
    }
    if not arguments.no_pipeline:
        ways["pipeline"] = pipeline_way(model, tokenizer, prompts, most)
    if arguments.endpoint:
        server = Endpoint(arguments.endpoint)
        server.connect()
        served = ServedGenerator(server, stop_ids=facts.stop_ids)
        ways["served"] = lambda: [
            a.token_ids for a in served.generate(prompts, max_new_tokens=most)
        ]
        served.generate(prompts[:2], max_new_tokens=2)
    ours.generate(prompts[:2], max_new_tokens=2)  # allocators and kernels are warm for all
    found: dict[str, dict[str, list[float]]] = {
        name: {"prompts": [], "tokens": [], "processor": []} for name in ways
    }
    answers: dict[str, Ids] = {}
    for number in range(arguments.rounds):
        for name, answer in ways.items():
            forgot = forget_prompts(server.url) if name == "served" else None
            start, before = time.perf_counter(), time.process_time()
            answers[name] = answer()
            wall, processor = time.perf_counter() - start, time.process_time() - before
            tokens = sum(len(ids) for ids in answers[name])
            found[name]["prompts"].append(len(prompts) / wall)
            found[name]["tokens"].append(tokens / wall)
            found[name]["processor"].append(1000 * processor / len(prompts))
            line = {
                "round": number,
                "way": name,
                "seconds": round(wall, 2),
                "generated_tokens": tokens,
                "prompts_per_second": round(len(prompts) / wall, 3),
                "tokens_per_second": round(tokens / wall, 1),
                "processor_ms_per_prompt": round(1000 * processor / len(prompts), 1),
                "peak_gb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2),
            }
            if forgot is not None:
                line["prefix_cache_emptied"] = forgot
            print(json.dumps(line), flush=True)
    middle = {
        name: {key: statistics.median(values) for key, values in each.items()}
        for name, each in found.items()
    }
    last: dict[str, Any] = {
        "prompts_per_second": {name: round(each["prompts"], 3) for name, each in middle.items()},
        "tokens_per_second": {name: round(each["tokens"], 1) for name, each in middle.items()},
    }
    for name in ways:
        if name == "smollora":
            continue
        last[f"smollora_over_{name}"] = round(
            middle["smollora"]["prompts"] / middle[name]["prompts"], 2
        )
        pairs = list(zip(prompts, answers[name], answers["smollora"], strict=True))
        margins = [margin_where_they_part(model, p, a, b) for p, a, b in pairs if a != b]
        last[f"same_ids_as_{name}"] = f"{len(prompts) - len(margins)} of {len(prompts)}"
        last[f"margins_where_{name}_parts"] = sorted(margins)
    if "pipeline" in ways:
        spent = middle["pipeline"]["processor"] / middle["smollora"]["processor"]
        last["smollora_over_pipeline_in_processor_time"] = round(spent, 2)
    print(json.dumps(last))


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", type=Path)
    parser.add_argument("--limit", type=int, default=4, help="cases of each category")
    parser.add_argument("--max-new-tokens", type=int, default=96)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--batch-tokens", type=int, default=10240)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--endpoint", help="address of a server of the same model")
    parser.add_argument("--no-pipeline", action="store_true")
    parser.add_argument("--count", action="store_true", help="count tokens and stop")
    measure(parser.parse_args())


if __name__ == "__main__":
    main()
