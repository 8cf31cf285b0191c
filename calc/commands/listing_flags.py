"""What the catalogue's lists take on the command line."""

import argparse

from calc.flags import add_field_flag, field_named, flag
from calc.listing import Listing, listing_from_strings
from calc.scenario import Question

from .answer import add_json_flag


def add_listing_flags(parser: argparse.ArgumentParser, listing: type[Question]) -> None:
    """NAME and one flag per other field of a listing; what is true or false is true when its flag is there."""
    for name, field in listing.model_fields.items():
        if name == "name":
            parser.add_argument(name, metavar="NAME", nargs="?", help=field.description)
        elif field.annotation is bool:
            parser.add_argument(
                flag(name),
                dest="fields",
                action="append_const",
                const=(name, "true"),
                default=[],
                help=field.description,
            )
        else:
            add_field_flag(parser, name, field)
    add_json_flag(parser)


def listing_from_options(listing: type[Listing], options: argparse.Namespace) -> Listing:
    """The listing that the parsed flags describe; columns may be written with dashes."""
    named = [("name", options.name)] if options.name is not None else []
    fields = [(name, field_named(text) if name == "sort" else text) for name, text in options.fields]
    return listing_from_strings(listing, [*named, *fields])
