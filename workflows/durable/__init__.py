"""Jobs as rows, work as leases: tables, the ledger's verbs, and the engine that walks a job's nodes."""
