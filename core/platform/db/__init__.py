"""The SQL database: engine, tables, transactions, and the one clock that leases trust."""
