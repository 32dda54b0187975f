"""Published models: rows that point at the exported student adapter and head."""
