"""Tool calls in Hugging Face's lighteval. First write the prompts, then name their folder:

    smollora eval MODEL --suite bfcl:simple_python --export cases
    SMOLLORA_CASES=cases lighteval accelerate "model_name=MODEL,override_chat_template=false" \\
        "smollora_calls|0" --custom-tasks THIS_FILE

The prompts are rendered already, with the tools: lighteval must not apply a chat template again.
"""

from __future__ import annotations

import os
from typing import Any

import numpy as np
from lighteval.metrics.metrics_sample import SampleLevelComputation
from lighteval.metrics.utils.metric_utils import SampleLevelMetricGrouping
from lighteval.tasks.lighteval_task import LightevalTaskConfig
from lighteval.tasks.requests import Doc, SamplingMethod

from smollora.evaluate.harness import METRICS, score_text


def as_doc(line: dict[str, Any], task_name: str = "") -> Doc:
    """A row of the exported test.jsonl."""
    return Doc(
        task_name=task_name,
        query=line["prompt"],
        choices=[""],
        gold_index=0,
        specific={"case": line["case"]},
    )


class CallMetrics(SampleLevelComputation):  # type: ignore[misc]
    """Scores one answer."""

    def compute(self, doc: Doc, model_response: Any, **kwargs: Any) -> dict[str, float]:
        """The metrics that apply to it."""
        return score_text(doc.specific, model_response.final_text[0])


TASKS_TABLE = [
    LightevalTaskConfig(
        name="smollora_calls",
        prompt_function=as_doc,
        hf_repo=os.environ.get("SMOLLORA_CASES", "set SMOLLORA_CASES to the exported folder"),
        hf_subset="default",
        hf_avail_splits=["test"],
        evaluation_splits=["test"],
        few_shots_split=None,
        few_shots_select=None,
        generation_size=256,
        stop_sequence=[],
        metrics=[
            SampleLevelMetricGrouping(
                metric_name=list(METRICS),
                higher_is_better={name: name != "false_call" for name in METRICS},
                category=SamplingMethod.GENERATIVE,
                sample_level_fn=CallMetrics(),
                corpus_level_fn=dict.fromkeys(METRICS, np.mean),
            )
        ],
    )
]
"""What lighteval reads."""
