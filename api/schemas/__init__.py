"""What goes over the wire, one module a noun, as in `api.routes`."""
