"""Between the contract's messages and the domain's words: pure functions, without loss both ways.

`acceleration`: settings. `request`: what is asked for. `events`: what happened. `capabilities`:
what the loaded pipeline takes. `values`: enums, durations and Structs, for all of them.
"""
