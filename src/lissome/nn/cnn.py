"""A small residual CNN for small images: the model of the digits demo."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional


class Block(nn.Module):
    """Two 3x3 convolutions with batch normalisation around a shortcut (He et al. 2015); `stride` 2 halves the image."""

    def __init__(self, inputs: int, outputs: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        same = inputs == outputs and stride == 1
        self.shortcut = nn.Identity() if same else nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[batch, inputs, height, width] -> [batch, outputs, height/stride, width/stride]."""
        y = self.bn2(self.conv2(functional.relu(self.bn1(self.conv1(x)))))
        return functional.relu(y + self.shortcut(x))


class SmallCNN(nn.Module):
    """A convolution, three residual blocks, the mean over all positions, and a linear head."""

    def __init__(self, classes: int, width: int, channels: int):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(channels, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU())
        self.blocks = nn.Sequential(Block(width, width, 1), Block(width, 2 * width, 2), Block(2 * width, 4 * width, 2))
        self.head = nn.Linear(4 * width, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Images [batch, channels, height, width] of at least 4x4 pixels -> logits [batch, classes]."""
        logits: torch.Tensor = self.head(self.blocks(self.stem(x)).mean(dim=(2, 3)))
        return logits


def small_cnn(classes: int = 10, width: int = 32, channels: int = 1) -> nn.Module:
    """A CNN of about 300,000 parameters at the default width, for images of any size from 4x4; with fresh weights from the global generator."""
    return SmallCNN(classes, width, channels)
