"""`solti-store demo`: real tasks, real worker processes, one of them killed, and an account of it all.

`plan` says what is to happen, `crew` holds the worker processes, `conduct` makes it happen, `account` gathers and
checks what did, `stage` shows it.
"""
