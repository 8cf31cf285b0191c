"""What the service can be told from outside: environment variables that start with GPUCALC_."""

from pydantic import NonNegativeInt, PositiveInt
from pydantic_settings import BaseSettings, SettingsConfigDict


class Settings(BaseSettings):
    model_config = SettingsConfigDict(env_prefix="GPUCALC_", frozen=True, use_attribute_docstrings=True)

    max_body_bytes: PositiveInt = 2**20
    """Larger request bodies get 413; a config.json has a few kB."""
    cache_seconds: NonNegativeInt = 300
    """How long a client may keep the answer to a GET without asking again."""
    access_log: bool = False
    """One JSON line per request on standard error."""
