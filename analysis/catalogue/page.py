"""A page for the documentation: how many models of each family can be pruned and tracked, and why others cannot."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

from repshift.analysis.catalogue.checking import EQUAL, PRUNED, REFUSED, TRACKED, WRONG, Row

STATES = (PRUNED, TRACKED, REFUSED, WRONG)
INTRODUCTION = """# Which models can be pruned

Written by `repshift models --check --results-file docs/models.csv --page docs/models.md`, which builds models of timm
and of torchvision (classifiers, and video) without weights and runs them without values.

- *pruned*: 20 % of the tokens go after blocks 0, 3 and 6, or a tenth of the lines after the first two stages that can
  be scored; or, where that is not possible, what the model's row in [models.csv](models.csv) says instead. The numbers
  of tokens that are left are those predicted from the dense model's shapes.
- *tracked*: it cannot be pruned; the shifts of its repeated blocks are recorded by the names of their modules, and the
  column `map` says whether they can be laid out on rows and columns.
- *refused*: neither. *wrong*: something of this is not so.

Of each family and class the smallest model that is pruned also ran on real tensors: with nothing dropped it is the
dense model, bit for bit, and a batch comes out as its images one by one. `repshift models PATTERN` says what can be
done with some models, `repshift.describe(model)` with one.
"""


def page_of(rows: Sequence[Row], versions: str) -> str:
    """Write the page.

    Args:
        rows: From :func:`repshift.analysis.catalogue.records.look_at_all`.
        versions: Of the libraries, in words.
    """
    totals = []
    for library, own in _by(rows, lambda row: "torchvision" if row["model"].startswith("torchvision/") else "timm"):
        totals.append(f"| {library} | {_counts(own)} |")
    proved = sum(row["numbers"] == EQUAL for row in rows)
    head = [
        INTRODUCTION,
        f"{len(rows)} models, {proved} of them on real tensors, with {versions}.\n",
        f"| library | models | {' | '.join(STATES)} |",
        f"| --- {'| ---: ' * (1 + len(STATES))}|",
        *totals,
        "\n## By family\n",
        f"| family | models | {' | '.join(STATES)} | why not, or not by the default |",
        f"| --- {'| ---: ' * (1 + len(STATES))}| --- |",
    ]
    lines = [f"| {family} | {_counts(own)} | {_why(own)} |" for family, own in _by(rows, lambda row: row["family"])]
    return "\n".join([*head, *lines, ""])


def _by(rows: Sequence[Row], key: Callable[[Row], str]) -> list[tuple[str, list[Row]]]:
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(key(row), []).append(row)
    return sorted(groups.items(), key=lambda group: group[0])


def _counts(rows: Sequence[Row]) -> str:
    states = Counter(row["state"] for row in rows)
    return " | ".join(str(number or "") for number in (len(rows), *(states[state] for state in STATES)))


def _why(rows: Sequence[Row]) -> str:
    """Give the commonest reason, and say how many others there are."""
    reasons = Counter(row["why"] for row in rows if row["why"])
    if not reasons:
        return ""
    (first, _), *others = reasons.most_common()
    more = f" (and {len(others)} other{'s' if len(others) > 1 else ''})" if others else ""
    return str(first).replace("|", "/").replace("\n", " ") + more
