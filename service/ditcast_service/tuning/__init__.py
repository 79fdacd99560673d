"""Cache settings measured on a caller's own prompts: a series of ordinary generations.

`candidates`: what is tried where nothing is named. `plan`: what a request asks for, settled.
`sweep`: makes the pictures and compares them. `figures`: what follows from the comparisons.
`tuner`: serves the RPC.
"""
