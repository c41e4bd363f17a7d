"""What is wrong with rows themselves, before any cause on the model's side is named.

A continuous density cannot be fitted to a value that many rows share, to a constant column or to
columns that determine one another: there the likelihood rises without bound, and what a fit says
of it means nothing. A few rows far from all others set location and scale of everything, and a
column whose offset is large against its spread has no digits left in single precision.

Values are looked at in double precision as the user gave them, before they are rounded to the
model's type. Trajectories are not: their columns may be constant, whole or determined.
"""

import dataclasses
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ebm_pp.codes import coded_rows
from ebm_pp.errors import DataError, GeneratorError
from ebm_pp.far_findings import coded_finding, find_far
from ebm_pp.far_rows import LEAST, bulk, centre_and_scale
from ebm_pp.judged import SHOWN, Column, Declared, Finding, as_given, columns_of, few, table_of
from ebm_pp.program import Site, Sites
from ebm_pp.stored import MOST_ROWS, Data, some_rows
from ebm_pp.ties import Relation, Ties, agreement, relations, row_counts, same_order, ties
from ebm_pp.units import suspected_unit

__all__ = ["Finding", "look_at"]

# The chance that two rows agree. A Gaussian rounded to a tenth of its standard deviation has .028
# and is fitted as well as an exact one; rounded to a fifth, .056, a long fit grows spikes.
COARSE, ROUNDED = 0.04, 0.005
# Shares of rows at single values: 2 % are noise to a fit of 10 rounds and a spike to one of 60,
# 5 % and more are fitted too well at once.
ATOM, NOTED = 0.03, 0.01
PAIRS = 5  # of rows that agree: fewer can be chance
WHOLE = 1000.0  # whole numbers that spread wider are as good as continuous
# Of a standardised column, the standard deviation that the other columns leave open. At .01 a fit
# is healthy, at .003 its moments are off, at .001 its log-likelihood by a nat.
DETERMINED, NEARLY = 4e-3, 1e-2
EXACT = 1e-6  # of a standard deviation: what rounding leaves
REPEATS = 10.0  # copies of a row on average: each is a spike to fit
COPIES = 0.01  # share of rows that repeat another
# Steps of the model's type within a standard deviation: with fewer than 64 a flow's own density
# of its draws is off by .01 nats; with fewer than 840 (an offset of 10^4 spreads) rounding shows.
STEPS, FINE = 64.0, 840.0
CLASSES = 5  # different values that may be names of something
EXPLAINING = ("constant_column", "precision", "far_rows")  # why a generator can fail


@torch.no_grad()
def look_at(
    model: Declared, rows: Data, numbers: Int[Tensor, " n"] | None = None
) -> tuple[Finding, ...]:
    """Everything that is wrong with rows, what makes a fit meaningless first.

    Args:
        model: its sites say which columns are angles, bounded, or parts of a whole.
        rows: as `EnergyModel.stored` or `check` give them; of more than 100,000 so many are
            taken, spread over all. Fewer than 20 are not judged.
        numbers: of the rows, as they are called in texts; 0, 1, 2, ... by default.

    Returns:
        The findings; none for trajectories.
    """
    n = len(next(iter(rows.values())))
    if model.layout is not None or n < LEAST:
        return ()
    at = some_rows(n, MOST_ROWS, torch.Generator().manual_seed(0))
    called = (torch.arange(n) if numbers is None else numbers.cpu())[at].numpy()
    x = {name: as_given(value)[at].double() for name, value in rows.items()}
    columns = columns_of(model, x, rows)
    constant = [column for column in columns if np.ptp(column.given) == 0]
    moving = [column for column in columns if np.ptp(column.given) > 0]
    if not moving:
        return tuple(_shortened([*map(_constant, constant)]))
    units = [*_units(model.sites.values(), x, rows)]
    far, away = find_far(moving, called, x)
    near = [_without(column, away) for column in moving]
    found = [
        *map(_constant, constant),
        *units,
        *_precision(moving),
        *far,
        *_coded(near, called[~away], {name: value[~away] for name, value in x.items()}),
        *_collinear(moving, ~away),
        *_ties(near),
        *_repeated(moving),
    ]
    return tuple(sorted(_shortened(found), key=lambda finding: not finding.fatal))


def _units(sites: Iterable[Site], x: Sites, rows: Data) -> Iterator[Finding]:
    """Angles that are likely in another unit than their site's."""
    for site in sites:
        if not site.circular:
            continue
        series = as_given(rows[site.name])[:MOST_ROWS].double()
        parts = (value.reshape(len(value), -1).T for value in (x[site.name], series))
        for angle, in_order in zip(*parts, strict=True):
            suspected = suspected_unit(angle, in_order, site)
            if suspected is not None:
                text, advice, fatal = suspected
                yield Finding("another_unit", site.name, text, advice, fatal)
                break


