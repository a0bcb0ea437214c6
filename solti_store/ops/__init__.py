"""One transaction each: plain functions over a connection, from values to statements and from rows to values.

An op neither commits nor sleeps nor retries; `solti_store.store` does. It raises the package's own errors for
what it finds (a taken id, another version) and never by breaking the transaction, which may be the caller's.

Ids go to the database as plain `str`: for a subclass psycopg searches its dumpers anew each time, and a point read that
takes 115 µs took 215.
"""
