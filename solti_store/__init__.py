"""A durable task registry on PostgreSQL."""
