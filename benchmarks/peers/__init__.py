"""Claim and finish, beside other task queues on PostgreSQL that do the same, on the same server in the same run.

The peers are none of this project's dependencies: give them an environment of their own.

    python -m venv peers && peers/bin/pip install pgqueuer asyncpg uvloop procrastinate "psycopg[binary]"
    npm install --prefix peers graphile-worker
    python -m benchmarks.peers --python peers/bin/python --node-modules peers/node_modules

What is not installed is said to be so and left out. Modules here that run in the peers' environment (`consumer` and
those named after a peer) import nothing of this project besides each other.
"""
