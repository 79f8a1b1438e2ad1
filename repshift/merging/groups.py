"""From "who goes into whom" to a selection, in counts that follow from shapes alone."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from repshift.positions import pick
from repshift.selection import Selection


def directions(tokens: Tensor) -> Tensor:
    """Return the directions of tokens, ``(batch, tokens, channels)`` float32 of length 1, without a gradient."""
    return F.normalize(tokens.detach().float(), dim=-1)


@dataclass(frozen=True, eq=False)
class Distances:
    """Squared distances between tokens, in parts that are cheap to compute and to change.

    Half of ``|z_i - z_j|^2`` is ``halves_i + halves_j - products_ij``.

    Attributes:
        products: ``(batch, tokens, tokens)`` float32, inner products of tokens, of which the image's mean is taken off.
        halves: ``(batch, tokens)`` float32, half the squared lengths of the same.
    """

    products: Tensor
    halves: Tensor

    @staticmethod
    def between(tokens: Tensor, exact: bool = True) -> Distances:
        """Compute the distances between the tokens of every image.

        Args:
            tokens: ``z``, ``(batch, tokens, channels)`` float32.
            exact: Multiply in float32; otherwise in half precision where that is faster.
        """
        # distances stay the same, and half precision keeps more of small products than of those that are all near 1
        centred = tokens - tokens.mean(1, keepdim=True)
        halves = torch.linalg.vector_norm(centred, dim=2).square() / 2
        factors = centred if exact else centred.to(_quick_dtype(tokens.device))
        return Distances((factors @ factors.mT).float(), halves)

    def nearest(self, sizes: Tensor | None = None, among: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Find for every token the other one that it is cheapest to join with, by Ward's cost.

        The cost is half of ``s_i s_j / (s_i + s_j) |z_i - z_j|^2``; without sizes twice that, which is the same order.

        Args:
            sizes: ``(batch, tokens)``; 0 is padding, which joins anything for nothing and which nothing joins. ``None``
                for one each.
            among: ``(batch, tokens)`` bool, who can be joined; ``None`` for all.

        Returns:
            The lowest cost of each token and with whom, both ``(batch, tokens)``; infinite if there is nobody.
        """
        if sizes is None:
            # what a token has itself is the same for all others, so it need not be added before the lowest is found
            halves = self.halves if among is None else self.halves.masked_fill(~among, torch.inf)
            rest = _without_itself(halves.unsqueeze(1) - self.products)
            lowest, whom = rest.min(dim=2)
            return lowest + self.halves, whom
        costs = self.costs(sizes)
        if among is not None:
            costs = costs.masked_fill_(~among.unsqueeze(1), torch.inf)
        lowest, whom = costs.min(dim=2)
        return lowest, whom

    def costs(self, sizes: Tensor) -> Tensor:
        """Return half of Ward's cost of all pairs, ``(batch, tokens, tokens)`` float32, infinite on the diagonal."""
        lightness = 1 / sizes  # of padding infinite, so that its costs are 0
        costs = (self.halves.unsqueeze(1) - self.products).add_(self.halves.unsqueeze(2))
        costs = costs.div_(lightness.unsqueeze(2) + lightness.unsqueeze(1))
        costs = costs.masked_fill_((sizes == 0).unsqueeze(1), torch.inf)
        return _without_itself(costs)

    def joined(self, stays: Tensor, goes: Tensor, share: Tensor) -> Distances:
        """Return the distances after some tokens have moved towards others: products with a mean are means of products.

        Args:
            stays: ``(batch, number)`` int64, who moves; nobody twice.
            goes: ``(batch, number)`` int64, towards whom.
            share: ``(batch, number)`` float32, how far: 0 stays as it is, 1 is the other one.
        """
        own = pick(self.products, stays)
        rows = torch.lerp(own, pick(self.products, goes), share.unsqueeze(2))
        across = [whom.unsqueeze(1).expand(-1, stays.shape[1], -1) for whom in (stays, goes)]
        both = torch.lerp(rows.gather(2, across[0]), rows.gather(2, across[1]), share.unsqueeze(1))
        rows = rows.scatter(2, across[0], both)
        at = stays.unsqueeze(2).expand_as(rows)
        products = self.products.scatter(1, at, rows).scatter(2, at.mT, rows.mT)
        squares = torch.lerp(self.halves.gather(1, stays), self.halves.gather(1, goes), share)
        apart = self.halves.gather(1, stays) + self.halves.gather(1, goes)
        apart = apart - own.gather(2, goes.unsqueeze(2)).squeeze(2)
        # |(1-a) x + a y|^2 = (1-a) |x|^2 + a |y|^2 - a (1-a) |x - y|^2
        halves = squares - share * (1 - share) * apart
        return Distances(products, self.halves.scatter(1, stays, halves))


