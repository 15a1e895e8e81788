"""Ray actors that carry progress. Soft state only: the database is the truth."""
