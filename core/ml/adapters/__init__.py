"""Small trainable modules and how they get into a frozen network.

One file a kind: where its modules attach and what they add. `registry` lists the kinds, `inject`
attaches them for the length of a forward, `adapted` joins backbone, adapters and head into a
classifier.
"""
