"""Imported once by the server that the tests' processes are forked from: what takes seconds to import."""

from __future__ import annotations

import accelerate
import diffusers
import peft
import transformers
from torch.utils import tensorboard

from train import command, loop, start

HEAVY = (
    accelerate.Accelerator,
    diffusers.StableDiffusionPipeline,
    diffusers.UNet2DConditionModel,
    diffusers.AutoencoderKL,
    diffusers.DDIMScheduler,
    transformers.CLIPTextModel,
    transformers.CLIPTokenizer,
    peft.LoraConfig,
    tensorboard.SummaryWriter,
    command.begin,
    loop.train,
    start.prepare,
)
