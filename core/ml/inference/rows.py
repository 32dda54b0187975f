"""The adapters of one batch: for every image the row of a bank that its model has.

Kinds of adapters do their arithmetic through here and never see whether a batch has one model or
many. In a batch of many every image brings its own matrices, and a product is a batch of small ones
(`baddbmm`). In a batch of one model the same tokens form one large product.
"""

from collections.abc import Mapping

from torch import Tensor

from core.ml.inference.layout import Layout


class Rows:
    """Adapters of `batch` images, by the names of the bank's layout.

    Args:
        layout: what lies where in a row.
        numbers: (batch, layout.size) for a mixed batch, or (1, layout.size) if all images have the
            same model; in the number format of the network.
        batch: how many images.
    """

    def __init__(self, layout: Layout, numbers: Tensor, batch: int) -> None:
        self._tensors: Mapping[str, Tensor] = layout.split(numbers)
        self._is_mixed = numbers.shape[0] > 1
        self.batch = batch

    def linear(self, x: Tensor, weight: str, bias: str | None = None) -> Tensor:
        """Return x W + b for every image's own W and b.

        Args:
            x: (batch * k, ..., inputs): whole images one after the other, or k windows of each.
            weight: name of matrices (inputs, outputs).
            bias: name of vectors (outputs,), or None.

        Returns:
            (batch, tokens, outputs).
        """
        matrices, tokens = self._tensors[weight], self.tokens(x)
        if bias is None:
            return tokens @ matrices if self._is_mixed else tokens @ matrices[0]
        if self._is_mixed:
            return self.vectors(bias).baddbmm(tokens, matrices)
        flat = self._tensors[bias][0].addmm(tokens.flatten(0, 1), matrices[0])
        return flat.view(self.batch, -1, flat.shape[-1])

    def add_linear(
        self,
        base: Tensor,
        x: Tensor,
        weight: str,
        bias: str | None = None,
        *,
        transposed: bool = False,
    ) -> Tensor:
        """Return base + x W + b, shaped like `base`.

        Args:
            base: (batch * k, ..., outputs).
            x: as in `linear`.
            weight: likewise.
            bias: likewise.
            transposed: whether W is the transpose of what lies under the name.
        """
        matrices, tokens, sums = self._tensors[weight], self.tokens(x), self.tokens(base)
        if transposed:
            matrices = matrices.transpose(1, 2)
        if self._is_mixed:
            sums = sums.baddbmm(tokens, matrices)
        else:
            sums = sums.flatten(0, 1).addmm(tokens.flatten(0, 1), matrices[0]).view_as(sums)
        if bias is not None:
            sums.add_(self.vectors(bias))
        return sums.view(base.shape)

    def add_vectors(self, base: Tensor, name: str) -> Tensor:
        """Return base + b, b of every image broadcast over its tokens."""
        return (self.tokens(base) + self.vectors(name)).view(base.shape)

    def scale_and_shift(self, y: Tensor, gain: str, shift: str) -> Tensor:
        """Return y + gain * y + shift with vectors broadcast over an image's tokens."""
        tokens = self.tokens(y)
        changed = (tokens + self.vectors(shift)).addcmul_(tokens, self.vectors(gain))
        return changed.view(y.shape)

    def vectors(self, name: str) -> Tensor:
        """Return (batch or 1, 1, n), to be broadcast over tokens."""
        return self._tensors[name].unsqueeze(1)

    def tokens(self, x: Tensor) -> Tensor:
        """Return (batch * k, ..., n) as (batch, tokens, n)."""
        return x.reshape(self.batch, -1, x.shape[-1])