def _constant(column: Column) -> Finding:
    text = f"site {column.site!r}: {column.name} is {column.given[0]:.6g} in every row"
    if column.circular:
        text = f"site {column.site!r}: {column.name} is the same angle in every row"
    return Finding(
        "constant_column", column.site, text,
        "A constant has no density: remove the column, or make it an observed constant of the "
        "program.", True,
    )  # fmt: skip


def _precision(columns: Sequence[Column]) -> Iterator[Finding]:
    """Columns whose spread is a few steps of the model's type, or of the type given."""
    for column in columns:
        spreads = [(column.given, column.offset)]
        if column.free is not None:
            spreads.append((column.free, float(np.median(np.abs(column.free)))))
        for values, offset in spreads:
            scale = float(centre_and_scale(values[:, None])[1, 0])
            step = torch.finfo(column.dtype).eps * offset
            if scale < FINE * step:
                yield _imprecise(column, values, offset, scale, fatal=scale < STEPS * step)
                break


def _imprecise(
    column: Column, values: Float[np.ndarray, " n"], offset: float, scale: float, *, fatal: bool
) -> Finding:
    distinct = len(np.unique(values))
    kept = len(torch.from_numpy(values).to(column.dtype).unique())
    text = (
        f"site {column.site!r}: {column.name} spreads by {scale:.3g} about {offset:.7g}, which is "
        f"{offset / scale:.0e} spreads from 0; {_precision_of(column)} precision "
        f"steps by {torch.finfo(column.dtype).eps * offset:.2g} there"
    ) + (f" and leaves {kept} of {distinct} different values" if kept < distinct else "")
    if column.circular:
        advice = "Wrap the angles to one turn in double precision"
    else:
        advice = (
            f"Centre the column: subtract {np.median(column.given):.10g} in double precision, "
            "here and in the program"
        )
    if column.finer:
        advice += ", or use model.double()"
    return Finding("precision", column.site, text, advice + ".", fatal)


def _precision_of(column: Column) -> str:
    """Half, single or double, in words."""
    return {2: "half", 4: "single", 8: "double"}[column.dtype.itemsize]


def _collinear(columns: Sequence[Column], near: Bool[np.ndarray, " n"]) -> Iterator[Finding]:
    """Columns that others determine: as they are, in unconstrained coordinates, or by rank."""
    shown = [column for column in columns if not column.implied]
    if len(shown) < 2 or near.sum() < len(shown) + LEAST:
        return
    given = table_of(columns)
    near = near & bulk(given)
    free = np.stack([c.given if c.free is None else c.free for c in shown], 1)
    named: set[int] = set()
    for table, words in ((given, ""), (free, " in unconstrained coordinates")):
        for relation in relations(table[near], NEARLY):
            if relation.by and relation.column not in named:
                named.add(relation.column)
                yield _related(relation, shown, f"follows linearly{words} from")
    for relation in same_order(given[near], NEARLY):
        if relation.column not in named:
            named.add(relation.column)
            yield _related(relation, shown, "is a monotone function of")


def _related(relation: Relation, columns: Sequence[Column], words: str) -> Finding:
    column, others = columns[relation.column], [columns[i].name for i in relation.by]
    fatal = relation.left <= DETERMINED
    open_ = "exactly"
    if relation.left > EXACT:
        open_ = f"of its standard deviation {relation.left:.1g} is left open"
    return Finding(
        "collinear", column.site,
        f"site {column.site!r}: {column.name} {words} {few(others)} ({open_})",
        ("There is no density of" if fatal else "Their density is a thin sheet, of")
        + f" all of them together: drop {column.name}, and compute it from the others.", fatal,
    )  # fmt: skip


def _ties(columns: Sequence[Column]) -> Iterator[Finding]:
    """Columns in which values repeat more often than a density allows."""
    for column in columns:
        values = column.given.round(6) if column.circular else column.given
        found = ties(values, NOTED)
        pairs = found.agree * len(values) ** 2 / 2
        share = sum(share for _, share in found.atoms)
        rounded = found.agree >= ROUNDED and pairs >= PAIRS
        if share >= NOTED or rounded:
            fatal = share >= ATOM or (found.agree >= COARSE and pairs >= PAIRS)
            yield _tied(column, found, len(values), fatal=fatal)
        elif found.whole and centre_and_scale(values[:, None])[1, 0] < WHOLE:
            yield Finding(
                "whole_numbers", column.site,
                f"site {column.site!r}: every value of {column.name} is a whole number",
                "If they are counts or rounded, add uniform jitter of width 1.", False,
            )  # fmt: skip


