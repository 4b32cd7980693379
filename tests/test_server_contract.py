"""What the OpenAPI document promises, held against the server by requests that schemathesis makes up."""

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, settings
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)
from tests.cli_support import tiny_model
from tests.server_support import live

from palate.server.app import create_app
from palate.server.settings import Settings

schema = schemathesis.openapi.from_dict(create_app(Settings(str(tiny_model()))).openapi())


@pytest.fixture(scope="module")
def contract_server():
    with live(rate=1_000_000) as one:
        yield one


@schema.parametrize()
@settings(
    max_examples=25,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
    deadline=None,
    derandomize=True,
)
def test_no_request_breaks_the_contract(case, contract_server):
    case.call_and_validate(
        base_url=contract_server.url,
        headers={"authorization": f"Bearer {contract_server.key}"},
        checks=[
            not_a_server_error,
            status_code_conformance,
            content_type_conformance,
            response_schema_conformance,
        ],
    )


def test_the_document_names_every_failure_and_every_scope():
    found = schema.raw_schema["paths"]
    assert len(found) >= 13
    for path, methods in found.items():
        for method, told in methods.items():
            if path == "/health":
                continue
            assert {"400", "401", "403", "413", "429", "500", "503"} <= set(told["responses"]), (method, path)
            assert told["security"] and told["tags"] and (told.get("description") or told.get("summary"))
