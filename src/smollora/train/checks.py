"""What a training cannot meet, found before anything is computed."""

from __future__ import annotations

from collections.abc import Sequence

from smollora import launch
from smollora.config import TrainSection
from smollora.data.batch import Row
from smollora.errors import ConfigError
from smollora.train.decisions import Ends
from smollora.train.hardware import choose_device
from smollora.train.reporting import check_trackers


def check_settings(rows: Sequence[Row], settings: TrainSection, ends: Ends | None) -> None:
    """Find what cannot work before anything is loaded or computed.

    Raises:
        ConfigError: no rows, a row longer than a pack, a tracker that is not installed, a probe of
            a format without delimiters, too few packs for the processes.
    """
    launch.check_sharding()
    if launch.shards():
        _check_sharded(settings)
    check_trackers(settings.report_to)
    choose_device(settings.device)
    if not rows:
        raise ConfigError("there are no rows to train", "check prepare.sources and mix")
    longest = max(rows, key=lambda row: len(row.token_ids))
    if (length := len(longest.token_ids)) > settings.batch_tokens:
        count = sum(len(row.token_ids) > settings.batch_tokens for row in rows)
        raise ConfigError(
            f"{count} of {len(rows)} rows are longer than train.batch_tokens="
            f"{settings.batch_tokens}; the longest, {longest.conversation_id}, has {length} tokens",
            f"set train.batch_tokens={length} or more, or prepare.max_length="
            f"{settings.batch_tokens}",
        )
    packs = settings.packs_per_step
    if packs is not None and packs < launch.processes():
        raise ConfigError(
            f"{launch.processes()} processes for train.packs_per_step={packs}: some would have"
            " nothing to do",
            f"set train.packs_per_step={launch.processes()} or more, or start fewer processes",
        )
    if settings.probe_every and (ends is None or ends.opener_id is None):
        raise ConfigError(
            "train.probe_every needs a format whose calls open with a token of their own",
            "set train.probe_every=0",
        )


def _check_sharded(settings: TrainSection) -> None:
    """Raise for what does not go where the weights are spread over processes (FSDP 2, ZeRO 3)."""
    for asked, reason, step in (
        (settings.dora, "train.dora needs whole weights", "set train.dora=false"),
        (settings.compile == "on", "train.compile=on needs whole layers", "set train.compile=off"),
        (
            settings.probe_every > 0,
            "train.probe_every asks the whole model in one process",
            "set train.probe_every=0",
        ),
        (
            bool(settings.modules_to_save),
            "train.modules_to_save trains whole modules",
            "leave train.modules_to_save out",
        ),
    ):
        if asked:
            raise ConfigError(
                f"{reason}, which are spread over {launch.processes()} processes",
                f"{step}, or launch without --use_fsdp and --use_deepspeed",
            )
