"""The spine: ingest, convert, validate, train, evaluate, gate, export, benchmark, register; one file a stage."""