def _without(column: Column, away: Bool[np.ndarray, " n"]) -> Column:
    """A column less its far rows."""
    turns = None if column.turns is None else column.turns[~away]
    return column._replace(given=column.given[~away], turns=turns)


def _coded(
    columns: Sequence[Column], numbers: Int[np.ndarray, " n"], x: Sites
) -> Iterator[Finding]:
    """Codes for missing values that are not far from the others, nor tied rows anyway."""
    for column in columns:
        values = column.given if column.turns is None else column.turns
        for coded in coded_rows(values):
            if len(coded.rows) < (ATOM if coded.apart else NOTED) * len(values):
                yield coded_finding(column, coded, numbers, x)


def _tied(column: Column, found: Ties, n: int, *, fatal: bool) -> Finding:
    shown = ", ".join(
        f"{value:.6g} in {share:.1%}" for value, share in found.atoms or found.common
    )
    if column.circular:
        shown = ", ".join(f"one in {share:.1%}" for _, share in found.atoms or found.common)
    if found.atoms:
        so = "so log-likelihoods mean nothing" if fatal else "and a long fit makes it a spike"
        advice = (
            f"A density can rise without bound at one value, {so}: model the rows that have it "
            "apart, or drop them; if it stands for a range, draw them from that range at random."
        )
    else:
        jitter = f"uniform jitter of the rounding's width ({found.step:.3g}), inside the support."
        advice = f"Make them continuous: add {jitter}"
        if found.distinct <= CLASSES:
            advice = (
                "Classes have no density: leave the column out, or fit each class apart. If it is "
                f"a rounded number, add {jitter}"
            )
        if fatal:
            advice = f"So coarse, log-likelihoods mean nothing. {advice}"
    whole = ", all whole numbers" if found.whole else ""
    return Finding(
        "tied_rows", column.site,
        f"site {column.site!r}: {column.name} has {found.distinct} different values in {n} rows"
        f"{whole} ({shown})", advice, fatal,
    )  # fmt: skip


def _repeated(columns: Sequence[Column]) -> Iterator[Finding]:
    """Whole rows that repeat, more than the rounding of their columns explains."""
    table = table_of(columns)
    table = table[:, [r.column for r in relations(table, DETERMINED) if r.left > DETERMINED]]
    if table.shape[1] < 2:
        return
    counts, n = row_counts(table), len(table)
    by_column = min(agreement(np.unique(column, return_counts=True)[1]) for column in table.T)
    if 1 - len(counts) / n < COPIES or agreement(counts) < by_column / 2:
        return
    yield Finding(
        "repeated_rows", columns[0].site,
        f"site {columns[0].site!r}: of {n} rows {len(counts)} are different, one of them repeated "
        f"{counts.max()} times",
        "Copies are no further evidence, and none of them is held out: keep one of each, or pass "
        "groups=, a label per different row, to diagnose.", n / len(counts) >= REPEATS,
    )  # fmt: skip


def _shortened(found: Sequence[Finding]) -> list[Finding]:
    """At most three findings of a kind and severity; the last says how many more there are."""
    kept: list[Finding] = []
    for kind, fatal in dict.fromkeys((finding.kind, finding.fatal) for finding in found):
        some = [f for f in found if (f.kind, f.fatal) == (kind, fatal)]
        if len(some) > SHOWN:
            more = f"{some[SHOWN - 1].text}; and {len(some) - SHOWN} more columns like that"
            some[SHOWN - 1] = dataclasses.replace(some[SHOWN - 1], text=more)
        kept += some[:SHOWN]
    return kept


def warn(findings: Sequence[Finding]) -> None:
    """One warning with everything that makes a fit to the rows meaningless; none for cautions."""
    fatal = [finding for finding in findings if finding.fatal]
    if fatal:
        warnings.warn("the data:\n" + "\n".join(map(str, fatal)), UserWarning, stacklevel=3)


@contextmanager
def said() -> Iterator[None]:
    """Within it nothing warns of rows: what is wrong is said by other numbers than their own."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="the data:")
        yield


@contextmanager
def blamed(findings: Sequence[Finding]) -> Iterator[None]:
    """Errors of a generator that the rows explain, as errors of the data.

    Raises:
        DataError: a generator failed, and a column is constant, too fine for the model's type, or
            has rows far from all others.
    """
    try:
        yield
    except GeneratorError as error:
        for finding in findings:
            if finding.fatal and finding.kind in EXPLAINING:
                raise DataError(
                    f"{finding.text}; expected a column that a generator can follow.\n"
                    f"  {finding.advice}"
                ) from error
        raise
