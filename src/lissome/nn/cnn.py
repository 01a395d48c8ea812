"""CNNs for small images: a residual one (the model of the digits demo) and a plain one for MNIST."""

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


class MnistCNN(nn.Module):
    """Four 3x3 convolutions with batch normalisation, three of them before a maximum over 2x2, and two linear layers (after LeCun et al. 1998)."""

    def __init__(self, classes: int, width: int, hidden: int):
        super().__init__()
        self.features = nn.Sequential(
            *_convolution(1, width),
            nn.MaxPool2d(2),
            *_convolution(width, 2 * width),
            *_convolution(2 * width, 2 * width),
            nn.MaxPool2d(2),
            *_convolution(2 * width, 4 * width),
            nn.MaxPool2d(2),
        )
        self.classifier = nn.Sequential(nn.Flatten(), nn.Linear(4 * width * 9, hidden), nn.ReLU(), nn.Dropout(0.3), nn.Linear(hidden, classes))

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Images [batch, 1, 28, 28] -> logits [batch, classes]."""
        logits: torch.Tensor = self.classifier(self.features(pixel_values))
        return logits


def _convolution(inputs: int, outputs: int) -> tuple[nn.Module, nn.Module, nn.Module]:
    return nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()


def mnist_cnn(classes: int = 10, width: int = 32, hidden: int = 256) -> nn.Module:
    """A plain CNN of about 430,000 parameters for MNIST's images of 28 x 28; with fresh weights from the global generator."""
    return MnistCNN(classes, width, hidden)
