"""The door: who is let in, what each role may do, whose jobs it sees, how often it may ask."""

from __future__ import annotations

import base64
import importlib
import pkgutil
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from fastapi import APIRouter, Depends, FastAPI
from starlette.routing import Route
from starlette.testclient import TestClient

import serve_app.http
from configs.load import SettingsError, load_settings
from configs.settings import HttpSettings
from serve_app.http.access import BATCH_PARAMETER, JOB_PARAMETERS, Doorman, own_jobs_only
from serve_app.http.problems import install
from serve_app.http.schemas import Problem
from serve_app.service.access import MAY, Access, Bucket
from serve_app.serving import require_keys
from serve_app.workplace import Workplace
from tests.desk import TWO_SHOTS, Shop, open_shop
from workflows.durable.keys import IssuedKey, Keys, Role
from workflows.errors import InvalidSettings

ORIGIN = "https://studio.example"


@pytest.fixture
def shop(tmp_path: Path, migrated_file: Path) -> Iterator[Shop]:
    """One that asks for keys."""
    shutil.copy(migrated_file, tmp_path / "state.db")
    shop = open_shop(tmp_path, tmp_path / "state.db", "http.require_keys=true", f"http.cors_origins=[{ORIGIN}]")
    with shop.client:
        yield shop
    shop.ledger.close()


@pytest.fixture
def keys(shop: Shop) -> dict[str, IssuedKey]:
    """A key of each role, and a second user's."""
    book = Keys(shop.ledger.database)
    return {name: book.create(name, role) for name, role in
            {"admin": Role.ADMIN, "user": Role.USER, "other": Role.USER, "read": Role.READ}.items()}


def bearer(key: IssuedKey) -> dict[str, str]:
    return {"Authorization": f"Bearer {key.token}"}


def submit(shop: Shop, key: IssuedKey) -> str:
    reply = shop.client.post("/api/films", json=TWO_SHOTS, headers=bearer(key))
    assert reply.status_code == 202, reply.text
    return str(reply.json()["id"])


class TestDoor:
    @pytest.mark.parametrize(("method", "path"), [
        ("GET", "/api/jobs"), ("POST", "/api/films"), ("GET", "/api/jobs/x/events"), ("GET", "/api/jobs/x/video"),
        ("HEAD", "/api/jobs/x/video"), ("DELETE", "/api/jobs/x"), ("GET", "/api/nothing"), ("GET", "/"),
        ("GET", "/metrics"),
    ])
    def test_without_a_key_nothing_is_answered_but_how_to_ask(
            self, shop: Shop, keys: dict[str, IssuedKey], method: str, path: str) -> None:
        reply = shop.client.request(method, path)
        assert (reply.status_code, reply.headers["www-authenticate"]) == (401, 'Bearer realm="reelray"')
        if method != "HEAD":
            assert Problem.model_validate_json(reply.content).code == "unauthorized"

    @pytest.mark.parametrize("path", ["/healthz", "/readyz", "/api/openapi.json"])
    def test_whoever_watches_the_server_needs_no_key(self, shop: Shop, path: str) -> None:
        assert shop.client.get(path).status_code == 200

    @pytest.mark.parametrize("bend", [
        lambda token: token[:-1], lambda token: token + "x", lambda token: token.upper(), lambda _: "",
        lambda token: token.replace("rr_", "xx_"), lambda token: "_".join([*token.split("_")[:2], "guess"]),
    ], ids=["cut", "longer", "shouted", "empty", "other prefix", "another secret"])
    def test_a_key_that_is_not_quite_right_opens_nothing(
            self, shop: Shop, keys: dict[str, IssuedKey], bend: object) -> None:
        token = bend(keys["admin"].token)  # type: ignore[operator]
        assert shop.client.get("/api/jobs", headers={"Authorization": f"Bearer {token}"}).status_code == 401

    def test_a_browser_is_asked_for_the_key_as_a_password_and_may_send_it_so(
            self, shop: Shop, keys: dict[str, IssuedKey]) -> None:
        asked = shop.client.get("/", headers={"Accept": "text/html,*/*"})
        assert asked.headers["www-authenticate"].startswith("Basic ")
        word = base64.b64encode(f"me:{keys['read'].token}".encode()).decode()
        assert shop.client.get("/api/jobs", headers={"Authorization": f"Basic {word}"}).status_code == 200

    @pytest.mark.parametrize("value", ["Basic ???", "Basic", "Bearer", "Basic " + base64.b64encode(b"\xff").decode(),
                                       "Digest x", "Bearer rr__", "Bearer rr_\x80"])
    def test_a_header_that_makes_no_sense_is_refused_like_none(self, shop: Shop, value: str) -> None:
        assert shop.client.get("/api/jobs", headers={"Authorization": value.encode("latin-1")}).status_code == 401  # type: ignore[dict-item]

    def test_a_revoked_key_is_refused(self, shop: Shop, keys: dict[str, IssuedKey]) -> None:
        Keys(shop.ledger.database).revoke(keys["user"].key.id)
        assert shop.client.get("/api/jobs", headers=bearer(keys["user"])).status_code == 401
        assert shop.client.get("/api/jobs", headers=bearer(keys["other"])).status_code == 200

    def test_under_v1_a_refusal_has_openais_shape(self, shop: Shop) -> None:
        error = shop.client.get("/v1/models").json()["error"]
        assert (error["type"], error["code"], error["param"]) == ("authentication_error", "unauthorized", None)

    def test_the_secret_is_nowhere_in_the_database(
            self, shop: Shop, keys: dict[str, IssuedKey], tmp_path: Path) -> None:
        stored = b"".join(path.read_bytes() for path in tmp_path.glob("state.db*"))
        for issued in keys.values():
            assert issued.key.digest.encode() in stored
            assert issued.token.split("_", 2)[2].encode() not in stored  # the secret itself may hold a "_"


