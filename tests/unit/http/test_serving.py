"""The command that serves outlives its database."""

from __future__ import annotations

import pytest
from sqlalchemy.exc import OperationalError, ProgrammingError

from serve_app.serving import Telling

AWAY = OperationalError("SELECT 1", None, Exception("connection refused"))


def test_a_database_that_is_away_for_a_while_ends_no_server() -> None:
    said: list[str] = []
    answers: list[Exception | None] = [None, AWAY, AWAY, None, None]

    def tell() -> None:
        if error := answers.pop(0):
            raise error
        said.append("told")

    telling = Telling(tell, said.append)
    for _ in range(5):
        telling.look()
    assert said == ["told", "the database is away; jobs go on when it is back", "told", "the database is back", "told"]


def test_a_statement_that_is_wrong_is_no_outage() -> None:
    def tell() -> None:
        raise ProgrammingError("SELEC 1", None, Exception("syntax error"))

    with pytest.raises(ProgrammingError):
        Telling(tell, print).look()
