"""What can be trained, as plain data: pairs, method kinds, backbone facts. Needs no torch."""
