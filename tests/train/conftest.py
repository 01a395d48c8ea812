"""One thread, so that the tests are repeatable and leave the other cores alone."""

import torch

torch.set_num_threads(1)
