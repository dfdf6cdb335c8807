"""The layouts in which each family of networks was published, brought to timm's key names.

One module a family, each with the same three functions: `recognizes(state)`, by names that no other
family has, in the published or in timm's layout; `to_timm(state, name)`, the same tensors under
timm's names; `describe(state, name)`, the `ModelInfo` that shapes in timm's layout tell. `name` is
the file's, for the sentences.
"""
