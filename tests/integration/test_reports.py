"""Who may read reports, from where, and what the command makes of them."""

from __future__ import annotations

import csv
import io
import json
import re
import subprocess
import time
import uuid
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree as ET

import psycopg
import pytest
from cli_run import COMMAND, data_of, environment, run_cli
from PIL import Image, ImageColor
from psycopg import sql
from psycopg.types.json import set_json_loads
from replica import replica
from sqlalchemy import create_engine, make_url, text
from support import connect
from support_reports import make_history

from solti_store.cli import main
from solti_store.migrate import downgrade, upgrade
from solti_store.ops.reports import read
from solti_store.rules.reports import PAGE, REPORTS

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def url(database_url: str) -> str:
    """A database with the history."""
    plain = make_url(database_url).set(drivername="postgresql").render_as_string(hide_password=False)
    with psycopg.connect(plain) as connection:
        make_history(connection)
    return database_url


@pytest.fixture
def role(database_url: str) -> Iterator[str]:
    """A name that no role has, and that none has afterwards: roles are the whole server's."""
    name = f'solti-report:er"{uuid.uuid4().hex[:8]}"100%'
    yield name
    with connect(database_url) as connection:
        if connection.execute("SELECT FROM pg_roles WHERE rolname = %s", [name]).fetchall():
            for statement in ("DROP OWNED BY {}", "DROP ROLE {}"):
                connection.execute(sql.SQL(statement).format(sql.Identifier(name)))


def reader(url: str, name: str) -> str:
    """The URL for a role, which gets a password, for servers that ask for one."""
    with connect(url) as connection:
        connection.execute(sql.SQL("ALTER ROLE {} PASSWORD {}").format(sql.Identifier(name), sql.Literal("s3cret")))
    return make_url(url).set(username=name, password="s3cret").render_as_string(hide_password=False)


def test_an_answer_that_takes_long_to_take_in_is_not_cut_off(url: str) -> None:
    def slowly(text: str | bytes) -> object:
        time.sleep(1.5)
        return json.loads(text)

    engine = create_engine(url)
    with engine.connect() as connection:
        driver = connection.connection.driver_connection
        assert driver is not None
        set_json_loads(slowly, driver)
        connection.execute(text("SET idle_in_transaction_session_timeout = '1s'"))
        connection.commit()
        found = read(connection, REPORTS["tasks"], limit=1, timeout=timedelta(minutes=1))
        assert len(found.rows) == 1
        assert found.is_cut
    engine.dispose()


# --- the role -----------------------------------------------------------------------------------


def test_a_reporting_role_sees_the_views_and_nothing_else(url: str, role: str) -> None:
    made = run_cli("db", "roles", "--reader", role, "--timeout", "7s", url=url)
    assert (made.returncode, made.stdout) == (0, "")
    assert "was created and may read reports" in made.stderr
    with connect(reader(url, role)) as connection:
        views = {report.view for report in REPORTS.values()} | {"version", "freshness"}
        for view in views:
            # By its bare name: the search path is set.
            connection.execute(sql.SQL("SELECT * FROM {}").format(sql.Identifier(view))).fetchall()
        readable = connection.execute(
            """
            SELECT n.nspname, c.relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
            WHERE c.relkind IN ('r', 'p', 'v', 'm', 'f', 'S') AND n.nspname NOT IN ('pg_catalog', 'information_schema')
            AND has_schema_privilege(n.oid, 'USAGE') AND (has_table_privilege(c.oid, 'SELECT')
                OR has_any_column_privilege(c.oid, 'SELECT') OR has_table_privilege(c.oid, 'INSERT, UPDATE, DELETE'))
            """
        ).fetchall()
        assert {name for schema, name in readable} == views
        assert {schema for schema, name in readable} == {"solti_report"}
        settings = [
            connection.execute("SELECT current_setting(%s)", [name]).fetchall()[0][0]
            for name in ("statement_timeout", "idle_in_transaction_session_timeout", "default_transaction_read_only")
        ]
        assert settings == ["7s", "7s", "on"]
        for statement in (
            "SELECT * FROM solti.tasks",
            "SELECT * FROM solti.alembic_version",
            "CREATE TABLE solti_report.mine (n int)",
            "CREATE TABLE solti.mine (n int)",
        ):
            connection.execute("SET default_transaction_read_only = off")
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                connection.execute(statement.encode())


def test_what_a_role_may_read_outlives_the_views(url: str, role: str) -> None:
    assert run_cli("db", "roles", "--reader", role, url=url).returncode == 0
    downgrade(url, "solti_0001")
    upgrade(url)
    with connect(reader(url, role)) as connection:
        assert connection.execute("SELECT count(*) FROM solti_report.tasks").fetchall() == [(8,)]


