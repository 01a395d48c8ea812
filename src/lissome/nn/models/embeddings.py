"""From what comes in to hidden states: token ids, or patches of an image. `inputs` says which: "text" or "image"."""

from __future__ import annotations

from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import nn
from torch.nn import functional

from lissome.core.errors import BadTensor
from lissome.nn.models.parts import Whole

Count = Annotated[int, Field(ge=0)]


class Tokens(nn.Module):
    """A vector for each token.

    types: how many kinds of segments have a vector of their own, which is added (BERT's token types). added: tokens that came after the base vocabulary; they
    have a table of their own, so that it can learn while the base is frozen, rows and optimizer state alike.
    """

    inputs: ClassVar[str] = "text"

    def __init__(self, width: int, vocabulary: Whole, types: Count = 0, added: Count = 0):
        super().__init__()
        self.vocabulary = vocabulary
        self.table = nn.Embedding(vocabulary, width)
        self.types = nn.Embedding(types, width) if types else None
        self.added = nn.Embedding(added, width) if added else None

    def forward(self, input_ids: torch.Tensor, token_type_ids: torch.Tensor | None = None) -> torch.Tensor:
        """input_ids [batch, n] int64, token_type_ids [batch, n] (0 where None) -> [batch, n, width]."""
        if self.added is None:
            x = self.table(input_ids)
        else:
            old = input_ids < self.vocabulary
            new = functional.embedding((input_ids - self.vocabulary).clamp(min=0), self.added.weight)
            x = torch.where(old[..., None], self.table(input_ids.clamp(max=self.vocabulary - 1)), new)
        if self.types is not None:
            x = x + (self.types.weight[0] if token_type_ids is None else self.types(token_type_ids))
        found: torch.Tensor = x
        return found


class Patches(nn.Module):
    """Square patches of an image as tokens, behind a learned one that stands for the whole (Dosovitskiy et al. 2020).

    image: pixels of a side; patch: of a patch's side; channels: of the image. The model's `length` must be (image / patch)^2 + 1.
    """

    inputs: ClassVar[str] = "image"

    def __init__(self, width: int, length: int, image: Whole = 224, patch: Whole = 16, channels: Whole = 3):
        super().__init__()
        if image % patch:
            raise ValueError(f"patches of {patch} pixels do not divide an image of {image}")
        if length != (image // patch) ** 2 + 1:
            raise ValueError(f"the model has {length} positions, but the image has {(image // patch) ** 2} patches and one token for the whole")
        self.image, self.channels = image, channels
        self.whole = nn.Parameter(torch.zeros(1, 1, width))
        self.projection = nn.Conv2d(channels, width, patch, stride=patch)

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """[batch, channels, image, image] -> [batch, 1 + patches, width]. Raises BadTensor for images of another size."""
        if not torch.compiler.is_compiling() and tuple(pixel_values.shape[1:]) != (self.channels, self.image, self.image):
            raise BadTensor(f"images of shape {list(pixel_values.shape[1:])} do not fit; the model takes {[self.channels, self.image, self.image]}")
        x = self.projection(pixel_values).flatten(2).transpose(1, 2)
        return torch.cat((self.whole.expand(len(x), -1, -1), x), 1)
