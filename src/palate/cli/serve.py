"""The command that serves, and those of an operator: keys, tenants, people, and the database."""

import json
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from palate.cli.common import DatabaseOption, JsonOption, SeedOption, note, print_json, progress, stdout
from palate.cli.sources import (
    CandidatesOption,
    PolicyOption,
    StrategyOption,
    TokensOption,
    UpstreamModelOption,
    UpstreamOption,
    ValueHeadOption,
)
from palate.errors import InputError, MissingExtraError

if TYPE_CHECKING:
    from palate.store import User

keys = typer.Typer(name="keys", help="API keys: made, listed, revoked.", no_args_is_help=True)
users = typer.Typer(name="users", help="People's data: listed, out, or away.", no_args_is_help=True)
tenants = typer.Typer(name="tenants", help="Tenants: listed, and what holds for their users.", no_args_is_help=True)
db = typer.Typer(name="db", help="The database.", no_args_is_help=True)

TenantOption = Annotated[str, typer.Option(metavar="NAME", help="Whose users.")]
WhoOption = Annotated[str, typer.Option("--user", metavar="U", help="Who.")]


def serve(
    model: Annotated[
        Path | None,
        typer.Argument(
            metavar="DIR",
            help="A reward model's folder; one of the bundled people, made at the first start, if left out.",
            show_default=False,
        ),
    ] = None,
    host: Annotated[str, typer.Option(metavar="ADDRESS", help="Where requests are taken.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(metavar="N", min=1, max=65535, help="Of TCP.")] = 8600,
    workers: Annotated[int, typer.Option(metavar="N", min=1, help="Processes; over one, use PostgreSQL.")] = 1,
    upstream: UpstreamOption = None,
    upstream_model: UpstreamModelOption = None,
    policy: PolicyOption = None,
    adapters: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Folder of the policy's adapters: each person is answered with theirs.",
            show_default=False,
        ),
    ] = None,
    value_head: ValueHeadOption = None,
    strategy: StrategyOption = "best-of-n",
    candidates: CandidatesOption = 8,
    max_tokens: TokensOption = 512,
    generic: Annotated[
        float, typer.Option(metavar="X", help="Share of answers that chance makes the usual ones, to measure against.")
    ] = 0.05,
    open_: Annotated[
        bool, typer.Option("--open", help="Take requests without a key, for trying out on this machine.")
    ] = False,
    rate: Annotated[int, typer.Option(metavar="N", min=1, help="Requests a minute of a key, in each worker.")] = 6_000,
    max_bytes: Annotated[int, typer.Option(metavar="N", min=1, help="Of a request's body.")] = 1_000_000,
    public_url: Annotated[
        str | None,
        typer.Option(metavar="URL", help="Under which browsers reach the server, for links.", show_default=False),
    ] = None,
    database: DatabaseOption = None,
    seed: SeedOption = 0,
    as_json: JsonOption = False,
) -> None:
    """Serve an OpenAI-compatible API that learns each person's taste, and its pages. Ctrl-C stops it."""
    try:
        import uvicorn

        from palate.server.logs import configure
        from palate.server.settings import Settings
    except ModuleNotFoundError as error:
        raise MissingExtraError(str(error.name), "serve") from error
    if open_ and host not in ("127.0.0.1", "localhost", "::1"):
        raise InputError(f"--open lets everybody in and --host {host!r} can be reached from elsewhere; leave one out")
    folder = model if model is not None else _bundled_model(seed)
    settings = Settings(
        model=str(folder),
        database=database or os.environ.get("PALATE_DATABASE"),
        upstream=upstream,
        upstream_model=upstream_model,
        policy=policy,
        adapters=str(adapters) if adapters else None,
        value_head=str(value_head) if value_head else None,
        strategy=strategy,
        candidates=candidates,
        max_tokens=max_tokens,
        generic=generic,
        open=open_,
        rate=rate,
        max_bytes=max_bytes,
        public_url=public_url,
    )
    _check(settings.strategy, folder, settings.database)
    settings.to_environment()
    if workers > 1:
        # The workers' figures are added up through files that are theirs alone.
        os.environ["PROMETHEUS_MULTIPROC_DIR"] = tempfile.mkdtemp(prefix="palate-metrics-")
    configure()
    url = f"http://{host}:{port}"
    if as_json:
        print_json({"url": f"{url}/v1", "operator": f"{url}/operator", "model": str(folder)})
    note(f"Palate answers at {url}/v1; the operator's page is {url}/operator")
    uvicorn.run(
        "palate.server.app:from_environment",
        factory=True,
        host=host,
        port=port,
        workers=workers,
        log_config=None,
        access_log=False,
        timeout_graceful_shutdown=30,
        timeout_keep_alive=75,  # longer than balancers keep a connection, so that none sends into a closed one
        server_header=False,
    )


