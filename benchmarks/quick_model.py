"""A small trained network for benchmarks: unet_small that finds the generated towns' buildings."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from common.networks.checkpoint import save_checkpoint
from common.scenes.aerial_world import AerialWorld
from common.scenes.canvas import BUILDING
from footprints.task import TASK

SIDE, BATCH, SEED = 192, 4, 0


def quick_checkpoint(path: Path, steps: int = 150) -> Path:
    """Train for some steps, unless it was done before; enough for masks that look like masks."""
    if path.is_file():
        return path
    torch.manual_seed(SEED)
    world, rng = AerialWorld(SEED), np.random.default_rng(SEED)
    model = TASK.build("unet_small").to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps)
    for _ in range(steps):
        places = rng.integers(0, 4000, (BATCH, 2))
        scenes = [world.render(int(row), int(col), SIDE, SIDE, undefined=False) for row, col in places]
        images = torch.from_numpy(np.stack([image for image, _ in scenes])).permute(0, 3, 1, 2) / 255
        target = torch.from_numpy(np.stack([classes == BUILDING for _, classes in scenes])).float()
        loss = F.binary_cross_entropy_with_logits(model(images)[:, 0], target)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
    card = TASK.card("unet_small", {})
    save_checkpoint(path, card, model.state_dict())
    return path