class TestRoles:
    def test_every_role_has_a_line_in_the_table(self) -> None:
        assert set(MAY) == set(Role)

    @pytest.mark.parametrize(("who", "looks", "changes"), [
        ("admin", 200, 202), ("user", 200, 202), ("read", 200, 403)])
    def test_roles_look_and_change(
            self, shop: Shop, keys: dict[str, IssuedKey], who: str, looks: int, changes: int) -> None:
        assert shop.client.get("/api/jobs", headers=bearer(keys[who])).status_code == looks
        reply = shop.client.post("/api/films", json=TWO_SHOTS, headers=bearer(keys[who]))
        assert reply.status_code == changes
        if changes == 403:
            promoted = shop.client.post("/api/films/any/promote", headers=bearer(keys[who]))
            assert promoted.status_code == 403
            assert "insufficient_scope" in reply.headers["www-authenticate"]
            assert "role read" in reply.json()["detail"]

    def test_a_user_has_its_own_jobs_and_no_others(self, shop: Shop, keys: dict[str, IssuedKey]) -> None:
        mine, theirs = submit(shop, keys["user"]), submit(shop, keys["other"])
        listed = shop.client.get("/api/jobs", headers=bearer(keys["user"])).json()["jobs"]
        assert [job["id"] for job in listed] == [mine]
        assert shop.client.get(f"/api/jobs/{mine}", headers=bearer(keys["user"])).status_code == 200
        for method, path in [("GET", ""), ("GET", "/log"), ("GET", "/events"), ("GET", "/video"), ("POST", "/cancel"),
                             ("POST", "/retry"), ("DELETE", ""), ("GET", "/shots/s1/clip")]:
            reply = shop.client.request(method, f"/api/jobs/{theirs}{path}", headers=bearer(keys["user"]))
            assert (reply.status_code, reply.json()["code"]) == (404, "unknown-job"), path
        changed = shop.client.patch(f"/api/films/{theirs}/shots/s1", json={"prompt": "x"}, headers=bearer(keys["user"]))
        assert changed.status_code == 404
        assert shop.client.post(f"/api/films/{theirs}/promote", headers=bearer(keys["user"])).status_code == 404
        assert not shop.ledger.job(theirs).cancel_requested

    @pytest.mark.parametrize("who", ["admin", "read"])
    def test_admins_and_readers_see_every_job(self, shop: Shop, keys: dict[str, IssuedKey], who: str) -> None:
        made = {submit(shop, keys["user"]), submit(shop, keys["other"])}
        listed = shop.client.get("/api/jobs", headers=bearer(keys[who])).json()["jobs"]
        assert {job["id"] for job in listed} == made

    @pytest.mark.parametrize(("who", "status"), [("admin", 200), ("read", 200), ("user", 403)])
    def test_metrics_are_for_those_who_oversee(
            self, shop: Shop, keys: dict[str, IssuedKey], who: str, status: int) -> None:
        assert shop.client.get("/metrics", headers=bearer(keys[who])).status_code == status

    def test_one_idempotency_key_of_two_users_is_two_requests(self, shop: Shop, keys: dict[str, IssuedKey]) -> None:
        made = {shop.client.post("/api/films", json=TWO_SHOTS, headers={**bearer(keys[who]), "Idempotency-Key": "1"},
                                 ).json()["id"] for who in ("user", "other", "user")}
        assert len(made) == 2


    def test_every_parameter_of_a_path_names_a_job_that_is_checked_or_is_known_to_name_none(self) -> None:
        """A new route whose parameter is called otherwise would show everybody's jobs to everybody."""
        modules = [importlib.import_module(f"serve_app.http.{found.name}")
                   for found in pkgutil.iter_modules(serve_app.http.__path__)]
        routers = [value for module in modules for value in vars(module).values() if isinstance(value, APIRouter)]
        names = {name for router in routers for route in router.routes if isinstance(route, Route)
                 for name in re.findall(r"{(\w+)", route.path)}
        assert names - {*JOB_PARAMETERS, BATCH_PARAMETER} <= {
            "shot_id", "file", "number", "model", "webhook_id", "message_id", "picture_id",
            "upload_id"}
        assert names & set(JOB_PARAMETERS)

    async def test_a_video_is_a_job_too(self, shop: Shop, keys: dict[str, IssuedKey]) -> None:
        mine = submit(shop, keys["user"])
        app = FastAPI(dependencies=[Depends(own_jobs_only)])
        app.state.desk = shop.desk
        app.get("/v1/videos/{video_id}")(lambda video_id: video_id)
        install(app)
        app.add_middleware(Doorman, access=shop.desk.access)
        client = TestClient(app)
        assert client.get(f"/v1/videos/{mine}", headers=bearer(keys["user"])).status_code == 200
        assert client.get(f"/v1/videos/{mine}", headers=bearer(keys["other"])).status_code == 404


    def test_videos_of_others_are_neither_changed_nor_named(self, shop: Shop, keys: dict[str, IssuedKey]) -> None:
        made = shop.client.post("/v1/videos", json={"prompt": "x"}, headers=bearer(keys["user"])).json()["id"]
        paths = [("POST", f"/{made}/cancel"), ("POST", f"/{made}/remix"), ("GET", f"?after={made}"),
                 ("GET", f"/{made}/content?variant=spritesheet")]
        for method, path in paths:
            reply = shop.client.request(method, f"/v1/videos{path}", headers=bearer(keys["other"]),
                                        json={"prompt": "y"} if method == "POST" else None)
            assert (reply.status_code, reply.json()["error"]["code"]) == (404, "unknown_job"), path
            if method == "POST":
                refused = shop.client.request(method, f"/v1/videos{path}", headers=bearer(keys["read"]))
                assert refused.status_code == 403, path
        remix = shop.client.post(f"/v1/videos/{made}/remix", json={"prompt": "y"}, headers=bearer(keys["admin"])).json()
        assert shop.ledger.job(remix["id"]).key_id == keys["admin"].key.id, "who asks for the remix pays for it"
        assert not shop.ledger.job(made).cancel_requested


