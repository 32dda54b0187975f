"""From a request to a complete `JobSpec`, and what such a job would train.

`resolve` is the one place where defaults and `auto` get their values; the other modules know one
part of a request each. All of it needs the catalog only, so that the control role checks names and
sizes without loading torch.
"""
