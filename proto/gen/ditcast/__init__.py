"""The contract of ditcast, as generated code. `make proto` writes everything below but this file."""
