"""The OpenAPI document: complete, with examples, and no request that it allows or forbids ends in a 5xx."""

import os

import pytest
from serve_kit import TOKEN, running

from avse.serve.app import create_app


def test_every_route_documents_its_errors_and_has_an_example(index):
    said = create_app(index, token=TOKEN).openapi()
    operations = [(path, method, each) for path, part in said["paths"].items() for method, each in part.items()]
    assert len(operations) == 12
    for path, method, operation in operations:
        assert operation["summary"] and operation["description"].endswith("."), (path, method)
        assert {"400", "401", "403", "422", "429", "503"} <= set(operation["responses"]), (path, method)
        for status, answer in operation["responses"].items():
            if status.startswith(("4", "5")):
                schema = answer["content"]["application/json"]["schema"]
                assert schema["$ref"].endswith("/Error"), (path, method, status)
        if method == "post" and path != "/api/session":
            assert operation["requestBody"]["required"]
        good = {status: answer for status, answer in operation["responses"].items() if status < "300"}
        asked = [operation.get("parameters"), operation.get("requestBody"), good]
        assert has_example(asked, said["components"]["schemas"]), (path, method)
    explained = said["paths"]["/api/explain"]["get"]["responses"]["200"]["content"]["application/json"]["schema"]
    assert explained["$ref"].endswith("/Explained")
    search = said["paths"]["/api/search"]["post"]["requestBody"]["content"]
    assert search["application/json"]["examples"] and "multipart/form-data" in search
    assert said["components"]["schemas"]["HitOut"]["examples"]
    schemes = said["components"]["securitySchemes"]
    assert schemes == {"token": {"type": "http", "scheme": "bearer"}}
    assert said["paths"]["/healthz"]["get"]["security"] == []


def has_example(part, schemas):
    """Whether there is an example somewhere in a part of the document, or in a schema that it names."""
    if isinstance(part, list):
        return any(has_example(each, schemas) for each in part)
    if not isinstance(part, dict):
        return False
    if "$ref" in part:
        return has_example(schemas[part["$ref"].rpartition("/")[2]], schemas)
    return bool(part.get("example") or part.get("examples")) or has_example(list(part.values()), schemas)


@pytest.mark.slow
@pytest.mark.parametrize("store", ["memory", "embedded"], indirect=True)
def test_schemathesis_finds_no_error_of_the_server(index):
    """Some hundred made requests a route; AVSE_SCHEMA_EXAMPLES makes it more."""
    schemathesis = pytest.importorskip("schemathesis")
    from hypothesis import HealthCheck, Phase, given, settings

    most = int(os.environ.get("AVSE_SCHEMA_EXAMPLES", "30"))
    with running(index, token=TOKEN) as server:
        schema = schemathesis.openapi.from_url(f"{server.url}/openapi.json")
        checks = [schemathesis.checks.not_a_server_error]
        counts: dict[int, int] = {}
        for found in schema.get_all_operations():
            operation = found.ok()
            for mode in (schemathesis.GenerationMode.POSITIVE, schemathesis.GenerationMode.NEGATIVE):
                try:
                    strategy = operation.as_strategy(generation_mode=mode)
                except schemathesis.errors.SchemathesisError:
                    continue  # nothing about it can be wrong

                @given(case=strategy)
                @settings(
                    max_examples=most,
                    deadline=None,
                    database=None,
                    derandomize=True,
                    phases=[Phase.generate],
                    suppress_health_check=list(HealthCheck),
                )
                def ask(case):
                    answer = case.call(headers={"Authorization": f"Bearer {TOKEN}"})
                    counts[answer.status_code] = counts.get(answer.status_code, 0) + 1
                    documented = {int(status) for status in case.operation.definition.raw["responses"]}
                    assert answer.status_code in documented | {405}, (case.as_curl_command(), answer.text)
                    case.validate_response(answer, checks=checks)

                try:
                    ask()
                except Exception as error:
                    if "Unsatisfiable" not in type(error).__name__:
                        raise
        assert sum(counts.values()) > 100 and not [status for status in counts if status >= 500], counts
        server.lives()
