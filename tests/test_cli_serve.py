"""`palate serve` and an operator's commands: keys, people, tenants, the database."""

import json

import httpx
import pytest
from tests.cli_support import palate, tiny_model
from tests.server_support import free_port, spawn
from tests.support import comparison

from palate.store import Store
from palate.store.keys import Keys


@pytest.fixture
def database(tmp_path):
    return f"sqlite:///{tmp_path}/palate.db"


def test_a_key_is_made_shown_once_listed_and_revoked(database):
    made = palate("keys", "create", "--scopes", "chat, feedback", "--tenant", "shop", "--name", "till",
                  "--database", database, "--json").json  # fmt: skip
    assert made["tenant"] == "shop" and made["scopes"] == ["chat", "feedback"] and made["key"].startswith("pk-")
    with Store.open(database) as store:
        assert Keys(store).find(made["key"]) is not None
    listed = palate("keys", "list", "--database", database, "--json").json["keys"]
    assert listed == [
        {"id": made["id"], "tenant": "shop", "name": "till", "scopes": ["chat", "feedback"], "good": True}
    ]
    assert made["key"] not in palate("keys", "list", "--database", database).out
    assert palate("keys", "revoke", made["id"], "--database", database, "--json").json["revoked"]
    assert "no good key" in palate("keys", "revoke", made["id"], "--database", database).failure
    plain = palate("keys", "create", "--database", database)
    assert plain.out.startswith("pk-") and "not shown again" in plain.err


def test_a_scope_that_is_none_is_refused(database):
    assert "no scope 'root'" in palate("keys", "create", "--scopes", "root", "--database", database).failure


def test_people_are_listed_exported_linked_and_forgotten(database, tmp_path):
    with Store.open(database) as store:
        ann = store.ensure_user("ann@example.org")
        store.append(ann, comparison("ann@example.org", prompt="A question of my own?"))
    assert palate("users", "list", "--database", database, "--json").json["users"] == [
        {"id": "ann@example.org", "paused": False, "said": 1}
    ]
    assert palate("users", "list", "--database", database).out == "ann@example.org  said 1\n"
    file = tmp_path / "ann.json"
    words = ["--user", "ann@example.org", "--database", database]
    assert palate("users", "export", *words, "--output", file, "--json").json["rows"] == {"user": 1, "evidence": 1}
    assert json.loads(file.read_text("utf-8"))["evidence"][0]["payload"]["prompt"] == "A question of my own?"
    link = palate("users", "link", *words, "--url", "http://here", "--json").json["url"]
    assert link.startswith("http://here/me?key=") and "ann" not in link.replace("=", "").lower()[:30]
    gone = palate("users", "forget", *words, "--adapters", tmp_path, "--json").json
    assert (gone["rows"], gone["adapters"], gone["traces"]) == ({"evidence": 1, "user": 1}, [], 0)
    assert "is not in the database" in palate("users", "forget", *words).failure
    for path in tmp_path.glob("palate.db*"):
        assert b"ann@example.org" not in path.read_bytes()


def test_a_tenant_s_settings(database):
    made = palate("tenants", "set", "shop", "--no-learn", "--retention", "vectors", "--completion-days", 7,
                  "--database", database, "--json").json  # fmt: skip
    assert (made["learn"], made["retention"], made["completion_days"]) == (False, "vectors", 7)
    assert palate("tenants", "set", "shop", "--learn", "--database", database, "--json").json["learn"]
    assert "shop  learns, keeps vectors" in palate("tenants", "list", "--database", database).out
    assert [one["name"] for one in palate("tenants", "list", "--database", database, "--json").json["tenants"]] == [
        "default",
        "shop",
    ]
    assert (
        "'words' is not texts" in palate("tenants", "set", "x", "--retention", "words", "--database", database).failure
    )


def test_a_database_is_brought_up_to_date(database):
    assert palate("db", "upgrade", "--database", database, "--json").json == {"revision": "0005"}
    assert "at revision 0005" in palate("db", "upgrade", "--database", database).err


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--open", "--host", "0.0.0.0"], "--open lets everybody in"),
        (["--strategy", "magic"], "There is no strategy 'magic'"),
        (["--upstream", "http://x/v1", "--policy", "y"], "Both an upstream and a policy"),
        (["--adapters", "a"], "give that as the policy"),
        (["--generic", "1"], "generic 1.0 is not in"),
    ],
)
def test_what_a_server_cannot_be_is_told_before_it_starts(database, words, told):
    assert told in palate("serve", tiny_model(), "--database", database, *words).failure


def test_a_folder_that_holds_no_model_is_told(database, tmp_path):
    assert "Cannot read the reward model" in palate("serve", tmp_path, "--database", database).failure


def test_a_server_starts_answers_and_stops(database):
    server = spawn(database, free_port())
    try:
        listed = httpx.get(f"{server.url}/v1/models", headers={"authorization": f"Bearer {server.key}"})
        assert listed.status_code == 200
    finally:
        server.process.terminate()
        assert server.process.wait(40) in (0, -15)  # it ends its work, then as it was told to end
