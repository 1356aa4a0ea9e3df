"""LoRA training: adapter.py wraps the model, loss.py computes, trainer.py steps, hardware.py knows
the machine.
"""

from smollora.train.adapter import attach_adapter as attach_adapter
from smollora.train.adapter import compute_rows_apart as compute_rows_apart
from smollora.train.adapter import untie_head as untie_head
from smollora.train.hardware import compute_dtype as compute_dtype
from smollora.train.loss import TreeLoss as TreeLoss
from smollora.train.loss import evaluate_loss as evaluate_loss
from smollora.train.trainer import StepReport as StepReport
from smollora.train.trainer import Trained as Trained
from smollora.train.trainer import train_adapter as train_adapter