def _check(strategy: str, folder: Path, database: str | None) -> None:
    """Fail here, with one line, rather than in a worker."""
    from palate.alignment.strategies import parts_of
    from palate.rewards import RewardModel
    from palate.store import Store
    from palate.store.keys import Keys

    parts_of(strategy)
    RewardModel.load(folder)
    with Store.open(database) as store:
        if not Keys(store).all():
            note("There is no API key yet; make one with: palate keys create --scopes chat,feedback,admin")


def _bundled_model(seed: int) -> Path:
    """The base rewards of the bundled people, fitted once."""
    from palate.data import load_people
    from palate.encoders import load_encoder
    from palate.encoders.cache import default_cache_dir
    from palate.errors import ModelError
    from palate.feedback import Feedback
    from palate.rewards import RewardModel, fit

    folder = default_cache_dir() / "models" / f"bundled-{seed}"
    try:
        RewardModel.load(folder)
    except ModelError:
        note("Learning from the bundled people; the first time their texts are read, which takes a minute")
        with progress() as told:
            fit(Feedback(comparisons=load_people()), load_encoder(), seed=seed, progress=told).save(folder)
    return folder


# Keys


@keys.command("create")
def create_key(
    scopes: Annotated[str, typer.Option(metavar="A,B", help="Some of chat, feedback, admin.")] = "chat,feedback",
    tenant: TenantOption = "default",
    name: Annotated[str, typer.Option(metavar="TEXT", help="What it is for.")] = "",
    database: DatabaseOption = None,
    as_json: JsonOption = False,
) -> None:
    """Make a key, which is shown this once."""
    from palate.store import Store
    from palate.store.keys import Keys

    with Store.open(database) as store:
        key, made = Keys(store).create([s.strip() for s in scopes.split(",") if s.strip()], tenant=tenant, name=name)
    if as_json:
        print_json({"key": key, "id": made.id, "tenant": made.tenant, "scopes": list(made.scopes)})
        return
    stdout().print(key, markup=False)
    note("Keep it now: it is not shown again")


@keys.command("list")
def list_keys(database: DatabaseOption = None, as_json: JsonOption = False) -> None:
    """The keys there are, without what makes them good."""
    from palate.store import Store
    from palate.store.keys import Keys

    with Store.open(database, create=False) as store:
        found = Keys(store).all()
    if as_json:
        print_json(
            {
                "keys": [
                    {"id": k.id, "tenant": k.tenant, "name": k.name, "scopes": list(k.scopes), "good": not k.revoked_at}
                    for k in found
                ]
            }
        )
        return
    for k in found:
        good = f", revoked {k.revoked_at:%Y-%m-%d}" if k.revoked_at else ""
        stdout().print(f"{k.id}  {k.tenant}  {','.join(k.scopes)}  {k.name}{good}", markup=False)


@keys.command("revoke")
def revoke_key(
    key: Annotated[str, typer.Argument(metavar="ID", help="As palate keys list shows it.")],
    database: DatabaseOption = None,
    as_json: JsonOption = False,
) -> None:
    """Make a key good for nothing, within five seconds."""
    from palate.store import Store
    from palate.store.keys import Keys

    with Store.open(database, create=False) as store:
        if not Keys(store).revoke(key):
            raise InputError(f"There is no good key {key!r}; see palate keys list")
    if as_json:
        print_json({"id": key, "revoked": True})
        return
    note(f"Key {key} is revoked")


# People


@users.command("list")
def list_users(tenant: TenantOption = "default", database: DatabaseOption = None, as_json: JsonOption = False) -> None:
    """Who is known."""
    from palate.store import Store

    with Store.open(database, create=False) as store:
        found = [(user, store.evidence_count(user)) for user in store.users(tenant)]
    if as_json:
        print_json({"users": [{"id": u.external_id, "paused": u.paused, "said": count} for u, count in found]})
        return
    for user, count in found:
        stdout().print(f"{user.external_id}  said {count}{', paused' if user.paused else ''}", markup=False)


def _known(store: object, user: str, tenant: str) -> "User":
    from palate.store import Store

    assert isinstance(store, Store)
    found = store.user(user, tenant)
    if found is None:
        raise InputError(f"User {user!r} is not in the database; see palate users list --tenant {tenant}")
    return found


