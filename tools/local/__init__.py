"""The local stack: real Kafka and PostgreSQL, a CA, an identity provider and a trace collector of its own."""