def _without_itself(costs: Tensor) -> Tensor:
    """Let no token be joined with itself: make the diagonal infinite, in place where that can be.

    Args:
        costs: ``(batch, tokens, tokens)``, which nobody else needs.
    """
    if torch.compiler.is_compiling():  # a condition is fused with what is around it, and ONNX has no views to write to
        itself = torch.eye(costs.shape[1], dtype=torch.bool, device=costs.device)
        return costs.masked_fill(itself, torch.inf)
    costs.diagonal(dim1=1, dim2=2).fill_(torch.inf)
    return costs


def _quick_dtype(device: torch.device) -> torch.dtype:
    """Return the dtype in which a device multiplies fastest, among those of float32's range.

    onnxruntime multiplies no bfloat16 on a CPU.
    """
    if torch.compiler.is_exporting() and torch.onnx.is_in_onnx_export():
        return torch.float32
    if device.type == "cuda" or (device.type == "cpu" and _CPU_HAS_BFLOAT16):
        return torch.bfloat16
    return torch.float32


_CPU_HAS_BFLOAT16 = bool(getattr(torch.cpu, "_is_avx512_bf16_supported", bool)())


def selected(goes: Tensor, into: Tensor, left: int, *, keeps_norm: bool = False) -> Selection:
    """Make the selection in which some tokens go into others, and these may go on into others again.

    Args:
        goes: ``(batch, tokens)`` bool: as many in every image.
        into: ``(batch, tokens)`` int64: where each of them goes, by its position.
        left: How many stay.
        keeps_norm: See :class:`repshift.selection.Selection`.
    """
    batch, count = goes.shape
    own = torch.arange(count, device=goes.device).expand(batch, -1)
    target = torch.where(goes, into, own)
    for _ in range(max(1, (count - left).bit_length())):  # a chain is no longer than those that go
        target = target.gather(1, target)
    kept = torch.where(goes, count, own).sort(dim=1).values[:, :left]
    place = (~goes).cumsum(1) - 1
    # where equal costs made a circle of tokens that all go, each goes to the kept one before it instead
    target = torch.where(goes.gather(1, target), own, target)
    return Selection(kept, joins=place.gather(1, target).clamp_min(0), keeps_norm=keeps_norm)


def cheapest(costs: Tensor, count: int) -> Tensor:
    """Mark the tokens whose costs are the lowest.

    Args:
        costs: ``(batch, tokens)``.
        count: How many to mark in every image.

    Returns:
        ``(batch, tokens)`` bool.
    """
    chosen = costs.topk(count, dim=1, largest=False, sorted=False).indices
    return torch.zeros_like(costs, dtype=torch.bool).scatter(1, chosen, True)


def followed(first: Selection, second: Selection) -> Selection:
    """Make one selection of two, the second one among what the first one left."""
    assert first.joins is not None
    assert second.joins is not None
    joins = second.joins.gather(1, first.joins)
    return Selection(first.kept.gather(1, second.kept), joins=joins, keeps_norm=second.keeps_norm)
