from __future__ import annotations

import pytest
import torch

from lissome.nn.cnn import mnist_cnn, small_cnn


@pytest.mark.parametrize(("classes", "width", "channels", "size"), [(10, 8, 1, (8, 8)), (3, 8, 3, (5, 7)), (2, 4, 1, (4, 4))])
def test_shapes(classes, width, channels, size):
    module = small_cnn(classes, width, channels).eval()
    x = torch.randn(2, channels, *size)
    assert module(x).shape == (2, classes)
    assert torch.allclose(module(x)[:1], module(x[:1]), atol=1e-5), "in eval mode an example does not depend on its neighbours"


def test_size_at_the_default_width():
    assert 200_000 < sum(p.numel() for p in small_cnn().parameters()) < 400_000


def test_it_learns():
    torch.manual_seed(0)
    module, x = small_cnn(classes=2, width=4), torch.randn(16, 1, 8, 8)
    y = (x.mean(dim=(1, 2, 3)) > 0).long()
    optimizer = torch.optim.Adam(module.parameters(), 1e-2)
    for _ in range(30):
        loss = torch.nn.functional.cross_entropy(module(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.1


def test_the_mnist_cnn():
    module = mnist_cnn().eval()
    x = torch.randn(3, 1, 28, 28)
    assert module(x).shape == (3, 10)
    assert torch.allclose(module(x)[:1], module(x[:1]), atol=1e-5)
    assert 400_000 < sum(p.numel() for p in module.parameters()) < 500_000