def test_to_make_a_role_a_reporting_role_twice_changes_nothing(url: str, role: str) -> None:
    for expected in ("was created and may", "may read reports"):
        done = run_cli("db", "roles", "--reader", role, url=url)
        assert (done.returncode, done.stderr.count("\n")) == (0, 1)
        assert expected in done.stderr


def test_a_role_that_may_do_more_is_refused_and_left_as_it_was(url: str, role: str) -> None:
    with connect(url) as connection:
        connection.execute(sql.SQL("CREATE ROLE {}").format(sql.Identifier(role)))
        connection.execute(sql.SQL("GRANT USAGE ON SCHEMA solti TO {}").format(sql.Identifier(role)))
    done = run_cli("db", "roles", "--reader", role, url=url)
    assert done.returncode == 1
    assert "may use the schema solti" in done.stderr
    with connect(url) as connection:
        granted = "SELECT has_schema_privilege(%s, 'solti_report', 'USAGE')"
        assert connection.execute(granted, [role]).fetchall() == [(False,)]


@pytest.mark.parametrize("name", ["", "x" * 64, "a\nb"])
def test_a_name_that_no_role_can_have_is_refused(url: str, name: str) -> None:
    assert run_cli("db", "roles", "--reader", name, url=url).returncode == 2


def test_the_command_works_for_the_role(url: str, role: str) -> None:
    assert run_cli("db", "roles", "--reader", role, url=url).returncode == 0
    found = json.loads(data_of("report", "tasks", "-o", "json", url=reader(url, role)))
    assert len(found["items"]) == 8
    assert run_cli("list", url=reader(url, role)).returncode == 5


# --- the command --------------------------------------------------------------------------------


