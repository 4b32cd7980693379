"""Keys, scopes, tenants and limits: nobody gets in without a key, or into another's data with one."""

import re

import httpx
import numpy as np
import pytest
from tests.server_support import COOKING, EVERY, live

from palate.store.keys import SCOPES, Keys

BODIES: dict[str, dict[str, object]] = {
    "/v1/chat/completions": {"messages": [{"role": "user", "content": COOKING}]},
    "/v1/feedback": {"completion_id": "chatcmpl-x", "name": "rating", "value": 1},
    "/v1/users/{id}/queries/{query_id}": {"choice": "a"},
    "/v1/jobs": {"kind": "rescore"},
}


@pytest.fixture(scope="module")
def server():
    with live() as one:
        yield one


def routes(server) -> list[tuple[str, str]]:
    with server.http() as http:
        paths = http.get("/openapi.json").json()["paths"]
    return [(method.upper(), path) for path, methods in paths.items() for method in methods]


def send(http: httpx.Client, method: str, path: str) -> httpx.Response:
    body = BODIES.get(path) if method in ("POST", "PATCH") else None
    filled = re.sub(r"\{[a-z_]+\}", "x", path)
    return http.request(method, filled, json=body if body or method != "PATCH" else {})


def test_every_route_but_health_needs_a_key(server):
    found = routes(server)
    assert len(found) >= 17
    for headers in ({}, {"authorization": "Bearer pk-00000000-wrong"}, {"authorization": "Basic x"}):
        with httpx.Client(base_url=server.url, headers=headers) as http:
            for method, path in [*found, ("GET", "/openapi.json")]:
                status = send(http, method, path).status_code
                assert status == (200 if path == "/health" else 401), (method, path, headers)


def test_every_route_takes_the_scope_it_says_and_no_other(server):
    needed = {"/v1/chat": "chat", "/v1/models": "chat", "/v1/completions": "chat", "/v1/feedback": "feedback"}
    for method, path in routes(server):
        if path == "/health":
            continue
        scope = next((scope for start, scope in needed.items() if path.startswith(start)), "admin")
        scope = "feedback" if "/queries" in path else scope
        for one in SCOPES:
            with server.http(server.key_of(scopes=(one,))) as http:
                assert (send(http, method, path).status_code == 403) == (one != scope), (method, path, one)


def test_a_revoked_key_is_good_for_nothing():
    with live() as server:
        key, made = Keys(server.service.store).create(["chat"])
        assert Keys(server.service.store).revoke(made.id)
        with server.http(key) as http:
            assert http.get("/v1/models").status_code == 401


def test_requests_are_limited_and_told_when_to_come_back():
    with live(rate=5) as server, server.http() as http:
        answers = [http.get("/v1/models") for _ in range(7)]
    assert [one.status_code for one in answers] == [200] * 5 + [429] * 2
    assert 1 <= int(answers[-1].headers["retry-after"]) <= 60
    assert answers[-1].json()["error"]["code"] == "rate_limit_exceeded"


def test_an_open_server_needs_none_and_a_wrong_one_is_still_wrong():
    with live(open=True) as server:
        assert httpx.get(f"{server.url}/v1/models").status_code == 200
        with server.http("pk-wrong") as http:
            assert http.get("/v1/models").status_code == 401


def test_mixed_keys_never_reach_another_tenant_s_people(server):
    """Many requests drawn by chance: what a tenant sees names nobody of another."""
    rng = np.random.default_rng(0)
    tenants = ["red", "blue", "green"]
    people = {tenant: [f"{tenant}-{i}" for i in range(3)] for tenant in tenants}
    made: dict[str, list[str]] = {tenant: [] for tenant in tenants}
    clients = {tenant: server.http(server.key_of(tenant)) for tenant in tenants}
    everybody = [one for those in people.values() for one in those]
    for tenant in tenants:
        for who in people[tenant]:
            said = clients[tenant].post("/v1/chat/completions", json=BODIES["/v1/chat/completions"] | {"user": who})
            made[tenant].append(said.json()["id"])
            clients[tenant].post(
                "/v1/feedback", json={"completion_id": said.json()["id"], "name": "rating", "value": 1}
            )
    before = {tenant: clients[tenant].get(f"/v1/users/{tenant}-0/export").json() for tenant in tenants}
    for _ in range(600):
        tenant, other = rng.choice(tenants, 2, replace=False)
        http, who = clients[tenant], str(rng.choice(people[other]))
        completion = str(rng.choice(made[other]))
        method, path, body = [
            ("GET", f"/v1/users/{who}", None),
            ("GET", f"/v1/users/{who}/export", None),
            ("PATCH", f"/v1/users/{who}", {"reset": True}),
            ("DELETE", f"/v1/users/{who}", None),
            ("GET", f"/v1/completions/{completion}/explanation", None),
            ("POST", "/v1/feedback", {"completion_id": completion, "name": "rating", "value": 0}),
            ("POST", f"/v1/users/{who}/queries/{completion}", {"choice": "a"}),
            ("GET", "/v1/users", None),
        ][rng.integers(8)]
        answer = http.request(method, path, json=body)
        seen = answer.text.replace(who, "") if answer.status_code == 404 else answer.text
        assert answer.status_code in (200, 404), answer.text
        assert not [one for one in everybody if one in seen and one not in people[tenant]]
    for tenant in tenants:
        after = clients[tenant].get(f"/v1/users/{tenant}-0/export").json()
        assert after["evidence"] == before[tenant]["evidence"] and after["completion"] == before[tenant]["completion"]
        clients[tenant].close()


def test_the_same_name_is_somebody_else_in_another_tenant(server):
    with server.http(server.key_of("one")) as one, server.http(server.key_of("two")) as two:
        query = one.post("/v1/users/ann/queries").json()
        one.post(f"/v1/users/ann/queries/{query['query_id']}", json={"choice": "a"})
        assert len(one.get("/v1/users/ann").json()["evidence"]) == 1
        assert two.get("/v1/users/ann").status_code == 404


def test_a_key_is_kept_as_a_hash_alone(server):
    key = server.key_of(scopes=EVERY)
    path = server.database.removeprefix("sqlite:///")
    with open(path, "rb") as database:  # noqa: PTH123
        content = database.read()
    with open(f"{path}-wal", "rb") as log:  # noqa: PTH123
        content += log.read()
    assert key.encode() not in content and key.split("-", 2)[2].encode() not in content
