"""Forms of the tiny models; one thread, so that the tests leave the other cores alone."""

import pytest
import torch

from tests.export.recipes import Forms

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def forms(tmp_path_factory):
    return Forms(tmp_path_factory.getbasetemp() / "tiny")
