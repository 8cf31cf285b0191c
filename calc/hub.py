"""A model's config.json from the Hugging Face hub, where `huggingface_hub` is installed."""

from collections.abc import Callable
from threading import Thread
from typing import Any

from .errors import ConfigError
from .json_file import read_json_object

CONFIG_FILE = "config.json"

HUB_SECONDS = 5.0
"""How long a person waits. The library itself tries again for half a minute, and looks up names without a limit."""


def hub_config(hub_id: str, suggested: str) -> dict[str, Any]:
    """The config of a public repository, or of one that a token opens; from the library's cache when the hub is out of
    reach. `suggested` ends the message of an id that may be misspelt.

    Raises ConfigError, and ModuleNotFoundError where the library is not installed.
    """
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        RemoteEntryNotFoundError,
        RepositoryNotFoundError,
    )

    try:
        path = _in_time(lambda: _downloaded(hub_id))
    except GatedRepoError:
        problem = (
            f"is gated on the hub: accept its terms there and log in with `hf auth login`, or give its {CONFIG_FILE}"
        )
    except RepositoryNotFoundError:
        problem = f"is not in the catalogue, and not on the hub or private there{suggested}"
    except RemoteEntryNotFoundError:
        problem = f"has no {CONFIG_FILE} on the hub"
    except HFValidationError:
        problem = f"is not in the catalogue, and no id of the hub{suggested}"
    except OSError as error:
        answer = error.__cause__ if isinstance(error, LocalEntryNotFoundError) else error
        if isinstance(answer, HfHubHTTPError):
            problem = f"could not be read from the hub: {_first_line(answer)}"
        else:
            problem = (
                f"is not in the catalogue, and the hub was not reached within {HUB_SECONDS:g} seconds; "
                f"a path to its {CONFIG_FILE} needs no hub{suggested}"
            )
    else:
        return read_json_object(path, "model")
    raise ConfigError("model", hub_id, problem) from None


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]


def _downloaded(hub_id: str) -> str:
    """The path of the config in the library's cache, after a look whether it is the newest."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.utils import logging

    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # each time it tries again it warns
    try:
        return hf_hub_download(hub_id, CONFIG_FILE, etag_timeout=HUB_SECONDS)
    finally:
        logging.set_verbosity(verbosity)


def _in_time(call: Callable[[], str]) -> str:
    """What `call` returns or raises; TimeoutError after HUB_SECONDS, when it is left to itself."""
    results: list[str] = []
    errors: list[Exception] = []

    def attempt() -> None:
        try:
            results.append(call())
        except Exception as error:  # raised again below, in the caller's thread
            errors.append(error)

    thread = Thread(target=attempt, daemon=True)
    thread.start()
    thread.join(HUB_SECONDS)
    if errors:
        raise errors[0]
    if not results:
        raise TimeoutError
    return results[0]
