"""One module a noun; each owns a router."""