class TestRate:
    def test_a_key_that_asks_too_often_is_told_when_to_come_back(self, shop: Shop) -> None:
        quick = Keys(shop.ledger.database).create("quick", Role.READ, requests_per_min=2)
        replies = [shop.client.get("/api/jobs", headers=bearer(quick)) for _ in range(3)]
        assert [reply.status_code for reply in replies] == [200, 200, 429]
        assert replies[0].headers["ratelimit-policy"] == '"key";q=2;w=60'
        assert replies[0].headers["ratelimit"].startswith('"key";r=1;t=')
        assert replies[2].headers["ratelimit"].startswith('"key";r=0;t=')
        assert 0 < int(replies[2].headers["retry-after"]) <= 30
        assert replies[2].json()["code"] == "too-many-requests"

    def test_one_keys_requests_cost_another_nothing(self, shop: Shop, keys: dict[str, IssuedKey]) -> None:
        slow = Keys(shop.ledger.database).create("slow", Role.READ, requests_per_min=1)
        assert [shop.client.get("/api/jobs", headers=bearer(slow)).status_code for _ in range(2)] == [200, 429]
        assert shop.client.get("/api/jobs", headers=bearer(keys["read"])).status_code == 200

    def test_a_bucket_fills_again_with_time_and_not_beyond_its_rim(self) -> None:
        bucket = Bucket(6, 0.0)
        assert [bucket.take(0.0).retry_after_s for _ in range(7)] == [0] * 6 + [10]
        assert bucket.take(9.9).retry_after_s == 1
        assert bucket.take(10.1).retry_after_s == 0
        assert [bucket.take(1e6).retry_after_s for _ in range(7)] == [0] * 6 + [10]

    async def test_each_replica_grants_its_share(self, shop: Shop, keys: dict[str, IssuedKey]) -> None:
        access = Access(shop.ledger, HttpSettings(require_keys=True, replicas=4, requests_per_min=100), now=lambda: 0.0)
        caller = await access.caller(keys["user"].token)
        assert caller is not None
        quota = access.take(caller)
        assert quota is not None
        assert quota.limit == 25


