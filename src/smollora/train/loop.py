"""transformers' Trainer made to step over packed trees, and what is watched while it does.

The Trainer brings the loop, accelerate (one process or many), clipping, and the callbacks of
trackers. Ours are the loss, the optimizer's groups, the schedule, and checkpoints without pickles
(its own hold pickled tensors). The surprise: with several processes the Trainer hands gradients to
torch's DistributedDataParallel, which averages them over processes; so each process divides its sum
of weighted losses by the mean of the weights, and the average is what one process would compute
that takes all packs.
"""

from __future__ import annotations

import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from smollora import launch
from smollora.memory import give_back_freed_memory
from smollora.train import checkpoint, watch, zero
from smollora.train.adapter import parameter_groups
from smollora.train.loss import PackLoss, TreeLoss, mean_by_part
from smollora.train.progress import Totals
from smollora.train.reporting import flat_logs
from smollora.train.session import Session
from smollora.train.steps import Step
from smollora.types import PARTS

TRIM_EVERY = 64
"""Steps after which freed memory goes back to the system once: to have it again takes a second."""


def _loss_module(loss_of: TreeLoss) -> Any:
    """What the Trainer calls its model: DistributedDataParallel exchanges the gradients of a module
    whose forward pass it sees.
    """
    import torch

    class LossModule(torch.nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.peft = loss_of.model
            base = self.peft.get_base_model()
            self._no_split_modules = list(base._no_split_modules or [])  # what FSDP gathers at once

        def forward(self, batch: Any) -> tuple[Any, ...]:
            return tuple(loss_of(batch))

    return LossModule()


def build_trainer(session: Session, arguments: dict[str, Any]) -> Any:
    """A transformers Trainer over `session`; `arguments` are for TrainingArguments."""
    import torch
    from transformers import Trainer, TrainerCallback, TrainingArguments
    from transformers.trainer_callback import PrinterCallback

    settings, steps, progress = session.settings, session.steps, session.progress
    pace, peft = progress.pace, session.loss_of.model
    stage = launch.zero_stage()

    class TreeTrainer(Trainer):  # type: ignore[misc]
        def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> Any:
            if not model.training:  # to say it to a thousand modules takes 7 ms
                model.train()
            step: Step = inputs["step"]
            weight = sum(batch.weights.to(self.args.device).sum() for batch in step.batches)
            share = self.add_up(weight).clamp(min=1e-6) / steps.processes
            loss = torch.zeros((), device=self.args.device)
            parts = torch.zeros(3, len(PARTS), dtype=torch.float64)
            for number, batch in enumerate(step.batches, 1):
                last = number == len(step.batches)
                alone = not last and stage is None  # DeepSpeed is told by its own backward
                with self.accelerator.no_sync(model) if alone else nullcontext():
                    total, _, *by_part = model(batch)
                    part = total / share
                    self.backward(part, last)
                loss += part.detach()
                if number <= len(step.held):
                    parts += torch.stack(by_part).detach().cpu().double()
            self._note(step, parts)
            return loss

        def backward(self, loss: Any, last: bool) -> None:
            """Add up a pack's gradients; with DeepSpeed the last of a step is the optimizer's step
            as well.
            """
            if stage is None:
                self.accelerator.backward(loss)
            else:
                self.accelerator.deepspeed_engine_wrapped.backward(loss, sync_gradients=last)

        def look_at(self, batch: Any) -> PackLoss:
            """What a pack gives, through the module that gathers weights where they are spread."""
            module: Any = self.model if stage is None else self.model_wrapped
            return PackLoss(*module(batch))

        def rest(self) -> None:
            """Spread again what such a look has gathered and no backward pass gives back."""
            if hasattr(self.model, "reshard"):
                self.model.reshard()

        def add_up(self, values: Any) -> Any:
            """The sum of a tensor over all processes."""
            if steps.processes == 1:
                return values
            found = self.accelerator.reduce(values.to(self.args.device), reduction="sum")
            return found.to(values.device)

        def _note(self, step: Step, parts: Any) -> None:
            """What the step held in all processes, and whether one of them asks for something."""
            held = step.held
            flags = [
                sum(batch.real_tokens for batch in held),
                sum(batch.row_tokens for batch in held),
                sum(int(batch.targets.shape[0]) for batch in held),
                session.asked.stop,
                session.first and session.is_due(step.index + 1),
            ]
            mine = torch.cat([parts.flatten(), torch.tensor(flags, dtype=torch.float64)])
            found = self.add_up(mine)
            sums, counts, hits = found[: parts.numel()].view_as(parts)
            tokens, row_tokens, labelled, stop, due = found[parts.numel() :].tolist()
            session.stop, session.due = stop > 0, due > 0
            session.totals = Totals(
                int(tokens),
                int(row_tokens),
                int(labelled),
                mean_by_part(sums, counts),
                mean_by_part(hits, counts),
            )

        def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
            if "loss" in logs:
                entry = watch.enter(session, self.state.global_step, logs)
                watch.raise_if_lost(session, entry)
                logs = {**logs, **flat_logs(entry)}
                if (share := session.utilisation()) is not None:
                    logs["mfu"] = share
            super().log(logs, start_time)

        def create_optimizer(self, model: Any = None) -> Any:
            groups = parameter_groups(peft, settings)
            self.trained = [list(group["params"]) for group in groups]
            self.optimizer = torch.optim.AdamW(
                groups, lr=settings.lr, betas=(0.9, 0.99), eps=1e-8, fused=True
            )
            return self.optimizer

        def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
            self.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(self.optimizer, pace.factor)
            return self.lr_scheduler

        def get_train_dataloader(self) -> Any:
            return torch.utils.data.DataLoader(
                steps, batch_size=1, shuffle=False, collate_fn=lambda items: {"step": items[0]}
            )

        # checkpoints: the places where transformers would write and read pickles

        def _save_checkpoint(self, model: Any, trial: Any) -> None:
            lines = torch.random.get_rng_state()[None]
            generators = {"cpu": self._gather(lines)}
            if torch.cuda.is_available():
                generators["cuda"] = self._gather(torch.cuda.get_rng_state()[None])
            if stage is None:
                held = self.optimizer.state_dict()
            else:
                held = zero.optimizer_state(self.optimizer, self.trained)
            optimizer, groups = checkpoint.split_optimizer(held)
            optimizer = checkpoint.whole(optimizer)
            trained = checkpoint.whole(checkpoint.trained_tensors(peft))
            if not session.first:
                return
            state = {
                "origin": session.origin,
                "groups": groups,
                "scheduler": self.lr_scheduler.state_dict(),
                **progress.state(),
            }

            def fill(work: Path) -> None:
                checkpoint.save_tensors(work / "adapter.safetensors", trained)
                checkpoint.save_tensors(work / "optimizer.safetensors", optimizer)
                checkpoint.save_tensors(work / "random.safetensors", generators)
                self.state.save_to_json(str(work / "trainer_state.json"))

            checkpoint.write_checkpoint(session.checkpoints, self.state.global_step, fill, state)
            checkpoint.drop_other_bests(
                session.checkpoints, progress.best.step if progress.best else None
            )
            session.saved_at = time.monotonic()

        def _gather(self, lines: Any) -> Any:
            if steps.processes == 1:
                return lines
            return self.accelerator.gather(lines.to(self.args.device)).cpu()

        def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
            """The weights are there: they were restored before anyone took shares of them."""

        def _load_optimizer_and_scheduler(self, checkpoint_folder: str | None) -> None:
            if checkpoint_folder is None:
                return
            folder = Path(checkpoint_folder)
            state = checkpoint.Checkpoint(folder, 0).state()
            tensors = checkpoint.load_tensors(folder / "optimizer.safetensors")
            saved = checkpoint.join_optimizer(tensors, state["groups"])
            if stage is None:
                held = [p for group in self.optimizer.param_groups for p in group["params"]]
                for index, values in saved["state"].items():
                    for name in values.keys() & set(zero.MOMENTS):
                        values[name] = checkpoint.share_of(values[name], held[index])
                self.optimizer.load_state_dict(saved)
            else:
                zero.restore_optimizer(self.optimizer, self.trained, saved)
            self.lr_scheduler.load_state_dict(state["scheduler"])

        def _load_rng_state(self, checkpoint_folder: str | None) -> None:
            if checkpoint_folder is None:
                return
            lines = checkpoint.load_tensors(Path(checkpoint_folder) / "random.safetensors")
            if steps.rank < len(lines["cpu"]):  # else more processes than there were
                torch.random.set_rng_state(checkpoint.line_of(lines["cpu"], steps.rank))
                if "cuda" in lines and torch.cuda.is_available():
                    torch.cuda.set_rng_state(checkpoint.line_of(lines["cuda"], steps.rank))

    class Watch(TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            step = state.global_step
            if step % TRIM_EVERY == 0:
                give_back_freed_memory()
            progress.found = {}
            if watch.is_last(session, step):
                progress.ended = control.should_training_stop = True
            if session.stop:
                control.should_training_stop = True
            control.should_save = session.stop or session.due

    chosen = TrainingArguments(**arguments)
    if chosen.n_gpu > 1:  # one process uses one GPU; the Trainer would split batches among all
        chosen._n_gpu = 1
    if launch.uses_fsdp() and chosen.device.type == "cpu":
        launch.shard_on_cpu_too()
    module = _loss_module(session.loss_of)
    if stage is not None:
        zero.configure(chosen.deepspeed_plugin, clip=settings.clip)
        module.config = peft.get_base_model().config  # for "auto" sizes in DeepSpeed's own file
    if stage == 3:
        zero.gather_by_layer(module, module._no_split_modules)
    trainer = TreeTrainer(
        model=module,
        args=chosen,
        train_dataset=steps,
        callbacks=[Watch()],
    )
    trainer.remove_callback(PrinterCallback)
    return trainer