@users.command("export")
def export_user(
    user: WhoOption,
    output: Annotated[Path, typer.Option(metavar="FILE", help="Where all that is kept of them goes, as JSON.")],
    tenant: TenantOption = "default",
    database: DatabaseOption = None,
    as_json: JsonOption = False,
) -> None:
    """All that is kept of a person, for them to take along."""
    from palate.store import Store

    with Store.open(database, create=False) as store:
        whole = store.export(_known(store, user, tenant))
    try:
        output.write_text(json.dumps(whole, ensure_ascii=False, indent=2, default=str), encoding="utf-8")
    except OSError as error:
        raise InputError(f"{str(output)!r} cannot be written: {error}; give another file") from error
    counts = {table: len(rows) for table, rows in whole.items() if rows}
    if as_json:
        print_json({"user": user, "output": str(output), "rows": counts})
        return
    note(f"{sum(counts.values())} rows written to {output}")


@users.command("forget")
def forget_user(
    user: WhoOption,
    adapters: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Folder of adapters, of which theirs are erased too.", show_default=False),
    ] = None,
    tenant: TenantOption = "default",
    database: DatabaseOption = None,
    as_json: JsonOption = False,
) -> None:
    """Erase a person: every row, copy and adapter, and what deleted rows leave in the database's files."""
    from palate.alignment.adapters import erase_adapters
    from palate.store import Store
    from palate.store.traces import traces_of

    with Store.open(database, create=False) as store:
        person = _known(store, user, tenant)
        texts = store.texts_of(person)
        rows = {table: count for table, count in store.forget(person).items() if count}
        gone = erase_adapters(adapters, [user]) if adapters else []
        left = traces_of(store.database, [user, *texts])
    if as_json:
        print_json({"user": user, "rows": rows, "adapters": [str(path) for path in gone], "traces": len(left)})
    else:
        note(f"{sum(rows.values())} rows and {len(gone)} adapters of {user!r} are erased")
    if left:
        raise InputError(
            f"{len(left)} of their texts still stand in the database's files; run it again when it is idle"
        )
    if not as_json:
        note("A scan of the database's files finds nothing of theirs")


@users.command("link")
def link_user(
    user: WhoOption,
    url: Annotated[str, typer.Option(metavar="URL", help="Under which browsers reach the server.")],
    tenant: TenantOption = "default",
    database: DatabaseOption = None,
    as_json: JsonOption = False,
) -> None:
    """A link that opens a person's own pages for a week."""
    from palate.server.people import LINK_SECONDS, link_token
    from palate.store import Store

    with Store.open(database) as store:
        store.ensure_user(user, tenant)
        link = f"{url.rstrip('/')}/me?key={link_token(store, user, tenant)}"
    if as_json:
        print_json({"user": user, "url": link, "expires_in": LINK_SECONDS})
        return
    stdout().print(link, markup=False)


# Tenants and the database


@tenants.command("list")
def list_tenants(database: DatabaseOption = None, as_json: JsonOption = False) -> None:
    """The tenants there are, and what holds for their users."""
    from dataclasses import asdict

    from palate.store import Store

    with Store.open(database, create=False) as store:
        found = store.tenants()
    if as_json:
        print_json({"tenants": [asdict(one) for one in found]})
        return
    for one in found:
        learns = "learns" if one.learn else "learns nothing"
        stdout().print(
            f"{one.name}  {learns}, keeps {one.retention}, answers for {one.completion_days} days", markup=False
        )


@tenants.command("set")
def set_tenant(
    tenant: Annotated[str, typer.Argument(metavar="NAME", help="Which; made if there is none.")],
    learn: Annotated[
        bool | None, typer.Option("--learn/--no-learn", help="Whether anything is learned.", show_default=False)
    ] = None,
    retention: Annotated[
        str | None,
        typer.Option(metavar="HOW", help="texts, or vectors: once read, texts are dropped.", show_default=False),
    ] = None,
    completion_days: Annotated[
        int | None, typer.Option(metavar="N", help="How long answers are remembered.", show_default=False)
    ] = None,
    database: DatabaseOption = None,
    as_json: JsonOption = False,
) -> None:
    """Change what holds for a tenant's users; what is left out stays."""
    from dataclasses import asdict

    from palate.store import Store

    with Store.open(database) as store:
        store.ensure_tenant(tenant)
        made = store.set_tenant(tenant, learn=learn, retention=retention, completion_days=completion_days)
    if as_json:
        print_json(asdict(made))
        return
    note(f"Tenant {tenant}: learn {made.learn}, retention {made.retention}, answers for {made.completion_days} days")


@db.command("upgrade")
def upgrade_database(database: DatabaseOption = None, as_json: JsonOption = False) -> None:
    """Bring a database to this version's schema; opening it does so, too."""
    from palate.store import Store

    with Store.open(database) as store:
        revision = store.current_revision
    if as_json:
        print_json({"revision": revision})
        return
    note(f"The database is at revision {revision}")
