"""The figures: each a module with `build(inputs, options)`, all reached through `registry`.

A module makes its data first, JSON values that hold everything the picture shows, and draws the
picture from them. It is loaded when its figure is asked for: matplotlib and scikit-learn take a
second that no other job should wait for.
"""
