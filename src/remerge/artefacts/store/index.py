"""The index of a store: what its records, states and names say, to be listed and searched quickly.

It knows how far it has read the log. Whoever opens it reads on from there; where it is missing,
damaged or ahead of the log it is made again from the files, which are the truth.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable
from contextlib import closing, suppress
from dataclasses import dataclass
from typing import TypeVar

from remerge.artefacts.store.layout import Store, names, target_of
from remerge.errors import RemergeError

T = TypeVar("T")

# Another number where tables change: an index of another number is made again.
_VERSION = 1
_TABLES = """
create table artefacts (
    id text primary key, kind text, title text, form text, base text, adapters text, size integer,
    merge_key text, digest text, added text, pinned integer, proved real, collected integer,
    rebuildable integer
) without rowid;
create table files (sha256 text, id text, primary key (sha256, id)) without rowid;
create index files_id on files (id);
create index keys on artefacts (merge_key);
create index digests on artefacts (digest);
create table names (name text primary key, id text) without rowid;
create index names_id on names (id);
create table progress (log integer);
"""


@dataclass(frozen=True)
class Row:
    """An artefact in a list. ``seconds`` is how long making it again took, None where that was
    never proved; ``collected`` where its derived bytes are gone."""

    id: str
    kind: str
    title: str
    form: str | None
    base: str | None
    adapters: tuple[str, ...]
    size: int
    added: str
    pinned: bool
    seconds: float | None
    collected: bool
    rebuildable: bool
    names: tuple[str, ...]


def follow(store: Store) -> None:
    """Bring the index up to date; one that cannot be written is left to the next reader."""
    with suppress(sqlite3.Error, OSError, RemergeError):
        _asked(store, lambda database: None)


def rebuild(store: Store) -> None:
    """Make the index again from records, states and names: in its place, as others may read it."""
    _asked(store, lambda database: database.execute("pragma user_version = 0"))
    _asked(store, lambda database: None)


def rows(store: Store) -> list[Row]:
    """All artefacts, oldest first."""

    def ask(database: sqlite3.Connection) -> list[Row]:
        named: dict[str, list[str]] = {}
        for name, artefact in database.execute("select name, id from names order by name"):
            named.setdefault(artefact, []).append(name)
        found = database.execute(
            "select id, kind, title, form, base, adapters, size, added, pinned, proved, collected,"
            " rebuildable from artefacts order by added, id"
        )
        return [
            Row(
                id=line[0],
                kind=line[1],
                title=line[2],
                form=line[3],
                base=line[4],
                adapters=tuple(json.loads(line[5])),
                size=line[6],
                added=line[7],
                pinned=bool(line[8]),
                seconds=line[9],
                collected=bool(line[10]),
                rebuildable=bool(line[11]),
                names=tuple(named.get(line[0], ())),
            )
            for line in found
        ]

    return _asked(store, ask)


def holding(store: Store, sha256: str) -> list[str]:
    """The ids of artefacts that have a file with this digest."""
    query = "select id from files where sha256 = ? order by id"
    return _asked(store, lambda database: _column(database, query, sha256))


def beginning(store: Store, prefix: str) -> list[str]:
    """The ids of artefacts whose id or merge key begins so; ``prefix`` is hexadecimal."""
    after = prefix + "g"
    by_id = "select id from artefacts where id >= ? and id < ?"
    by_key = "select id from artefacts where merge_key >= ? and merge_key < ? order by id"
    return _asked(
        store,
        lambda database: (
            _column(database, by_id, prefix, after) or _column(database, by_key, prefix, after)
        ),
    )


def inputs(store: Store, digest: str) -> list[str]:
    """The ids of artefacts that a manifest calls by this digest, what nothing brings back first."""
    query = "select id from artefacts where digest = ? order by kind in ('merged', 'exported'), id"
    return _asked(store, lambda database: _column(database, query, digest))


def names_of(store: Store, artefact: str) -> list[str]:
    """The names that point to an artefact."""
    query = "select name from names where id = ? order by name"
    return _asked(store, lambda database: _column(database, query, artefact))


def _asked(store: Store, question: Callable[[sqlite3.Connection], T]) -> T:
    """The answer of the index, up to date. A damaged one is made again, wherever that shows; a
    store that cannot be written has one in memory."""
    for _ in range(2):
        try:
            with closing(_connected(str(store.index), store)) as connection:
                return question(connection)
        except sqlite3.DatabaseError as error:
            # One that others hold is not damaged.
            if error.sqlite_errorcode == sqlite3.SQLITE_BUSY:
                break
            with suppress(OSError):
                store.index.unlink(missing_ok=True)
    with closing(_connected(":memory:", store)) as connection:
        return question(connection)


def _connected(place: str, store: Store) -> sqlite3.Connection:
    connection = sqlite3.connect(place, timeout=60, isolation_level=None)
    try:
        # Losing it costs a moment: there is no need to wait for the disk.
        connection.execute("pragma synchronous = off")
        found = connection.execute("pragma user_version").fetchone()[0]
        length = store.log.stat().st_size if store.log.exists() else 0
        if found == _VERSION and _progress(connection) == length:
            return connection
        connection.execute("begin immediate")
        _read_on(connection, store)
        connection.execute("commit")
    except BaseException:
        connection.close()
        raise
    return connection


def _progress(connection: sqlite3.Connection) -> int:
    return connection.execute("select log from progress").fetchone()[0]


def _read_on(connection: sqlite3.Connection, store: Store) -> None:
    """Read the log from where the index stands; from nothing where it is of no use."""
    content = store.log.read_bytes() if store.log.exists() else b""
    # A line that is being written is for the next reader.
    content = content[: content.rfind(b"\n") + 1]
    found = connection.execute("pragma user_version").fetchone()[0]
    known = _progress(connection) if found == _VERSION else None
    if known is None or known > len(content) or (known and content[known - 1 : known] != b"\n"):
        _make_again(connection, store)
    else:
        try:
            entries = [json.loads(line) for line in content[known:].splitlines()]
            for artefact in {one for entry in entries for one in entry["artefacts"]}:
                _read_artefact(connection, store, artefact)
            for name in {one for entry in entries for one in entry["names"]}:
                _read_name(connection, store, name)
        except (ValueError, KeyError, TypeError):
            # The log tells what changed, and the files what is: without it all are read.
            _make_again(connection, store)
    connection.execute("update progress set log = ?", (len(content),))


def _make_again(connection: sqlite3.Connection, store: Store) -> None:
    from remerge.artefacts.store.records import all_records

    for table in ("artefacts", "files", "names", "progress"):
        connection.execute(f"drop table if exists {table}")
    for statement in _TABLES.split(";"):
        connection.execute(statement)
    connection.execute(f"pragma user_version = {_VERSION}")
    connection.execute("insert into progress values (0)")
    for artefact in all_records(store):
        _read_artefact(connection, store, artefact)
    for name in names(store):
        _read_name(connection, store, name)


def _read_artefact(connection: sqlite3.Connection, store: Store, artefact: str) -> None:
    """Read an artefact's files anew."""
    # Listing needs none of it, and starts faster without.
    from remerge.artefacts.store.records import read_record, read_state

    connection.execute("delete from artefacts where id = ?", (artefact,))
    connection.execute("delete from files where id = ?", (artefact,))
    if not store.record(artefact).exists():
        return
    try:
        record, state = read_record(store, artefact), read_state(store, artefact)
    except RemergeError:
        # `remerge store verify` names what is damaged; a list shows what is whole.
        return
    connection.execute(
        "insert into artefacts values (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (
            artefact,
            record.kind,
            state.title,
            record.form,
            None if record.base is None else record.base.name,
            json.dumps([adapter.name for adapter in record.adapters]),
            record.size,
            record.merge_key,
            record.digest,
            state.added,
            state.pinned,
            None if state.proof is None else state.proof.seconds,
            state.collected is not None,
            state.collected is None or state.collected.rebuildable,
        ),
    )
    digests = {file.sha256 for file in (*record.files, *state.attached)}
    connection.executemany(
        "insert into files values (?, ?)", [(digest, artefact) for digest in digests]
    )


def _read_name(connection: sqlite3.Connection, store: Store, name: str) -> None:
    connection.execute("delete from names where name = ?", (name,))
    target = target_of(store, name)
    if target:
        connection.execute("insert into names values (?, ?)", (name, target))


def _column(database: sqlite3.Connection, query: str, *values: str) -> list[str]:
    return [line[0] for line in database.execute(query, values)]
