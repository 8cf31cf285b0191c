"""The formulas against every record: a line for each quantity, and whether all is within the stated bounds."""

from collections import defaultdict
from collections.abc import Iterable

from calc.errors import ConfigError
from validation.compare import Comparison, compare
from validation.records import Record, read_all

PASSED, FAILED = 0, 1


def regress(records: Iterable[Record]) -> int:
    """Prints one line per quantity, then what is beyond its bound; returns the exit status."""
    records = list(records)
    comparisons, refusals = compared(records)
    for kind in ("trace", "measurement"):
        of_kind = [each for each in comparisons if each.record.kind == kind]
        failed = sum(record.kind == kind and bool(record.failed) for record in records)
        print(f"{len({each.record.id for each in of_kind})} {kind}s compared, {failed} that did not run")
        print(*table(of_kind), sep="\n")
    beyond = [each for each in comparisons if not each.is_within]
    print(*refusals, *map(complaint, beyond), sep="\n")
    return FAILED if beyond or refusals else PASSED


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
    by_quantity: dict[str, list[Comparison]] = defaultdict(list)
    for each in comparisons:
        by_quantity[each.quantity].append(each)
    return [
        f"  {quantity:<60} {len(group):>4} cases {sum(each.relative_error == 0 for each in group):>4} exact"
        f"   largest error {max(abs(each.relative_error) for each in group):8.4%} of at most {group[0].bound:.0%}"
        for quantity, group in sorted(by_quantity.items())
    ]


def complaint(beyond: Comparison) -> str:
    return (
        f"BEYOND   {beyond.record.kind} {beyond.record.id}: {beyond.quantity} estimated {beyond.estimated:,}, "
        f"measured {beyond.measured:,} ({beyond.relative_error:+.4%}, bound {beyond.bound:.0%})"
    )


def main() -> int:
    return regress(read_all())
