"""`gpucalc models`."""

import argparse

from calc.listing import ModelListing, list_models

from .answer import ANSWERED, write_json
from .listing_flags import add_listing_flags, listing_from_options


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_listing_flags(parser, ModelListing)


def run(options: argparse.Namespace) -> int:
    models = list_models(listing_from_options(ModelListing, options))
    if options.json:
        write_json([model.to_dict() for model in models])
    else:
        from calc.report.lists import print_models

        print_models(models)
    return ANSWERED
