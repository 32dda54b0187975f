"""Webhooks: who wants to be told of what, what is owed to them, and whom we may connect to.

An event is a row of the outbox, written in the transaction that makes it true (`outbox`), and sent
by the workers (`worker.deliver`) until its receiver has it or is given up (`deliveries`). Signing
and retrying follow the Standard Webhooks specification.
"""
