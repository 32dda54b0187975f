"""What figures are made of and may say instead; loads nothing, for those that ask for none."""

from collections.abc import Mapping
from typing import Any

Options = Mapping[str, Any]
Data = dict[str, Any]


class NotAvailableError(Exception):
    """This figure cannot be made of this run; the message is a sentence that says why."""
