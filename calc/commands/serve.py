"""`gpucalc serve`."""

import argparse

from .answer import ANSWERED, complain


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--host", default="127.0.0.1", help="Address to listen on. Default: %(default)s.")
    parser.add_argument("--port", default=8000, type=_port, help="Default: %(default)s.")


def run(options: argparse.Namespace) -> int:
    try:
        import uvicorn
    except ModuleNotFoundError:
        return complain("serve needs packages that are not installed: pip install 'gpucalc[serve]'")
    uvicorn.run("api.app:create_app", factory=True, host=options.host, port=options.port, access_log=False)
    return ANSWERED


def _port(text: str) -> int:
    port = int(text)
    if not 0 <= port < 2**16:
        raise ValueError
    return port
