"""Operations: what is compared in a block, by the names of its modules."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from dataclasses import dataclass, replace

from repshift.errors import RepshiftWarning
from repshift.layouts import Layout

# The names that families share; one may have names of its own beside them
OPERATIONS = ("attn", "mlp", "block", "stage", "mixer")


@dataclass(frozen=True)
class Operation:
    """Where one operation ``F`` of a block can be watched, by module names.

    Attributes:
        enters: What it takes first is ``x``, the representation that the operation starts from.
        leaves: Their outputs, added up, are what the operation yields.
        on_stream: Whether that already contains the residual (``D(y, x)`` of a whole block) or is ``F(x)`` alone,
            what is added to the stream: after LayerScale, post-norm and drop-path.
        from_output: ``x`` is what ``enters`` returns instead of what it takes, as behind a shortcut.
        before: How ``x`` is held, if not as between the blocks.
        after: How what leaves is held, if not as between the blocks.
        scaled_by: Name of a parameter that the block multiplies what leaves by, outside of any module, before it adds
            it to the stream: ``"blocks.0.gamma_2"``, with a number for each channel, or one for all. ``None`` for none.
        cheap: ``enters`` may run a second time instead of what it returns being kept: it takes little work, and
            running it has no effect.
        summed: Whether the block goes on with ``x + F(x)`` as it is. Some normalise the sum, and then tokens cannot go
            in front of ``F``.
        widens: ``x`` may have fewer channels than what leaves; zeros stand for those that it lacks.
    """

    enters: str
    leaves: tuple[str, ...]
    on_stream: bool = False
    from_output: bool = False
    before: Layout | None = None
    after: Layout | None = None
    scaled_by: str | None = None
    cheap: bool = False
    summed: bool = True
    widens: bool = False

    @staticmethod
    def across(name: str) -> Operation:
        """Compare what any module returns with what it takes."""
        return Operation(name, (name,))

    def within(self, prefix: str) -> Operation:
        """Return the same operation of a model that is a part of another."""
        leaves = tuple(inner(prefix, name) for name in self.leaves)
        scaled_by = self.scaled_by and inner(prefix, self.scaled_by)
        return replace(self, enters=inner(prefix, self.enters), leaves=leaves, scaled_by=scaled_by)


def say_second_residual(operations: Iterable[Operation]) -> None:
    """Warn that adding the residual changes nothing, if all that these operations yield contains it already."""
    contained = [operation.on_stream for operation in operations]
    if contained and all(contained):
        warnings.warn(
            "residual=True adds x to what an operation yields, but this one yields the whole stream, x included (as "
            "'block' and 'stage' do), so nothing is added. Leave residual out, or choose another operation.",
            RepshiftWarning,
            stacklevel=3,
        )


def inner(prefix: str, name: str) -> str:
    """Name a module of a part: its name within the part, behind the part's own."""
    return ".".join(part for part in (prefix, name) if part)