def items(*arguments: str, url: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(data_of("report", *arguments, "-o", "json", url=url))["items"]
    return found


@pytest.mark.parametrize("name", REPORTS)
def test_every_report_has_every_form(url: str, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    def form(output: str) -> str:
        # In this process: to start one for each of sixty takes a minute.
        since = ["--since", "2024-01-01"] if REPORTS[name].time else []
        assert main(["--url", url, "report", name, *since, "-o", output]) == 0
        return capsys.readouterr().out

    found = json.loads(form("json"))
    assert found.keys() == {"report", "version", "asOf", "isReplica", "isCut", "items"}
    rows = list(csv.DictReader(io.StringIO(form("csv"))))
    assert [list(row) for row in rows] == [list(item) for item in found["items"]]
    assert rows
    assert len(form("table").splitlines()) == len(rows) + 1
    assert 1 <= len(form("bars").splitlines()) <= 60
    assert ET.fromstring(form("svg")).tag == "{http://www.w3.org/2000/svg}svg"


@pytest.mark.parametrize("name", ["outcomes", "slots", "failures"])
def test_a_png_is_the_same_drawing(url: str, name: str) -> None:
    since = ["--since", "2024-01-01"] if REPORTS[name].time else []
    drawn = ET.fromstring(data_of("report", name, *since, "-o", "svg", url=url))
    done = subprocess.run(
        [*COMMAND, "report", name, *since, "-o", "png"], env=environment(url), capture_output=True, check=True
    )
    with Image.open(io.BytesIO(done.stdout)) as image:
        assert image.format == "PNG"
        assert image.size == (int(drawn.attrib["width"]) * 2, int(drawn.attrib["height"]) * 2)
        pixels = image.convert("RGB")
    colours = {colour for _, colour in pixels.getcolors(1 << 20) or ()}
    for part in drawn:
        x, y = (float(part.attrib[name]) * 2 for name in ("x", "y"))
        if part.tag.endswith("rect"):
            width, height = (float(part.attrib[name]) * 2 for name in ("width", "height"))
            if width and height:
                middle = pixels.getpixel((int(x + width / 2), int(y + height / 2)))
                assert middle == ImageColor.getrgb(part.attrib["fill"])
                # White all around it.
                assert pixels.getpixel((int(x + width / 2), int(y) - 2)) == (255, 255, 255)
        else:
            # A text has ink where it stands.
            before = part.attrib["text-anchor"] == "end"
            box = (int(x) - 20 if before else int(x), int(y) - 18, int(x) if before else int(x) + 20, int(y) + 2)
            assert pixels.crop(box).getextrema() != ((255, 255),) * 3
            assert ImageColor.getrgb(part.attrib["fill"]) in colours


def test_without_a_name_it_says_which_reports_there_are() -> None:
    lines = data_of("report").splitlines()
    assert [line.split()[0] for line in lines[1:]] == list(REPORTS)


def test_since_picks_whole_days_and_exact_times(url: str) -> None:
    assert [row["day"] for row in items("outcomes", "--since", "2024-05-01T23:59:59Z", url=url)] == [
        *["2024-05-02"] * 3,
        "2024-05-01",
    ]
    since = ("--since", "2024-05-02T11:00:10Z")
    assert [row["task"] for row in items("attempts", *since, url=url)] == ["stopped", "backs-off"]
    done = run_cli("report", "outcomes", url=url)
    assert (done.returncode, done.stdout) == (0, "")
    assert done.stderr == "nothing to report\nof the last 3d: --since for more\n"


def test_attempts_have_those_that_run_first_and_a_limit(url: str) -> None:
    assert [row["outcome"] for row in items("attempts", "--limit", "2", url=url)] == ["running", "canceled"]
    done = run_cli("report", "attempts", "--limit", "7", url=url)
    assert done.stderr == "there are more than 7 rows: --limit N, or --all\n"
    assert run_cli("report", "attempts", "--limit", "8", url=url).stderr == ""
    assert len(items("attempts", "--limit", "2", "--all", url=url)) == 8


def test_a_selector_picks_by_label(url: str) -> None:
    assert {row["id"] for row in items("tasks", "-l", "env=prod", url=url)} == {"done", "gone-bad"}
    assert {row["id"] for row in items("tasks", "-l", "env=prod,n<2", url=url)} == {"done"}
    assert {row["task"] for row in items("attempts", "-l", "!env", url=url)} == {"backs-off", "stopped"}
    assert {row["id"] for row in items("agents", "-l", "zone in (a,b)", url=url)} == {"w2"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nope"], "there is no report 'nope'"),
        (["slots", "--since", "1h"], "--since: the report slots is about now"),
        (["outcomes", "-l", "a=b"], "--selector: the report outcomes has no labels"),
        (["tasks", "-l", "=a"], "label selector"),
        (["tasks", "--since", "soon"], "--since: expected a time"),
        (["tasks", "--timeout", "0s"], "--timeout"),
        (["tasks", "--html", "x.html"], "--html has several reports"),
        (["--html", "no/such/folder/x.html"], "--html: cannot write"),
    ],
)
def test_bad_usage_is_one_line_and_code_2(url: str, arguments: list[str], message: str) -> None:
    done = run_cli("report", *arguments, url=url)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert message in done.stderr


def test_what_takes_too_long_is_given_up(url: str) -> None:
    with connect(url) as connection, connection.transaction():
        # Nobody gets past this lock, however fast the machine.
        connection.execute("LOCK TABLE solti.tasks IN ACCESS EXCLUSIVE MODE")
        done = run_cli("report", "tasks", "--timeout", "100ms", url=url)
    assert (done.returncode, done.stdout) == (5, "")
    assert done.stderr == "error: the report took longer than 0.1 s; ask for less, or allow more time\n"


def test_a_database_without_the_views_is_refused_with_the_remedy(url: str) -> None:
    downgrade(url, "solti_0001")
    done = run_cli("report", "tasks", url=url)
    assert done.returncode == 5
    assert "run `solti-store db upgrade`" in done.stderr


def test_views_of_another_version_are_refused(url: str) -> None:
    with connect(url) as connection:
        connection.execute("CREATE OR REPLACE VIEW solti_report.version (version) AS SELECT 7")
    done = run_cli("report", "tasks", url=url)
    assert (done.returncode, done.stdout) == (5, "")
    assert "has version 7 of the reports" in done.stderr


def test_the_page_needs_nothing_but_itself(url: str, tmp_path: Path) -> None:
    with connect(url) as connection:
        connection.execute("UPDATE solti.task_runs SET error = '<script>alert(1)</script>' WHERE error IS NOT NULL")
    done = run_cli("report", "--html", str(tmp_path / "page.html"), "--since", "2024-01-01", url=url)
    assert (done.returncode, done.stdout) == (0, "")
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    for name in PAGE:
        assert f"<h2>{name}</h2>" in text
    assert text.count("<svg") == len(PAGE)
    assert "<script" not in text
    assert "&lt;script&gt;" in text
    assert not re.search(r"(src|href)=|url\(|@import", text)
    # Well formed, so that nothing in it can have broken out of where it stands.
    ET.fromstring(re.sub(r"<!doctype html>\n|<meta [^>]*>\n", "", text))


# --- a replica ----------------------------------------------------------------------------------


def test_on_a_replica_it_says_how_stale_it_is(tmp_path: Path) -> None:
    with replica() as url:
        done = run_cli("report", "tasks", "-o", "json", url=url)
        assert done.returncode == 0, done.stderr
        found = json.loads(done.stdout)
        assert (found["isReplica"], found["items"]) == (True, [])
        # The last thing that happened there was the migration.
        assert re.fullmatch(r"from a replica: as of 2\d{3}-.* UTC, at most .* behind\n", done.stderr)
        assert found["asOf"][:4] in done.stderr
        page = tmp_path / "page.html"
        assert run_cli("report", "--html", str(page), url=url).returncode == 0
        assert "behind" in page.read_text(encoding="utf-8")