class TestOtherSites:
    def test_a_page_of_a_configured_origin_may_use_the_service(self, shop: Shop, keys: dict[str, IssuedKey]) -> None:
        preflight = shop.client.options("/api/films", headers={
            "Origin": ORIGIN, "Access-Control-Request-Method": "POST",
            "Access-Control-Request-Headers": "authorization,content-type,idempotency-key"})
        assert (preflight.status_code, preflight.headers["access-control-allow-origin"]) == (200, ORIGIN)
        made = shop.client.post("/api/films", json=TWO_SHOTS, headers={
            **bearer(keys["user"]), "Origin": ORIGIN, "Sec-Fetch-Site": "cross-site"})
        assert (made.status_code, made.headers["access-control-allow-origin"]) == (202, ORIGIN)
        assert shop.client.get("/api/jobs", headers={"Origin": ORIGIN}).headers["access-control-allow-origin"] == ORIGIN

    def test_a_page_of_another_origin_may_not(self, shop: Shop, keys: dict[str, IssuedKey]) -> None:
        headers = {**bearer(keys["admin"]), "Origin": "https://evil.example"}
        assert shop.client.post("/api/films", json=TWO_SHOTS, headers=headers).status_code == 403
        reply = shop.client.get("/api/jobs", headers=headers)
        assert "access-control-allow-origin" not in reply.headers

    @pytest.mark.parametrize("origin", ["'*'", "studio.example", "https://studio.example/", "https://*.example"])
    def test_an_origin_that_is_none_is_refused_at_the_start(self, origin: str) -> None:
        with pytest.raises(SettingsError, match="cors_origins"):
            load_settings("laptop", [f"http.cors_origins=[{origin}]"], {})


class TestStart:
    def test_serving_strangers_without_a_key_is_refused_and_with_one_it_is_not(self, shop: Shop) -> None:
        place = Workplace(settings=load_settings("laptop", ["http.host=0.0.0.0"], {}), ledger=shop.ledger,
                          store=shop.store)
        with pytest.raises(InvalidSettings, match="reelray keys create"):
            require_keys(place)
        issued = Keys(shop.ledger.database).create("me", Role.ADMIN)
        require_keys(place)
        Keys(shop.ledger.database).revoke(issued.key.id)
        with pytest.raises(InvalidSettings, match="reelray keys create"):
            require_keys(place)


def test_where_no_keys_are_needed_none_is_looked_at(tmp_path: Path, migrated_file: Path) -> None:
    """Clients that always send one, whatever it is, work on loopback too."""
    shutil.copy(migrated_file, tmp_path / "open.db")
    shop = open_shop(tmp_path, tmp_path / "open.db")
    with shop.client as client:
        assert isinstance(client, TestClient)
        reply = client.get("/api/jobs", headers={"Authorization": "Bearer anything"})
    assert reply.status_code == 200
    assert "ratelimit" not in reply.headers
    shop.ledger.close()
