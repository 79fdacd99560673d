"""Clients of a ditcast server, and the `ditcast` command. Needs the contract, and never torch."""
