"""Collection: what nobody needs any more goes, and nothing else does.

A blob is garbage when no row names it. Finding that out and deleting it are two steps, and somebody
may put the same bytes between them and name them in a row. Two rules keep what is needed:

1. *Who names blobs in a row calls `ensure_stored` in the transaction that writes the row.* It takes
   a shared lock on each blob in the database and looks whether the store has it.
2. *Who deletes a blob does it in `collect_blob`*, in a transaction that takes the same lock for
   itself, looks once more whether a row names the blob, and deletes only then.

The lock puts the two transactions in an order. If the row comes first, the deleter sees it and lets
the blob be. If the deletion comes first, the namer finds the blob missing, writes nothing, and its
caller stores the bytes again. So no row ever names a blob that a sweep has taken, whatever clocks,
pauses and crashes do. On SQLite the write lock of the database is that lock.

The period of grace makes the second case rare: a blob is not even looked at before it has lain in
the store for so long, and putting bytes that are there already makes their blob new again.
"""
