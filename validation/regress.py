"""The formulas against every record: a line for each quantity, and whether all is within the stated bounds.

Recorded allocator histories are replayed too; there the simulation's counters should be torch's, to the byte.
"""

from collections.abc import Iterable

from calc.errors import ConfigError
from validation.compare import Comparison, compare
from validation.records import Record, read_all
from validation.replay import Replayed, replayed
from validation.verdict import KINDS, by_quantity, counts, of_kind, record_key

PASSED, FAILED = 0, 1


def regress(records: Iterable[Record]) -> int:
    """Prints one line per quantity, then what is beyond its bound; returns the exit status."""
    records = list(records)
    comparisons, refusals = compared(records)
    for kind in KINDS:
        cases = of_kind(comparisons, kind)
        number = counts(records, cases, kind)
        print(f"{number['cases']} {kind}s compared, {number['did_not_run']} that did not run")
        print(*table(cases), sep="\n")
    counters = [each for record in records for each in replayed(record)]
    print(replay_line(counters))
    complaints = [
        *refusals,
        *(complaint(each) for each in comparisons if not each.is_within),
        *(f"DIFFERS  {each}" for each in counters if not each.is_exact),
    ]
    print(*complaints, sep="\n")
    return FAILED if complaints else PASSED


def compared(records: Iterable[Record]) -> tuple[list[Comparison], list[str]]:
    """All comparisons, and a line for each record whose scenario the formulas refuse."""
    comparisons: list[Comparison] = []
    refusals: list[str] = []
    for record in records:
        try:
            comparisons += compare(record)
        except ConfigError as error:
            refusals.append(f"REFUSED  {record.kind} {record.id}: {error}")
    return comparisons, refusals


def table(comparisons: Iterable[Comparison]) -> list[str]:
    """Quantity, cases, how many are exact, largest error, its bound."""
    return [
        f"  {quantity:<60} {len(group):>4} cases {sum(each.relative_error == 0 for each in group):>4} exact"
        f"   largest error {max(abs(each.relative_error) for each in group):8.4%} of at most {group[0].bound:.0%}"
        for quantity, group in sorted(by_quantity(comparisons).items())
    ]


def replay_line(counters: list[Replayed]) -> str:
    """How many histories were replayed, and how many of the allocator's counters came out exact."""
    histories = len({record_key(each.record) for each in counters})
    exact = sum(each.is_exact for each in counters)
    return f"{histories} allocator histories replayed, {exact} of {len(counters)} counters exact"


def complaint(beyond: Comparison) -> str:
    return (
        f"BEYOND   {beyond.record.kind} {beyond.record.id}: {beyond.quantity} estimated {beyond.estimated:,}, "
        f"measured {beyond.measured:,} ({beyond.relative_error:+.4%}, bound {beyond.bound:.0%})"
    )


def main() -> int:
    return regress(read_all())
