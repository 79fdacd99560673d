"""Previews, on the rank that makes them: what the outputs would be by the present state.

`clean` foretells the final latents from what the scheduler is given at a step, `layout` knows how
they lie, `colours` what colours they stand for. All of it is found out once, from the warm-up, so
that no kind of pipeline is named here. Importing this package imports torch.
"""
