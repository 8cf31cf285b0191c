"""Whatever the document allows, and much that it does not: an answer as documented, never a failure of the server."""

import schemathesis
from hypothesis import HealthCheck, settings

from api.app import create_app
from api.settings import Settings

schema = schemathesis.openapi.from_asgi("/openapi.json", create_app(Settings()))


@schema.parametrize()
@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
def test_every_address_answers_as_documented(case):
    checks = [schemathesis.checks.not_a_server_error]
    case.call_and_validate(checks=checks)
