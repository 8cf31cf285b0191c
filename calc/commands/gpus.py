"""`gpucalc gpus`."""

import argparse

from calc.listing import GpuListing, list_gpus

from .answer import ANSWERED, write_json
from .listing_flags import add_listing_flags, listing_from_options


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_listing_flags(parser, GpuListing)


def run(options: argparse.Namespace) -> int:
    gpus = list_gpus(listing_from_options(GpuListing, options))
    if options.json:
        write_json([gpu.to_dict() for gpu in gpus])
    else:
        from calc.report.lists import print_gpus

        print_gpus(gpus)
    return ANSWERED
