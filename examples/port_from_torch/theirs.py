"""The network and its training in PyTorch."""

from typing import Any

import numpy as np
import torch

from examples.port_from_torch.task import SHAPES, Settings, batches


class Network(torch.nn.Module):
    """Two convolutions and a linear layer, channels first."""

    def __init__(self) -> None:
        super().__init__()
        first, second = SHAPES["channels"]
        self.conv1 = torch.nn.Conv2d(1, first, 3, padding=1)
        self.conv2 = torch.nn.Conv2d(first, second, 3, padding=1)
        self.head = torch.nn.Linear(int(np.prod(SHAPES["flattened"])), 10)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Logits of images [n, 1, 8, 8]."""
        x = torch.nn.functional.avg_pool2d(torch.tanh(self.conv1(images)), 2)
        return self.head(torch.flatten(torch.tanh(self.conv2(x)), 1))


def train(
    settings: Settings, start: int, model: Network, optimizer: torch.optim.Optimizer
) -> list[float]:
    """Train in place; the loss before each step."""
    losses: list[float] = []
    for step, (images, labels) in enumerate(batches(settings, start), start):
        optimizer.param_groups[0]["lr"] = settings.rate(step)
        logits = model(torch.tensor(images[:, None]))
        loss = torch.nn.functional.cross_entropy(logits, torch.tensor(labels).long())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def run(settings: Settings) -> dict[str, Any]:
    """A run of twice `steps`: the checkpoint in its middle, the losses, and the weights at the end.

    The checkpoint is what `torch.save` would hold, as NumPy arrays.
    """
    torch.manual_seed(0)
    model = Network()
    optimizer = torch.optim.RMSprop(
        model.named_parameters(),
        lr=settings.lr,
        alpha=settings.alpha,
        eps=settings.eps,
        momentum=settings.momentum,
        weight_decay=settings.weight_decay,
        centered=settings.centered,
    )
    losses = train(settings, 0, model, optimizer)
    checkpoint = as_numpy({"model": model.state_dict(), "optimizer": optimizer.state_dict()})
    losses += train(settings, settings.steps, model, optimizer)
    return {"checkpoint": checkpoint, "losses": losses, "end": as_numpy(model.state_dict())}


def as_numpy(tree: Any) -> Any:
    """Tensors as arrays that later steps do not change."""
    return torch.utils._pytree.tree_map_only(
        torch.Tensor, lambda x: x.detach().cpu().numpy().copy(), tree
    )
