"""LoRA training. trainer.py is the whole of it in order; the rest is what it uses.

| module | holds |
|---|---|
| trainer | settings, rows and model in; adapter and summary out |
| adapter, loss, steps | the model with LoRA, the loss of a pack, the packs of a step |
| loop, progress, interrupt | transformers' Trainer, what is behind it, Ctrl-C |
| checkpoint, identity | going on after a crash; which base something belongs to |
| decisions | does it open calls, and only where due |
| hardware, speed, reporting | the machine, how much of it is used, trackers |
"""

from smollora.train.adapter import attach_adapter as attach_adapter
from smollora.train.adapter import compute_rows_apart as compute_rows_apart
from smollora.train.adapter import untie_head as untie_head
from smollora.train.decisions import Ends as Ends
from smollora.train.hardware import compute_dtype as compute_dtype
from smollora.train.loss import TreeLoss as TreeLoss
from smollora.train.loss import evaluate_loss as evaluate_loss
from smollora.train.progress import StepReport as StepReport
from smollora.train.trainer import Trained as Trained
from smollora.train.trainer import train_adapter as train_adapter
