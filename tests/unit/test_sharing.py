"""A cluster of several machines is refused when one of them would keep the database or the store to itself."""

from __future__ import annotations

import pytest
from typer.testing import CliRunner

from configs.load import load_settings
from serve_app.cli import app
from serve_app.sharing import require_shared
from workflows.errors import InvalidSettings

POSTGRES = "database_url=postgresql+psycopg://reelray@db/films"
S3 = "store_url=s3://films/store"


def refused(*overrides: str, machines: int = 2) -> str:
    with pytest.raises(InvalidSettings) as caught:
        require_shared(load_settings("laptop", overrides, {}), machines=machines)
    return str(caught.value)


def test_sqlite_and_a_local_store_are_refused_together_with_both_ways_out() -> None:
    text = refused("data_dir=/here", machines=3)
    assert "the cluster has 3 machines" in text
    assert "set database_url=postgresql+psycopg://" in text
    assert "the store is /here/artifacts, on one machine; set store_url=s3://" in text
    assert "store_is_shared=true" in text


@pytest.mark.parametrize(("overrides", "named", "not_named"), [
    ((POSTGRES,), "the store is", "SQLite"),
    ((S3,), "SQLite", "the store is"),
    ((POSTGRES, "store_url=file:///data/films"), "the store is file:///data/films", "SQLite"),
    ((POSTGRES, "store_url=simplecache::file:///data"), "the store is simplecache::", "SQLite"),
    (("store_url=/nfs/films", "store_is_shared=true"), "not even over NFS", "the store is"),
    ((POSTGRES, "store_url=memory://films", "store_is_shared=true"), "the store is memory://films", "mounted"),
])
def test_what_is_shared_already_is_not_named(overrides: tuple[str, ...], named: str, not_named: str) -> None:
    text = refused(*overrides)
    assert named in text
    assert not_named not in text


@pytest.mark.parametrize("store", [S3, "store_url=gs://films", "store_url=simplecache::s3://films/store"])
def test_a_database_and_a_store_for_all_are_taken(store: str) -> None:
    require_shared(load_settings("laptop", [POSTGRES, store], {}), machines=9)


def test_a_mounted_directory_is_taken_when_it_is_said_to_be_one() -> None:
    require_shared(load_settings("laptop", [POSTGRES, "store_url=/nfs/films", "store_is_shared=true"], {}), machines=2)


def test_one_machine_may_keep_all_to_itself_unless_it_is_to_grow() -> None:
    require_shared(load_settings("laptop", [], {}), machines=1)
    assert "is to have several machines (ray.several_machines)" in refused("ray.several_machines=true", machines=1)


def test_serve_says_so_before_anything_is_started(tmp_path: object) -> None:
    """The profile `cluster` says that there are several machines; nobody is at that address, and nobody is asked."""
    run = CliRunner().invoke(app, ["serve", "--profile", "cluster", "--address", "127.0.0.1:1", "--set",
                                   f"data_dir={tmp_path}", "--set", "models.auto_download=true"])
    assert isinstance(run.exception, InvalidSettings)
    assert "SQLite" in str(run.exception)
