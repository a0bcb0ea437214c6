"""What the store costs over the database: each operation beside bare psycopg that runs the same SQL.

`python -m benchmarks` from the top of the repository; `--help` lists the options.
"""
