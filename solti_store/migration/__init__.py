"""What migrations are made of and watched by: waits, steps that can be repeated, plans, lint.

`solti_store.migrate` runs them.
"""
